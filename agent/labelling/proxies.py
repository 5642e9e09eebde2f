"""Pieces of videos that browsers do not play, as small WebM, made by decoder processes and kept for a while.

At most ``MAX_CHILDREN`` are made at a time; one that the page no longer waits for is given up, with its process.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from ...base.files import Stopped
from ...runtime.video.decoder import DecodeLimits, VideoDecoder
from .access import page_gone
from .book import LabelBook
from .folder_videos import FolderVideo

MAX_CHILDREN = 2
MAX_KEPT = 64 << 20  # bytes of pieces
MADE_WITHIN_S = 60.0
ASK_EVERY_S = 0.25  # whether the page still waits

Key = tuple[str, int, int, float, float]


@dataclass
class _Slot:
    """A decoder process, which keeps the video that it read last open."""

    limits: DecodeLimits
    decoder: VideoDecoder | None = None
    video: str = ""  # identifier
    busy: bool = False

    def piece(self, path: Path, start_s: float, seconds: float) -> bytes:
        """Return a piece. In a thread. Raises DataError, and Stopped after ``end``."""
        if (decoder := self.decoder) is None:
            decoder = self.decoder = VideoDecoder(None, self.limits)
        return decoder.proxy(path, start_s=start_s, seconds=seconds)

    def end(self) -> None:
        """End the process, in the middle of a piece too."""
        if (decoder := self.decoder) is not None:
            self.decoder = None
            decoder.interrupt()
            if not self.busy:  # otherwise the thread that reads it does
                decoder.close()


class Proxies:
    """Makes and keeps pieces. For the event loop's thread, except ``close``."""

    def __init__(self, book: LabelBook) -> None:
        self._root = book.videos_of.root
        limits = DecodeLimits(timeout_s=MADE_WITHIN_S, inside=self._root)
        self._slots = [_Slot(limits) for _ in range(MAX_CHILDREN)]
        self._free = asyncio.Semaphore(MAX_CHILDREN)
        self._kept: OrderedDict[Key, bytes] = OrderedDict()
        self._making: dict[Key, asyncio.Task[bytes]] = {}
        self._waiting: dict[Key, int] = {}

    async def piece(
        self, video: FolderVideo, start_s: float, seconds: float, gone: Callable[[], Awaitable[bool]]
    ) -> bytes:
        """Return a piece as WebM. ``gone`` tells that no one waits for it any more.

        Raises DataError for a video that cannot be decoded, Refused when the page has gone.
        """
        key = video.id, video.size, video.modified_ns, start_s, seconds
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        if key not in self._making:
            self._making[key] = asyncio.create_task(self._make(key, video))
        task = self._making[key]
        self._waiting[key] = self._waiting.get(key, 0) + 1
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=ASK_EVERY_S)
                if not task.done() and await gone():
                    raise page_gone()
            return await task
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]
                del self._making[key]
                task.cancel()

    def close(self) -> None:
        """End the decoder processes."""
        for slot in self._slots:
            slot.end()

    async def _make(self, key: Key, video: FolderVideo) -> bytes:
        async with self._free:
            free = [slot for slot in self._slots if not slot.busy]
            slot = next((slot for slot in free if slot.video == video.id), free[0])
            slot.busy, slot.video = True, video.id
            try:
                data = await _in_thread(slot, self._root / video.path, key)
            finally:
                slot.busy = False
        self._kept[key] = data
        while sum(map(len, self._kept.values())) > MAX_KEPT:
            self._kept.popitem(last=False)
        return data


async def _in_thread(slot: _Slot, path: Path, key: Key) -> bytes:
    """Return a piece; when this is cancelled the slot's process is ended, and its thread awaited."""
    reading = asyncio.create_task(asyncio.to_thread(slot.piece, path, key[3], key[4]))
    try:
        return await asyncio.shield(reading)
    except Stopped as error:
        raise page_gone() from error
    except asyncio.CancelledError:
        slot.end()
        await asyncio.wait({reading})
        reading.exception()  # Stopped, usually
        raise
