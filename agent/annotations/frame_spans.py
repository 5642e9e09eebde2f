"""Frames to times: by the presentation times of the video itself, or by a rate."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Protocol

from ...base.errors import DataError, FlamestError, StorageError, UsageError
from ...base.files import printable_path
from ...runtime.clip_records import FrameTimes, Segment
from .annotation import Annotation, FrameRange, Unusable

SAME_GAP = 0.1  # of a frame's time: gaps that differ less are one rate, rounded by the container
END_US = 500_000  # microseconds: tools round a video's length
CLOCK_US = 2000  # microseconds: containers that count in milliseconds


class FrameTimer(Protocol):
    """Reads when the frames of a video are shown: ``runtime.video.decoder.VideoDecoder``."""

    def frame_times(self, path: Path) -> FrameTimes:
        """Raises DataError for a video that cannot be read."""


class SpanReader:
    """Segments of annotations, in the time of their videos. Each video's times are read once.

    ``notes``: sentences on spans that were not read as usual, and how often.
    """

    def __init__(self, timer: FrameTimer, fps: float | None = None) -> None:
        """``fps``: rate for videos that state no usable times, and of a tool that counts at a rate of its own.

        Raises UsageError for a rate that is not above 0.
        """
        if fps is not None and not 0 < fps < float("inf"):
            raise UsageError(f"a rate of {fps} frames per second is none", fix="give one above 0, like 25")
        self._timer, self._fps = timer, fps
        self._times: dict[Path, FrameTimes | FlamestError] = {}
        self.notes: Counter[str] = Counter()
        self.used_fps = False

    def segment(self, annotation: Annotation, path: Path) -> Segment | None:
        """Return the annotation's segment, None for the whole video.

        Raises Unusable ``after_video`` for frames that the video does not have, ``no_frame_rate`` where frames have no
        times, ``empty_segment``.
        """
        span = annotation.span
        if span is None:
            return None
        if isinstance(span, Segment):
            return self._within_the_video(span, path)
        times = self._frame_times(path)
        if annotation.counted_rate is not None:
            self.notes["ranges are read at the frame rate that the file states"] += 1
            return _at_a_rate(span, annotation.counted_rate, times)
        unusable = not isinstance(times, FrameTimes) or not times.exact
        if self._fps is not None and (unusable or annotation.counts_itself):
            self.used_fps = True
            self.notes[f"ranges are read at {self._fps:g} frames per second (--fps)"] += 1
            return _at_a_rate(span, self._fps, times)
        if isinstance(times, FlamestError) or unusable:
            reason = times.message if isinstance(times, FlamestError) else "the video states no times of its frames"
            raise Unusable("no_frame_rate", f"its frames have no times ({reason}): give the rate with --fps")
        if annotation.counts_itself:
            self._note_own_count(times)
        return self._at_own_times(span, times, path, counts_itself=annotation.counts_itself)

    def _within_the_video(self, span: Segment, path: Path) -> Segment:
        times = self._frame_times(path)
        if not isinstance(times, FrameTimes) or not times.exact:
            return span  # the extraction says what is wrong with the video
        if span.start_us >= times.end_us:
            raise Unusable(
                "after_video", f"it starts at {span.start_s:g} s, and the video lasts {times.end_us / 1e6:g} s"
            )
        if span.end_us > times.end_us + END_US:
            length = f"{times.end_us / 1e6:g} s"
            self.notes[f"{printable_path(Path(path.name))}: segments end after the video, which lasts {length}"] += 1
        return span

    def _at_own_times(self, span: FrameRange, times: FrameTimes, path: Path, *, counts_itself: bool) -> Segment:
        frames = len(times.t_us)
        if span.first >= frames:
            more = "; Label Studio counts at the project's frameRate: give it with --fps" if counts_itself else ""
            raise Unusable("after_video", f"it starts at frame {span.first}, and the video has {frames} frames{more}")
        if span.end > frames:
            self.notes[f"{printable_path(Path(path.name))}: ranges end after the video, which has {frames} frames"] += 1
        start = int(times.t_us[span.first])
        end = int(times.t_us[span.end]) if span.end < frames else times.end_us
        if end <= start:
            raise Unusable("empty_segment", f"frames {span.first} to {span.end - 1} take no time in this video")
        return Segment(start, end)

    def _note_own_count(self, times: FrameTimes) -> None:
        gaps = times.t_us[1:] - times.t_us[:-1]
        varies = len(gaps) > 1 and gaps.max() > gaps.min() * (1 + SAME_GAP) + CLOCK_US
        rate = "is another" if not varies else "is another; a video's own rate varies"
        self.notes[
            f"Label Studio's frames are read as the videos' own: give --fps if the project's frameRate {rate}"
        ] += 1

    def _frame_times(self, path: Path) -> FrameTimes | FlamestError:
        if path not in self._times:
            try:
                self._times[path] = self._timer.frame_times(path)
            except (DataError, StorageError) as error:
                self._times[path] = error
        return self._times[path]


def _at_a_rate(span: FrameRange, rate: float, times: FrameTimes | FlamestError) -> Segment:
    start, end = round(span.first / rate * 1e6), round(span.end / rate * 1e6)
    if end <= start:
        raise Unusable("empty_segment", f"at {rate:g} frames per second it takes no time")
    if isinstance(times, FrameTimes) and start >= times.end_us:
        raise Unusable(
            "after_video", f"at {rate:g} frames per second it starts after the video's end at {times.end_us / 1e6:g} s"
        )
    return Segment(start, end)
