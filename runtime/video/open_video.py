"""The video whose segments are asked for: its index, and the ways to a segment's frames. In the decoder process only.

What defines a segment is the whole file decoded from its beginning (frames_in_order.py). Decoding from a key frame
(frames_from_key.py) is used where it shows that it gives the same.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from functools import partial
from typing import TypeVar

from ...base.errors import DataError
from ..clip_records import FrameTimes, Segment
from .frames_from_key import FramesFromKey, NotAsIndexed
from .frames_in_order import FramesInOrder, Picture, Way
from .overlap_frames import OverlapFrames, no_frames
from .packet_index import PacketIndex, Ticks
from .video_file import VideoFile

MOST_FAILURES = 4  # of decoding from a key frame, in one file; after that it is decoded from its beginning
CORRECT_THE_ROW = "correct start_s and end_s of this row in labels.csv"

T = TypeVar("T")


class OpenVideo:
    """A video in an open file descriptor. Raises DataError with a code of decoder.py.

    ``again_s``: processor seconds that may be spent, in all, on going back: a video with few key frames, or without a
    usable index, is decoded again up to each segment that does not begin after the one before.
    """

    def __init__(self, fd: int, largest_frame: int, *, again_s: float = math.inf) -> None:
        self._again_s, self._spent_again_s = again_s, 0.0
        self._file = VideoFile(fd, largest_frame)
        container, stream = self._file.open()
        with container:
            self._index = PacketIndex(container, stream)
        self._failures = 0
        self._in_order: FramesInOrder | None = None
        self._from_key: FramesFromKey | None = None
        self._closed = (0, 0)  # frames decoded, and damaged, by decoders that are closed
        self._counted = 0
        self._shared: OverlapFrames | None = None
        if self._index.usable:
            self._from_key = FramesFromKey(self._file, self._index)
            self._set_first(self._from_key)

    def newly_decoded(self) -> int:
        """Frames that were decoded since the last call; the first counts those that opening took."""
        decoded = self._closed[0] + sum(each.decoded for each in self._decoders)
        new, self._counted = decoded - self._counted, decoded
        return new

    @property
    def rate(self) -> float:
        """Frames per second, as the container states them."""
        return self._index.rate

    @property
    def damaged(self) -> int:
        """Frames and packets that could not be decoded, or not in full, so far."""
        return self._closed[1] + sum(each.damaged for each in self._decoders)

    @property
    def end_us(self) -> int | None:
        """Microseconds from the first frame to the end of the last one; None where that is not known yet."""
        if self._index.usable:
            return self._index.end_us
        return self._in_order.end_us if self._in_order is not None and self._in_order.ended else None

    def frame_times(self) -> FrameTimes:
        return self._index.frame_times()

    def expected(self, segment: Segment) -> int:
        """Number of the segment's frames, as far as the index tells."""
        if self._index.usable:
            return len(self._index.shown_in(segment))
        return round(min(segment.end_s - segment.start_s, len(self._index) / self._index.rate) * self._index.rate)

    def share(self, frames: OverlapFrames | None) -> None:
        """Keep these frames for the segment that comes next, instead of those kept before."""
        self._shared = frames

    def ways(self, segment: Segment) -> list[Way]:
        """Ways to the segment's frames, the shortest first. All but the last may raise NotAsIndexed at any frame."""
        shared = self._shared
        if shared is None or (rest := shared.rest_of(segment)) is None:
            return self._all_decoded(segment)
        is_empty = self._index.usable and not len(self._index.shown_in(rest))
        return [shared.before(way, segment) for way in ([no_frames] if is_empty else self._all_decoded(rest))]

    def _all_decoded(self, segment: Segment) -> list[Way]:
        ways: list[Way] = []
        if self._index.usable:
            wanted = self._index.shown_in(segment)
            if not len(wanted):
                raise self.nothing_shown_error(segment)
            if self._from_key is not None and self._failures < MOST_FAILURES:
                keys = self._index.keys_before(wanted)
                ways += [partial(self._decoded_from, self._from_key, key, wanted) for key in keys]
        return [*ways, partial(self._decoded_in_order, segment)]

    def nothing_shown_error(self, segment: Segment) -> DataError:
        """The error for a segment without a frame, once ``ways`` have been tried."""
        if self.end_us is not None and segment.start_us >= self.end_us:
            return DataError(
                f"begins at {segment.start_s:g} s, but the video ends at {self.end_us / 1e6:g} s",
                fix=CORRECT_THE_ROW,
                code="segment_outside",
            )
        return DataError("holds no frame of the video", fix=CORRECT_THE_ROW, code="segment_empty")

    def close(self) -> None:
        for each in self._decoders:
            self._closed = (self._closed[0] + each.decoded, self._closed[1] + each.damaged)
            each.close()
        self._in_order = self._from_key = self._shared = None

    @property
    def _decoders(self) -> list[FramesInOrder | FramesFromKey]:
        return [each for each in (self._in_order, self._from_key) if each is not None]

    def _set_first(self, decoder: FramesFromKey) -> None:
        try:
            self._index.set_first(decoder.first_pts())
        except NotAsIndexed:
            self._index.usable = False

    def _decoded_from(self, decoder: FramesFromKey, key: int, wanted: Ticks) -> Iterator[Picture]:
        frames = decoder.frames(key, wanted)
        try:
            for frame in self._going_back(frames) if decoder.latest >= wanted[0] else frames:
                yield Picture(*self._index.shown_at(frame.pts or 0), frame)
        except NotAsIndexed:
            self._failures += 1
            raise

    def _decoded_in_order(self, segment: Segment) -> Iterator[Picture]:
        frames, begun = self._in_order, self._in_order is not None
        if frames is not None and frames.position_us >= segment.start_us:
            self._closed = (self._closed[0] + frames.decoded, self._closed[1] + frames.damaged)
            frames.close()
            frames = self._in_order = None
        if frames is None:
            frames = self._in_order = FramesInOrder(self._file)
            pictures = frames.pictures(segment)
            yield from self._going_back(pictures) if begun else pictures
        else:
            yield from frames.pictures(segment)

    def _going_back(self, found: Iterator[T]) -> Iterator[T]:
        """Count the time that the first frame takes, of a segment before which the decoder has to go back."""
        if self._spent_again_s > self._again_s:
            raise DataError(
                "begins before the end of a segment that was read before it, and going back in this file took longer "
                "than a file may take",
                fix="convert the video, for example to H.264 in MP4 with a key frame every few seconds",
                code="video_timeout",
            )
        began = time.process_time()
        first = list(itertools.islice(found, 1))
        self._spent_again_s += time.process_time() - began
        yield from itertools.chain(first, found)
