"""Frames to times: by the presentation times of the video itself, or by a rate."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from ...base.errors import DataError
from ...runtime.clip_records import FrameTimes, Segment
from .annotation import Annotation, FrameRange, Unusable

SAME_RATE = 0.02  # of a rate: 30 and 29.97 are one


class FrameTimer(Protocol):
    """Reads when the frames of a video are shown: ``runtime.video.decoder.VideoDecoder``."""

    def frame_times(self, path: Path) -> FrameTimes:
        """Raises DataError for a video that cannot be read."""


class SpanReader:
    """Segments of annotations, in the time of their videos. Each video's times are read once."""

    def __init__(self, timer: FrameTimer, fps: float | None = None) -> None:
        """``fps``: rate for videos that state no usable times, and of a tool that counts at a rate of its own."""
        self._timer, self._fps = timer, fps
        self._times: dict[Path, FrameTimes | DataError] = {}

    def segment(self, annotation: Annotation, path: Path) -> tuple[Segment | None, str]:
        """Return the annotation's segment, None for the whole video, and a sentence where it was not read as usual.

        Raises Unusable ``after_video`` for frames that the video does not have, ``no_frame_rate`` where frames have no
        times.
        """
        span = annotation.span
        if not isinstance(span, FrameRange):
            return span, ""
        rate = annotation.counted_rate
        times = self._frame_times(path)
        if rate is not None or (annotation.counts_itself and self._fps is not None):
            return self._at_a_rate(span, rate or self._fps or 0.0, times, counted=rate is not None)
        if isinstance(times, DataError) or not times.exact:
            if self._fps is not None:
                return self._at_a_rate(span, self._fps, times, counted=False)
            reason = times.message if isinstance(times, DataError) else "the video states no times of its frames"
            raise Unusable("no_frame_rate", f"its frames have no times ({reason}): give the rate with --fps")
        frames = len(times.t_us)
        if span.first >= frames:
            more = (
                "; Label Studio counts at the project's frameRate: give it with --fps"
                if annotation.counts_itself
                else ""
            )
            raise Unusable("after_video", f"it starts at frame {span.first}, and the video has {frames} frames{more}")
        start = int(times.t_us[span.first])
        end = int(times.t_us[span.end]) if span.end < frames else times.end_us
        if end <= start:
            raise Unusable("empty_segment", f"frames {span.first} to {span.end - 1} take no time in this video")
        note = "ends cut at the end of the video" if span.end > frames else ""
        if annotation.counts_itself and not note:
            note = "Label Studio's frames are read as the video's own: give --fps if the project's frameRate is another"
        return Segment(start, end), note

    def _frame_times(self, path: Path) -> FrameTimes | DataError:
        if path not in self._times:
            try:
                self._times[path] = self._timer.frame_times(path)
            except DataError as error:
                self._times[path] = error
        return self._times[path]

    def _at_a_rate(
        self, span: FrameRange, rate: float, times: FrameTimes | DataError, *, counted: bool
    ) -> tuple[Segment, str]:
        start, end = round(span.first / rate * 1e6), round(span.end / rate * 1e6)
        if end <= start:
            raise Unusable("empty_segment", f"at {rate:g} frames per second it takes no time")
        if isinstance(times, FrameTimes) and start >= times.end_us:
            raise Unusable(
                "after_video",
                f"at {rate:g} frames per second it starts after the video's end at {times.end_us / 1e6:g} s",
            )
        if not counted:
            return Segment(start, end), f"frames read at the {rate:g} per second of --fps"
        return Segment(start, end), f"frames read at the {rate:g} per second that the file states"
