"""All frames of a video from its beginning, with the times that define its segments. In the decoder process only."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ...base.errors import DataError
from .video_file import USUAL_RATE, VideoFile, decoded_frames

if TYPE_CHECKING:
    import av


class Picture(NamedTuple):
    """A decoded frame, and when it is shown."""

    t_us: int  # microseconds from the video's first frame
    t_s: float  # the same in seconds, not rounded
    frame: av.VideoFrame


class FramesInOrder:
    """Decodes a video from its beginning, frame by frame; goes on where the last segment ended."""

    def __init__(self, file: VideoFile) -> None:
        self._file = file
        self._container, self._stream = file.open()
        self._frames = decoded_frames(self._container, self._stream)
        self._rate = float(self._stream.average_rate or USUAL_RATE)
        self._given_back: Picture | None = None
        self._first: float | None = None
        self._latest = (0, 0.0)
        self._number = 0
        self.position_us = -1  # time of the last frame that was taken
        self.decoded = 0
        self.damaged = 0

    @property
    def end_us(self) -> int:
        """Where the last frame so far ends."""
        return self._latest[0] + round(1e6 / self._rate)

    def next(self) -> Picture | None:
        """The next frame; None after the last."""
        picture, self._given_back = self._given_back or self._decode(), None
        if picture is not None:
            self.position_us = picture.t_us
        return picture

    def give_back(self, picture: Picture) -> None:
        """Let ``next`` return this frame once more."""
        self._given_back = picture
        self.position_us = picture.t_us - 1

    def close(self) -> None:
        self._container.close()

    def nothing_decoded_error(self) -> DataError:
        return self._file.nothing_decoded_error(self._stream)

    def _decode(self) -> Picture | None:
        for frame in self._frames:
            if frame is None:
                self.damaged += 1
                continue
            self.decoded += 1
            self.damaged += bool(frame.is_corrupt)
            if self._first is None:
                self._first = frame.time or 0.0
            seconds = self._number / self._rate if frame.time is None else frame.time - self._first
            self._number += 1
            self._latest = max(self._latest, (round(seconds * 1e6), seconds))
            return Picture(*self._latest, frame)
        return None
