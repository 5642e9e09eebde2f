"""Sliding windows over a video: which parts of it are answered, and which stretch each answer stands for. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...base.errors import UsageError
from ...runtime.clip_records import Segment

LENGTHS_S = (0.1, 600.0)  # bounds of a window's length
LEAST_STRIDE_S = 0.1
WINDOW_S = 2.0  # with 3 and 4 s fewer actions are found (bench/timeline.py)
MOST_OVERLAP = 10  # windows that show one moment


@dataclass(frozen=True)
class WindowPlan:
    """Length of the windows, and how far each begins after the one before it, microseconds. See ``window_plan``."""

    length_us: int
    stride_us: int

    @property
    def share(self) -> float:
        """Share of a window that the one before it does not show."""
        return self.stride_us / self.length_us


def window_plan(window_s: float | None = None, stride_s: float | None = None) -> WindowPlan:
    """Return the plan of windows ``window_s`` long, by default 2 s, each ``stride_s`` after the one before.

    By default the stride is half a window. Raises UsageError for lengths that make no sense.
    """
    window = WINDOW_S if window_s is None else window_s
    if not LENGTHS_S[0] <= window <= LENGTHS_S[1]:
        raise UsageError(
            f"--window {window:g}: expected {LENGTHS_S[0]:g} to {LENGTHS_S[1]:g} seconds",
            fix="take about the length of the clips that the model was trained on",
        )
    stride = window / 2 if stride_s is None else stride_s
    least = max(LEAST_STRIDE_S, window / MOST_OVERLAP)
    if not (stride_s is None or least <= stride <= window):
        raise UsageError(
            f"--stride {stride:g}: expected {least:g} to {window:g} seconds, a tenth of a window to a whole one",
            fix="leave it out: half a window",
        )
    return WindowPlan(round(window * 1e6), max(1, round(stride * 1e6)))


@dataclass(frozen=True)
class Window:
    """A part of a video that is answered, and the stretch that its answer stands for: no two windows' overlap."""

    shown: Segment
    stretch: Segment
    next_us: int | None  # where the next window begins, if it begins before this one ends


def sliding_windows(t_us: npt.NDArray[np.int64], end_us: int, plan: WindowPlan) -> Iterator[Window]:
    """Yield the windows over a video whose frames are shown at ``t_us`` (not decreasing, the first at 0).

    Windows begin at multiples of the stride as long as they end within the video; the last ends where it ends. A video
    no longer than a window is one. Between two windows the stretches meet half-way between their middles; together
    they cover the video, but for where no frame is shown: a window without a frame is left out.
    """
    shown = list[Segment]()
    before: int | None = None  # where the last stretch ended
    for window in _shown(t_us, end_us, plan):
        shown.append(window)
        if len(shown) == 2:
            first = shown.pop(0)
            yield (made := _window(first, window, before))
            before = made.stretch.end_us
    if shown:
        yield _window(shown[0], None, before)


def count_windows(t_us: npt.NDArray[np.int64], end_us: int, plan: WindowPlan) -> int:
    """Return the number of ``sliding_windows``."""
    return sum(1 for _ in _shown(t_us, end_us, plan))


def _shown(t_us: npt.NDArray[np.int64], end_us: int, plan: WindowPlan) -> Iterator[Segment]:
    """Yield the parts of the video that are answered, in order; none without a frame."""
    length, stride = plan.length_us, plan.stride_us
    start = 0
    while start + length < end_us:
        first = int(np.searchsorted(t_us, start))
        if first == len(t_us):
            return
        if t_us[first] < start + length:
            yield Segment(start, start + length)
            start += stride
        else:  # on to the first window that shows the next frame
            start = max(start + stride, -((length - 1 - int(t_us[first])) // stride) * stride)
    last = Segment(max(0, end_us - length), end_us)
    if np.searchsorted(t_us, last.start_us) < len(t_us):
        yield last


def _window(own: Segment, following: Segment | None, before: int | None) -> Window:
    start = own.start_us if before is None or before < own.start_us else before
    if following is None or following.start_us >= own.end_us:
        return Window(own, Segment(start, own.end_us), None)
    middle = (own.start_us + own.end_us + following.start_us + following.end_us) // 4
    return Window(own, Segment(start, middle), following.start_us)
