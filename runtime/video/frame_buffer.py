"""Decoded frames that are kept in memory. Runs in the decoder process only."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import av


class FrameBuffer:
    """Decoded frames, kept until ``free_bytes`` are used, then only those of ``likely``.

    ``likely`` are the candidates if the expected number of frames is right. Missing frames are decoded a second time,
    so a long clip takes more time and not more memory.
    """

    def __init__(self, free_bytes: int, *, likely: set[int]) -> None:
        self.frames: dict[int, av.VideoFrame] = {}
        self._free_bytes = free_bytes
        self._likely = likely
        self._full = False

    def offer(self, index: int, frame: av.VideoFrame) -> None:
        size = frame_bytes(frame)
        if not self._full and size > self._free_bytes:
            self._full = True
            for index_to_drop in self.frames.keys() - self._likely:
                self._free_bytes += frame_bytes(self.frames.pop(index_to_drop))
        if size <= self._free_bytes and (not self._full or index in self._likely):
            self.frames[index] = frame
            self._free_bytes -= size


def frame_bytes(frame: av.VideoFrame) -> int:
    """Return the memory that a frame takes."""
    return sum(plane.buffer_size for plane in frame.planes)
