"""Connections to the page's server, within limits: slow and idle ones, and those of strangers, cannot use it up.

A stranger is a connection that has carried no valid cookie yet: any user of the machine can open those. There may be
``MAX_STRANGERS`` of them; a new one takes the place of the oldest, so that the page's own connections always come in.
"""

from __future__ import annotations

import asyncio
from typing import Any

MAX_STRANGERS = 64
MAX_CONNECTIONS = 256  # with a cookie; more are refused
REQUEST_WITHIN_S = 10.0  # the head of a request must have come by then
MAX_HEAD = 16 << 10  # bytes of a request's line and headers


class Connections:
    """Connections that are open now, by the peer's address."""

    def __init__(self) -> None:
        self._strangers: dict[Any, asyncio.Transport] = {}  # the oldest first
        self._known: dict[Any, asyncio.Transport] = {}

    def opened(self, peer: Any, transport: asyncio.Transport) -> None:
        """Count a new connection; end the oldest stranger where there are too many."""
        if len(self._strangers) >= MAX_STRANGERS:
            oldest = next(iter(self._strangers))
            self._strangers.pop(oldest).abort()
        self._strangers[peer] = transport

    def known(self, peer: Any) -> None:
        """Note that the peer has shown a valid cookie."""
        if transport := self._strangers.pop(peer, None):
            if len(self._known) >= MAX_CONNECTIONS:
                transport.close()
            else:
                self._known[peer] = transport

    def closed(self, peer: Any) -> None:
        """Forget a connection."""
        self._strangers.pop(peer, None)
        self._known.pop(peer, None)


def protocol_class(connections: Connections) -> type[asyncio.Protocol]:
    """Return uvicorn's HTTP protocol with the limits of this module."""
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class LimitedProtocol(H11Protocol):
        """A connection whose requests must arrive in time."""

        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            connections.opened(self.client, transport)
            self._wait_for_request()

        def connection_lost(self, exc: Exception | None) -> None:
            self._end_wait()
            connections.closed(self.client)
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is h11.IDLE:  # a part of a request's head
                self._wait_for_request()
            else:
                self._end_wait()

        def _wait_for_request(self) -> None:
            if self._deadline is None and not self.transport.is_closing():
                self._deadline = self.loop.call_later(REQUEST_WITHIN_S, self.transport.abort)

        def _end_wait(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

    return LimitedProtocol
