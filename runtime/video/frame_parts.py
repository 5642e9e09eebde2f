"""Frames of a decoded clip, prepared for several networks at once. Runs in the decoder process only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from .decoder_messages import FramePart
from .preprocessing import FramePreparer, Frames, Rgb

RgbOf = Callable[[Sequence[int]], Iterator[Rgb]]  # candidates by number (not decreasing) as uint8 [H, W, 3]


def read_parts(rgb_of: RgbOf, parts: Sequence[FramePart]) -> tuple[list[Frames], float]:
    """The frames of each part, one part after the other, and the milliseconds spent on preparing them.

    A frame that several parts want is converted to RGB once.
    """
    preparers = [FramePreparer(part.form).prepare if part.form else _as_it_is for part in parts]
    wanted = sorted({number for part in parts for number in part.candidates})
    found: list[dict[int, Frames]] = [{} for _ in parts]
    spent_s = 0.0
    for number, rgb in zip(wanted, rgb_of(wanted), strict=True):
        began = time.perf_counter()
        for part, prepare, frames in zip(parts, preparers, found, strict=True):
            if number in part.candidates:
                frames[number] = prepare(rgb)
        spent_s += time.perf_counter() - began
    of_parts = zip(parts, found, strict=True)
    return [frames[number] for part, frames in of_parts for number in part.candidates], spent_s * 1e3


def _as_it_is(rgb: Rgb) -> Frames:
    return rgb
