"""Server-Sent Events: each open page hears at once of every change, whoever made it.

The format is https://html.spec.whatwg.org/multipage/server-sent-events.html. A page that does not read is cut off
and asks for the whole state when it is back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

MAX_WAITING = 256  # events of a page that does not read
MAX_PAGES_OF_A_BROWSER = 3  # a browser has six connections to a host; streams must leave some for videos and saves
KEEP_ALIVE_S = 15.0
RETRY_MS = 2000


@dataclass(eq=False)
class _Page:
    browser: str
    queue: asyncio.Queue[bytes | None] = field(default_factory=lambda: asyncio.Queue(MAX_WAITING))

    def end(self) -> None:
        """Let the stream end, whatever still waits in it."""
        while not self.queue.empty():
            self.queue.get_nowait()
        self.queue.put_nowait(None)


class Events:
    """Streams of all open pages. For the event loop's thread, except ``publish_from_thread``."""

    def __init__(self) -> None:
        self._pages: list[_Page] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = False

    def start(self) -> None:
        """Note the running event loop, which threads publish to."""
        self._loop = asyncio.get_running_loop()

    def publish(self, name: str, content: Any) -> None:
        """Send an event to all pages; ``content`` is what msgspec encodes."""
        data = f"event: {name}\ndata: {msgspec.json.encode(content).decode()}\n\n".encode()
        for page in list(self._pages):
            try:
                page.queue.put_nowait(data)
            except asyncio.QueueFull:
                self._pages.remove(page)
                page.end()

    def publish_from_thread(self, name: str, content: Any) -> None:
        """Send an event from another thread than the event loop's; nothing happens after the end."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.publish, name, content)

    def end(self) -> None:
        """End all streams; new ones end at once."""
        self._ended = True
        for page in self._pages:
            page.end()
        self._pages.clear()

    async def stream(self, browser: str) -> AsyncIterator[bytes]:
        """Yield the events for one page, until it goes or ``end``. The oldest page of a browser with many is ended."""
        page = _Page(browser)
        own = [other for other in self._pages if other.browser == browser]
        for other in own[: max(0, len(own) + 1 - MAX_PAGES_OF_A_BROWSER)]:
            self._pages.remove(other)
            other.end()
        if self._ended:
            return
        self._pages.append(page)
        try:
            yield f"retry: {RETRY_MS}\n\n".encode()
            while True:
                try:
                    data = await asyncio.wait_for(page.queue.get(), KEEP_ALIVE_S)
                except TimeoutError:
                    data = b": still here\n\n"
                if data is None:
                    return
                yield data
        finally:
            if page in self._pages:
                self._pages.remove(page)
