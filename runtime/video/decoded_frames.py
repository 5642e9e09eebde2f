"""Frames of a decoded clip, a whole file or a segment: candidates by number, from memory or decoded again.

Runs in the decoder process only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..keyframes import Indices
from .decoder_messages import FramePart
from .frame_parts import read_parts
from .preprocessing import FrameInput, Frames, Rgb
from .video_file import FrameShape

if TYPE_CHECKING:
    import av


@dataclass(frozen=True)
class Survey:
    """Result of one pass over a clip."""

    frames: int
    t_s: npt.NDArray[np.float64]  # [frames], seconds from the first, not decreasing
    warnings: tuple[str, ...]


class DecodedFrames(ABC):
    """A clip that was decoded once, and is decoded a second time where frames were not kept."""

    survey: Survey
    candidates: Indices  # of the frames

    def __init__(self) -> None:
        self._shape: FrameShape | None = None  # of the first frame; all frames are scaled to it
        self._held: dict[int, av.VideoFrame] = {}
        self.decoded = 0  # frames, in all passes

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames, upright."""
        assert self._shape is not None  # a clip without a frame is refused
        return self._shape.upright

    def rgb(self, numbers: Sequence[int]) -> Iterator[Rgb]:
        """Candidates by number (not decreasing) as uint8 [H, W, 3], upright, all of the first frame's size."""
        wanted = self.candidates[list(numbers)]
        for index, frame in self._frames_at(set(wanted.tolist())):
            rgb = (self._shape or FrameShape.of(frame)).rgb(frame)
            for _ in range(int((wanted == index).sum())):
                yield rgb

    def candidate_frames(self, form: FrameInput) -> list[Frames]:
        """The candidates in ``form``."""
        return read_parts(self.rgb, [FramePart(tuple(range(len(self.candidates))), form)])[0]

    def release_frames(self) -> None:
        """Drop the kept frames; later requests decode the clip again."""
        self._held = {}

    def _frames_at(self, wanted: set[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        if wanted <= self._held.keys():
            yield from ((index, self._held[index]) for index in sorted(wanted))
        else:
            yield from self._decoded_again(wanted)

    @abstractmethod
    def _decoded_again(self, wanted: set[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """The frames of these numbers, which are not all kept, with their numbers, in order."""
