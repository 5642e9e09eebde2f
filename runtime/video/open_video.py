"""The video whose segments are asked for, with the index of its packets. Runs in the decoder process only."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...base.errors import DataError
from ..clip_records import FrameTimes, Segment
from .frames_in_order import FramesInOrder, Picture
from .video_file import VideoFile


class OpenVideo:
    """A video in an open file descriptor. Raises DataError with a code of decoder.py."""

    def __init__(self, fd: int, largest_frame: int) -> None:
        self._file = VideoFile(fd, largest_frame)
        self._in_order: FramesInOrder | None = None

    def frame_times(self) -> FrameTimes:
        times = []
        frames = FramesInOrder(self._file)
        while (picture := frames.next()) is not None:
            times.append(picture.t_us)
        frames.close()
        if not times:
            raise frames.nothing_decoded_error()
        return FrameTimes(np.array(times, np.int64), np.zeros(1, np.int64), frames.end_us)

    def expected(self, segment: Segment) -> int:
        """Number of frames that the segment holds, as far as the index tells."""
        return 0

    def pictures(self, segment: Segment) -> Iterator[Picture]:
        """The segment's frames in the order in which they are shown."""
        frames = self._in_order
        if frames is None or frames.position_us >= segment.start_us:
            self.close()
            frames = self._in_order = FramesInOrder(self._file)
        while (picture := frames.next()) is not None:
            if picture.t_us >= segment.end_us:
                frames.give_back(picture)
                return
            if picture.t_us >= segment.start_us:
                yield picture

    @property
    def decoded(self) -> int:
        return self._in_order.decoded if self._in_order else 0

    @property
    def end_us(self) -> int:
        return self._in_order.end_us if self._in_order else 0

    def nothing_error(self, segment: Segment) -> DataError:
        if segment.start_us >= self.end_us:
            return DataError(
                f"begins at {segment.start_s:g} s, and the video ends at {self.end_us / 1e6:g} s",
                fix="correct start_s and end_s of this row in labels.csv",
                code="segment_outside",
            )
        return DataError(
            "holds no frame: it lies between two of them",
            fix="correct start_s and end_s of this row in labels.csv",
            code="segment_empty",
        )

    def close(self) -> None:
        if self._in_order is not None:
            self._in_order.close()
            self._in_order = None
