"""The index of a video: when each packet's frame is shown and which packets decoding can begin at, by demuxing alone.

In the decoder process only. An index is used where it can be right: every packet has a presentation time, no two the
same, in nearly the order of the packets. What it promises is compared with what is decoded (frames_from_key.py).
"""

from __future__ import annotations

from array import array
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...base.errors import DataError
from ..clip_records import FrameTimes, Segment
from .decoder_messages import MOST_FRAMES
from .video_file import USUAL_RATE, demuxed, ticks_us

if TYPE_CHECKING:
    import av.container
    import av.video

Ticks = npt.NDArray[np.int64]  # of the stream's time base
LARGEST_TICK = 1 << 60  # differences of two stay within 64 bits
MOST_REORDERED = 64  # packets between a frame's places in the file and on the screen; H.264 allows 16


class PacketIndex:
    """Packets of a video stream in the order of the file. Raises DataError ``video_too_large`` for too many."""

    def __init__(self, container: av.container.InputContainer, stream: av.video.VideoStream) -> None:
        self.base: Fraction = stream.time_base or Fraction(0)
        self.rate = float(stream.average_rate or USUAL_RATE)
        pts, size, flags = array("q"), array("i"), bytearray()
        unknown = empty = 0
        last, self._last_ticks = -LARGEST_TICK, 0  # the largest time, and how long its frame is shown
        for packet in demuxed(container, stream):
            if len(pts) >= MOST_FRAMES:
                raise _too_many_error()
            time = packet.pts
            if time is None or abs(time) > LARGEST_TICK:
                unknown, time = unknown + 1, 0
            elif time > last:
                last, self._last_ticks = time, packet.duration or 0
            empty += not packet.size
            pts.append(time)
            size.append(packet.size)
            flags.append(packet.is_keyframe + 2 * packet.is_discard)
        self.pts: Ticks = np.frombuffer(pts, np.int64) if pts else np.empty(0, np.int64)
        self.size = np.frombuffer(size, np.int32) if size else np.empty(0, np.int32)
        marks = np.frombuffer(bytes(flags), np.uint8)
        self.is_key, self.is_shown = marks & 1 == 1, marks & 2 == 0
        self._keys = np.flatnonzero(self.is_key)
        self._order = np.argsort(self.pts, kind="stable")
        self._t_us: Ticks | None = None
        self._first = 0  # presentation time of the first frame
        self.usable = not unknown and not empty and self.base > 0 and self._is_regular()

    def __len__(self) -> int:
        return len(self.pts)

    def set_first(self, pts: int | None) -> None:
        """Count times from the frame of this presentation time, the first that could be decoded."""
        largest = LARGEST_TICK if pts is None else max(abs(int(each) - pts) for each in self.pts[self._order[[0, -1]]])
        if pts is None or pts not in self.pts or ticks_us(largest, self.base) * self.base.denominator * 4 >= 1 << 62:
            self.usable = False
            return
        base, self._first = self.base, pts
        twice = (self.pts - pts) * (2_000_000 * base.numerator) + base.denominator
        self._t_us = twice // (2 * base.denominator)  # as ``ticks_us``

    def shown_in(self, segment: Segment) -> Ticks:
        """Presentation times of the frames of a segment, increasing."""
        if self._t_us is None:
            return np.empty(0, np.int64)
        inside = (self._t_us >= segment.start_us) & (self._t_us < segment.end_us) & self.is_shown
        return np.sort(self.pts[inside])

    def shown_at(self, pts: int) -> tuple[int, float]:
        """When a frame is shown: microseconds from the first frame, and the same in seconds, not rounded."""
        return ticks_us(pts - self._first, self.base), float((pts - self._first) * self.base)

    def keys_before(self, wanted: Ticks) -> list[int]:
        """The last two key packets from which these frames can be decoded, the nearest first."""
        first = self._order[np.searchsorted(self.pts, wanted, sorter=self._order)].min()
        keys = self._keys[(self._keys <= first) & (self.pts[self._keys] <= wanted[0])]
        return [int(key) for key in keys[: -3 if len(keys) > 2 else None : -1]]

    def holds(self, number: int, pts: int | None, size: int) -> bool:
        """True where packet ``number`` has this presentation time and size."""
        return number < len(self) and self.pts[number] == pts and self.size[number] == size

    def find(self, pts: int | None, size: int) -> int | None:
        """The packet with this presentation time and size."""
        if pts is None or abs(pts) > LARGEST_TICK:
            return None
        place = int(np.searchsorted(self.pts, pts, sorter=self._order))
        number = int(self._order[min(place, len(self) - 1)])
        return number if self.pts[number] == pts and self.size[number] == size else None

    def frame_times(self) -> FrameTimes:
        """Of all frames. Where the index is not usable, spread evenly."""
        if self._t_us is None or not self.usable:
            t_us = np.arange(max(1, len(self))) * 1e6 // self.rate
            times = np.minimum(t_us, 2.0**62).astype(np.int64)
            return FrameTimes(times, self._keys.astype(np.int64), int(times[-1]) + self._usual_us, exact=False)
        order = self._order[(self.is_shown & (self._t_us >= 0))[self._order]]
        return FrameTimes(self._t_us[order], np.flatnonzero(self.is_key[order]), self.end_us)

    @property
    def end_us(self) -> int:
        """Microseconds from the first frame to the end of the last one."""
        assert self._t_us is not None
        length = ticks_us(self._last_ticks, self.base) if 0 < self._last_ticks < LARGEST_TICK else self._usual_us
        return int(self._t_us[self._order[-1]]) + length

    @property
    def _usual_us(self) -> int:
        return round(1e6 / self.rate)

    def _is_regular(self) -> bool:
        """True where times are distinct and nearly in the order of the packets, and key frames in order."""
        if not len(self) or not len(self._keys):
            return False
        rank = np.empty(len(self), np.int64)
        rank[self._order] = np.arange(len(self))
        return bool(
            (np.diff(self.pts[self._order]) > 0).all()
            and (np.diff(self.pts[self._keys]) > 0).all()
            and np.abs(rank - np.arange(len(self))).max() <= MOST_REORDERED
        )


def _too_many_error() -> DataError:
    return DataError(
        f"holds more than {MOST_FRAMES} frames, too many for segments",
        fix="cut the video into shorter ones",
        code="video_too_large",
    )
