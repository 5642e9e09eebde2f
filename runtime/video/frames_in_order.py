"""All frames of a video from its beginning, with the times that define its segments. In the decoder process only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from ..clip_records import Segment
from .video_file import USUAL_RATE, VideoFile, decoded_frames, ticks_us

if TYPE_CHECKING:
    import av


class Picture(NamedTuple):
    """A decoded frame, and when it is shown."""

    t_us: int  # microseconds from the video's first frame
    t_s: float  # the same in seconds, not rounded
    frame: av.VideoFrame


Way = Callable[[], Iterator[Picture]]  # to a segment's frames, in the order in which they are shown


class FramesInOrder:
    """Decodes a video from its beginning, frame by frame; goes on where the last segment ended."""

    def __init__(self, file: VideoFile) -> None:
        self._container, self._stream = file.open()
        self._frames = decoded_frames(self._container, self._stream)
        self._rate = float(self._stream.average_rate or USUAL_RATE)
        self._given_back: Picture | None = None
        self._lost_before = 0  # damaged frames and packets between the last picture and the one before it
        self._base = self._stream.time_base or Fraction(0)
        self._usual_us = self._length_us = round(1e6 / self._rate)
        self._first = 0  # presentation time of the first frame
        self._latest = (0, 0.0)  # microseconds and seconds
        self._number = 0  # frames so far
        self.ended = False
        self.position_us = self._before_us = -1  # time of the last frame that was taken, and of the one before it
        self.decoded = 0
        self.damaged = 0

    @property
    def end_us(self) -> int:
        """Microseconds from the first frame to the end of the last one so far."""
        return self._latest[0] + self._length_us

    def pictures(self, segment: Segment) -> Iterator[Picture]:
        """The frames of a segment that begins after ``position_us``; the next call goes on after it."""
        while (picture := self._next()) is not None:
            if picture.t_us >= segment.end_us:
                self._give_back(picture)
                return
            if picture.t_us >= segment.start_us:
                yield picture

    def close(self) -> None:
        self._container.close()

    def _next(self) -> Picture | None:
        """The next frame; None after the last."""
        if self._given_back is None:
            before = self.damaged
            picture = self._decode()
            self._lost_before = self.damaged - before
        else:
            picture, self._given_back = self._given_back, None
            self.damaged += self._lost_before  # they may have been frames of this segment too
        if picture is not None:
            self._before_us, self.position_us = self.position_us, picture.t_us
        return picture

    def _give_back(self, picture: Picture) -> None:
        """Let ``_next`` return this frame once more."""
        self._given_back = picture
        self.position_us = self._before_us

    def _decode(self) -> Picture | None:
        for frame in self._frames:
            if frame is None:
                self.damaged += 1
                continue
            self.decoded += 1
            self.damaged += bool(frame.is_corrupt)
            self._latest = max(self._latest, self._time_of(frame))  # as ``DecodedClip`` has it: not decreasing
            self._length_us = self._usual_us
            if frame.duration and self._base:
                self._length_us = ticks_us(frame.duration, self._base)
            self._number += 1
            return Picture(*self._latest, frame)
        self.ended = True
        return None

    def _time_of(self, frame: av.VideoFrame) -> tuple[int, float]:
        """Microseconds and seconds from the first frame; by the usual rate where the frame has no time."""
        if self._number == 0:
            self._first = frame.pts or 0
        if frame.pts is None or not self._base:
            return round(self._number * 1e6 / self._rate), self._number / self._rate
        return ticks_us(frame.pts - self._first, self._base), float((frame.pts - self._first) * self._base)
