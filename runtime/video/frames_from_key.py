"""Frames of a segment, decoded from the key frame before it. In the decoder process only.

The packet at which decoding begins is found by its number: the container is asked to seek, and what it then gives is
looked up in the index; where it gives a later packet or an unknown one, the packets from the beginning are read and
not decoded. Every frame is compared with the index. A difference is ``NotAsIndexed``: another way has to be taken.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .packet_index import PacketIndex, Ticks
from .video_file import VideoFile, demuxed

if TYPE_CHECKING:
    import av
    import av.video

FAR = 500  # packets that are rather read than sought over
SEEK_MARGINS_S = (0, 2, 15)  # transport streams are searched for a decoding time, and give what follows it
NEVER = -1 << 62  # before any presentation time
NEVER_SOUGHT = "mpeg"  # a program stream: what it gives after a seek has other times
SYNC_PACKETS = 32  # after a seek into a transport stream the first packets may be parts


class NotAsIndexed(Exception):
    """The file gave other packets or frames than its index has."""


class FramesFromKey:
    """A video that is decoded in pieces. It goes on where its decoder stands if that is nearer than a key frame."""

    def __init__(self, file: VideoFile, index: PacketIndex) -> None:
        self._file, self._index = file, index
        self._seeks = True  # the container finds packets by their times
        self.decoded = 0  # frames so far
        self.damaged = 0  # frames and packets of segments so far
        self._latest = NEVER  # presentation time of the frame given last
        self._open()

    def first_pts(self) -> int | None:
        """Presentation time of the first frame that can be decoded; None where there is none, or it has no time."""
        while not self._ready and self._feeds:
            self._feed()
        return self._ready[0].pts if self._ready else None

    def frames(self, key: int, wanted: Ticks) -> Iterator[av.VideoFrame]:
        """The frames with these presentation times (increasing, not empty), decoded from packet ``key`` on.

        Raises NotAsIndexed, at any frame.
        """
        try:
            yield from self._frames(key, wanted)
        except NotAsIndexed:
            self._lost = True
            raise

    @property
    def latest(self) -> int:
        """Presentation time of the frame given last."""
        return self._latest

    def close(self) -> None:
        self._ready.clear()
        self._container.close()

    def _frames(self, key: int, wanted: Ticks) -> Iterator[av.VideoFrame]:
        due = deque(wanted.tolist())
        goes_on = self._feeds and not self._lost and key <= self._at and self._latest < due[0]
        if not goes_on:
            self._begin_at(key)
        awaits_key = not goes_on and bool(self._index.is_shown[key])
        damaged = missing = 0
        while due:
            frame, broken = self._decode_next(wanted)
            damaged += broken
            if frame is None:
                missing += len(due)
                break
            pts = frame.pts
            if pts is None or pts <= self._latest:
                raise NotAsIndexed
            if awaits_key and pts >= self._index.pts[key]:
                if pts > self._index.pts[key] or not _is_whole(frame):
                    raise NotAsIndexed
                awaits_key = False
            while due and due[0] < pts:
                due.popleft()
                missing += 1
            if not due:
                self._ready.appendleft(frame)
                break
            self._latest = pts
            if due[0] == pts:
                due.popleft()
                damaged += frame.is_corrupt
                yield frame
            elif pts > wanted[0]:
                raise NotAsIndexed
        self.damaged += damaged + (missing if damaged else 0)
        if awaits_key or (missing and not damaged):
            raise NotAsIndexed

    def _decode_next(self, wanted: Ticks) -> tuple[av.VideoFrame | None, int]:
        """The next frame, None after the last, and how many packets of the wanted frames were damaged."""
        broken = 0
        while not self._ready and self._feeds:
            whole = self._feed()
            broken += not whole and bool(wanted[0] <= self._index.pts[self._at - 1] <= wanted[-1])
        return (self._ready.popleft() if self._ready else None), broken

    def _feed(self) -> bool:
        """Decode the next packet, after the last one what the decoder still holds. False where it is damaged."""
        import av.error

        packet = self._next()
        self._feeds = packet is not None
        try:
            frames = packet.decode() if packet is not None else self._stream.decode(None)
        except av.error.MemoryError:
            raise
        except av.error.FFmpegError:
            return False
        self.decoded += len(frames)
        self._ready.extend(frames)
        return True

    def _next(self) -> av.Packet[av.video.VideoStream] | None:
        """The next packet; None after the last. Raises NotAsIndexed for another one than the index has there."""
        packet, number = next(self._packets, None), self._at
        if packet is None and number == len(self._index):
            return None
        if packet is None or not self._index.holds(number, packet.pts, packet.size):
            raise NotAsIndexed
        self._at += 1
        return packet

    def _open(self) -> None:
        self._container, self._stream = self._file.open()
        self._packets, self._at = demuxed(self._container, self._stream), 0
        self._seeks &= self._container.format.name != NEVER_SOUGHT
        self._clear()

    def _clear(self) -> None:
        self._lost = False  # where the container stands is not known
        self._feeds = True  # the decoder takes the packet ``_at``, as the one that follows
        self._latest = NEVER
        self._ready: deque[av.VideoFrame] = deque()  # decoded, and not given yet

    def _begin_at(self, key: int) -> None:
        behind = self._lost or self._at > key
        if self._seeks and (behind or key - self._at > FAR):
            self._seeks = self._seek(key) and self._skip_to(key)
            behind = not self._seeks
        if behind:
            self._container.close()
            self._open()
        if not self._skip_to(key):
            raise NotAsIndexed
        self._stream.codec_context.flush_buffers()
        self._clear()

    def _skip_to(self, key: int) -> bool:
        """Read packets without decoding them; False where one is another than the index has there."""
        try:
            while self._at < key:
                self._next()
        except NotAsIndexed:
            return False
        return True

    def _seek(self, key: int) -> bool:
        """Go to a packet at or before ``key``, as near as the container finds; False where it finds none."""
        import av.error

        for margin_s in SEEK_MARGINS_S:
            try:
                target = self._index.pts[key] - round(margin_s / self._index.base)
                self._container.seek(int(target), stream=self._stream)
            except av.error.MemoryError:
                raise
            except av.error.FFmpegError:
                return False
            packets = demuxed(self._container, self._stream)
            for packet in itertools.islice(packets, SYNC_PACKETS):
                found = self._index.find(packet.pts, packet.size)
                if found is not None and found <= key:
                    self._packets, self._at = itertools.chain([packet], packets), found
                    return True
        return False


def _is_whole(frame: av.VideoFrame) -> bool:
    """True for a key frame that refers to no other: H.264 marks those too at which a gradual refresh begins."""
    import av.video.frame

    return frame.key_frame and not frame.is_corrupt and frame.pict_type == av.video.frame.PictureType.I
