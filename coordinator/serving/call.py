"""One call of a silo: its messages in and out, each within a time limit, and its end.

Every call reaches its handler when its stream begins, before any message of it. The caller is identified first
(service.py), so that a caller who is refused costs nothing that lasts; only then its message is waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, NoReturn, Protocol

from ...base.errors import DataError, FlamestError, IdentityError, StorageError
from ...fedproto import calls

if TYPE_CHECKING:
    import grpc.aio

    Context = grpc.aio.ServicerContext[bytes, bytes]

REFUSAL_S = 2.0  # for a refusal to leave this machine; then the caller's connection is cut

STATUS = {
    # code of the refusal -> gRPC status; any other DataError is INVALID_ARGUMENT
    "protocol": "FAILED_PRECONDITION",
    "other_run": "FAILED_PRECONDITION",
    "stale_round": "FAILED_PRECONDITION",
    "stale_base": "FAILED_PRECONDITION",
    "late": "FAILED_PRECONDITION",
    "not_shared": "FAILED_PRECONDITION",
    "duplicate_identity": "ALREADY_EXISTS",
    "too_many_calls": "RESOURCE_EXHAUSTED",
    "quarantined": "FAILED_PRECONDITION",
    "already_answered": "ALREADY_EXISTS",
    "reused_id": "ALREADY_EXISTS",
    "payload_digest": "DATA_LOSS",
    "too_slow": "DEADLINE_EXCEEDED",
    "no_silo_name": "UNAUTHENTICATED",
    "no_certificate": "UNAUTHENTICATED",
    "expired": "UNAUTHENTICATED",
    "unknown_call": "UNIMPLEMENTED",
    "unknown_service": "NOT_FOUND",
}


class Connections(Protocol):
    """The guard of the connections, as calls see it. ``peer`` is gRPC's name for a caller's address."""

    def identified(self, peer: str, silo: str) -> None:
        """Note that a call of ``silo`` came over this connection."""

    def refused(self, peer: str) -> None:
        """Note that a caller without a right to call used this connection; its refusal is about to be sent."""

    def carried(self, peer: str, size: int) -> None:
        """Note a message of ``size`` bytes that a call on this connection has read."""

    def cut(self, peer: str) -> None:
        """End this connection now, whatever is on its way."""


class NoConnections:
    """A guard that does nothing."""

    def identified(self, peer: str, silo: str) -> None: ...

    def refused(self, peer: str) -> None: ...

    def carried(self, peer: str, size: int) -> None: ...

    def cut(self, peer: str) -> None: ...


class Call:
    """One call of ``silo``, identified and counted."""

    def __init__(self, context: Context, silo: str, connections: Connections) -> None:
        self.silo = silo
        self._context = context
        self._connections = connections
        self._sending = False

    async def request(self) -> bytes:
        """Return the call's one message. Raises DataError (``too_slow``, ``malformed``)."""
        try:
            async with asyncio.timeout(calls.CALL_S):
                first = await self._next()
                more = await self._next() if first is not None else None
        except TimeoutError as error:
            raise DataError(f"the call's message did not arrive within {calls.CALL_S:g} s", code="too_slow") from error
        if first is None or more is not None:
            raise DataError("expected exactly one message", code="malformed")
        return first

    async def parts(self) -> AsyncIterator[bytes]:
        """Yield the call's messages. Limits on time are the reader's."""
        while (part := await self._next()) is not None:
            yield part

    async def _next(self) -> bytes | None:
        """Return the next message; None at the end of the stream."""
        part: object = await self._context.read()
        if not isinstance(part, bytes):  # grpc.aio.EOF
            return None
        self._connections.carried(self._context.peer(), len(part))
        return part

    async def send(self, message: bytes) -> None:
        """Send a message; returns when it has left, so that no more than one of a call is ever waiting here."""
        from grpc.aio import BaseError

        self._sending = True
        try:
            await self._context.write(message)
            self._sending = False
        except BaseError as error:  # the caller is gone; gRPC would log it with a traceback
            raise asyncio.CancelledError from error

    async def reply(self, message: bytes) -> None:
        """Send the call's one answer. Raises DataError (``too_slow``)."""
        async with self.time_limit(calls.CALL_S):
            await self.send(message)

    @contextlib.asynccontextmanager
    async def time_limit(self, seconds: float) -> AsyncIterator[None]:
        """End the block after ``seconds``. Raises DataError (``too_slow``).

        A status waits behind what the caller has not read, for ever if need be, and that stays in memory: a caller who
        does not read loses the connection.
        """
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError as error:
            if self._sending:
                self._connections.cut(self._context.peer())
            raise DataError(f"the answer was not taken within {seconds:.0f} s", code="too_slow") from error

    async def gone(self) -> bool:
        """Return whether the caller's connection is lost: gRPC only ends the stream, an attempt to send shows it."""
        from grpc.aio import BaseError

        try:
            async with asyncio.timeout(REFUSAL_S):
                await self._context.send_initial_metadata(())
        except BaseError:
            return True
        except TimeoutError:
            self._connections.cut(self._context.peer())
            return True
        return False


async def refuse(context: Context, error: FlamestError, connections: Connections) -> NoReturn:
    """End the call with the status, the code and the message of ``error``."""
    import grpc
    import grpc.aio

    status = grpc.StatusCode[_status(error)]
    try:
        async with asyncio.timeout(REFUSAL_S):
            await context.abort(status, error.message, ((calls.CODE_KEY, error.code),))
    except grpc.aio.AbortError:
        raise  # this is how it returns
    except TimeoutError:
        connections.cut(context.peer())
        raise asyncio.CancelledError from error
    except grpc.aio.BaseError as gone:
        raise asyncio.CancelledError from gone
    raise AssertionError("abort() does not return")


def _status(error: FlamestError) -> str:
    if isinstance(error, StorageError):
        return "UNAVAILABLE"  # a full disk, for example: the silo tries again
    if isinstance(error, IdentityError):
        return STATUS.get(error.code, "PERMISSION_DENIED")
    if isinstance(error, DataError):
        return STATUS.get(error.code, "INVALID_ARGUMENT")
    return "INTERNAL"
