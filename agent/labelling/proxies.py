"""Pieces of videos that browsers do not play, as small WebM, made by child processes and kept for a while.

At most ``MAX_CHILDREN`` are made at a time; one that the page no longer waits for is given up.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

from ...runtime.video.decoder import DecodeLimits
from .access import page_gone
from .book import LabelBook
from .folder_videos import FolderVideo

MAX_CHILDREN = 2
MAX_KEPT = 64 << 20  # bytes of pieces
MAX_PIECE = 32 << 20  # bytes of one
MADE_WITHIN_S = 60.0
ASK_EVERY_S = 0.25  # whether the page still waits

Key = tuple[str, int, int, float, float]


class Proxies:
    """Makes and keeps pieces. For the event loop's thread."""

    def __init__(self, book: LabelBook) -> None:
        self._book = book
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
                task.cancel()
                if self._making.get(key) is task:
                    del self._making[key]

    def close(self) -> None:
        """Give up the pieces that are being made."""
        for task in self._making.values():
            task.cancel()

    async def _make(self, key: Key, video: FolderVideo) -> bytes:
        async with self._free:
            data = await self._in_child(video, key[3], key[4])
        self._kept[key] = data
        while sum(map(len, self._kept.values())) > MAX_KEPT:
            self._kept.popitem(last=False)
        return data

    async def _in_child(self, video: FolderVideo, start_s: float, seconds: float) -> bytes:
        from ...runtime.video import proxy

        made: Any = proxy
        limits = DecodeLimits(timeout_s=MADE_WITHIN_S, inside=self._book.videos_of.root)
        path = self._book.videos_of.root / video.path

        def make() -> bytes:
            result: Any = made.make_proxy(path, start_s=start_s, seconds=seconds, limits=limits)
            return bytes(result) if isinstance(result, bytes | bytearray) else b"".join(result)

        with contextlib.suppress(asyncio.CancelledError):
            return await asyncio.to_thread(make)
        raise page_gone()
