"""Part of a file as an HTTP answer: ``Range`` with one range, as players ask for it (RFC 9110, section 14)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, BinaryIO

from .access import Refused

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

CHUNK = 256 << 10  # bytes read at a time
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return first byte and the one after the last; None for the whole file.

    A header that is not one range of bytes is ignored, as the RFC allows. Raises Refused (416) for a range that begins
    after the end of the file.
    """
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < int(first):
            return None
    if start >= size or start >= end:
        raise Refused(416, f"the file has {size} bytes", fix="ask for a part of it", code="range")
    return start, end


class FilePart:
    """ASGI answer that sends the bytes from ``start`` to before ``end`` of an open file, and closes it.

    It ends when the reader goes: nothing is read that no one takes.
    """

    def __init__(self, file: BinaryIO, part: tuple[int, int] | None, size: int, headers: dict[str, str]) -> None:
        self._file = file
        self._start, self._end = part or (0, size)
        self._status = 206 if part else 200
        self._headers = {
            "accept-ranges": "bytes",
            "content-length": str(self._end - self._start),
            **({"content-range": f"bytes {self._start}-{self._end - 1}/{size}"} if part else {}),
            **headers,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        import anyio

        try:
            async with anyio.create_task_group() as group:
                if scope["method"] == "HEAD":
                    self._end = self._start
                else:
                    group.start_soon(_cancel_when_gone, receive, group.cancel_scope)
                await self._send(send)
                group.cancel_scope.cancel()
        finally:
            self._file.close()

    async def _send(self, send: Send) -> None:
        import anyio.to_thread

        headers = [(name.encode(), value.encode()) for name, value in self._headers.items()]
        await send({"type": "http.response.start", "status": self._status, "headers": headers})
        at = self._start
        self._file.seek(at)
        while at < self._end:
            data = await anyio.to_thread.run_sync(self._file.read, min(CHUNK, self._end - at))
            if not data:  # it was cut off meanwhile: the connection ends before the length that was named
                raise ConnectionError("the file became shorter while it was sent")
            at += len(data)
            await send({"type": "http.response.body", "body": data, "more_body": at < self._end})
        if self._start == self._end:
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _cancel_when_gone(receive: Receive, scope: object) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()  # type: ignore[attr-defined]
