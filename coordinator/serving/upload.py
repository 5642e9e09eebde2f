"""Receiving an update: its header is checked first, its payload on the way to a file.

Memory per upload is a few pieces until the payload is checked. Nothing here decides if the update counts: that is
update_handler.py's.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from ...base.errors import DataError
from ...base.files import sha256_bytes
from ...fedproto import calls, messages
from ...fedproto.codecs import CODECS, apply_delta, check_size
from ...fedproto.head import Params, without_defaults
from ...fedproto.tensors import check_shapes, param_views, payload_bytes
from ..rounds import Submission, UpdateSummary
from ..storage.journal import StoredUpdate
from ..storage.spool import Spool
from ..strategies.norm_bound import ArrivingDistance, NormBound
from .active_run import ActiveRun

T = TypeVar("T")

PART_S = 30.0  # an upload that sends nothing for so long is cut
LATER_FIELDS = {"codec": "fp32", "codec_error": 0.0, "shared": False}  # not part of the digest at their default
THREADS = 4  # that write, hash and check payloads


@dataclass(frozen=True)
class AnnouncedUpdate:
    """An update's header, checked."""

    header: messages.UpdateHeader
    submission: Submission
    size: int  # bytes of the header's message
    until: float  # the event loop's time at which the upload is cut

    @property
    def whose(self) -> str:
        """The update's name in messages: ``update from silo 'b'``."""
        return f"update from silo '{self.submission.summary.silo}'"


class UploadReceiver:
    """Receives the uploads of the run that is being served."""

    def __init__(self, active: ActiveRun) -> None:
        self._active = active
        self._run = active.run
        self._expected = payload_bytes(active.run.head)
        self._threads = ThreadPoolExecutor(THREADS, "flamest-payload")

    async def header(self, silo: str, parts: AsyncIterator[bytes], until: float) -> AnnouncedUpdate:
        """Receive and check the first message of an upload.

        Raises DataError for an update that no run of this head could use, TimeoutError.
        """
        raw = await _next_part(parts, min(until, asyncio.get_running_loop().time() + calls.CALL_S))
        header = messages.decode_update_part(raw) if raw is not None else None
        if raw is None or not isinstance(header, messages.UpdateHeader):
            raise DataError("an update begins with its header", code="malformed")
        self._active.check_run(header.settings_sha256)
        whose, most = f"update from silo '{silo}'", self._active.server_policy.checks.max_examples
        if header.examples > most:
            raise DataError(
                f"{whose}: {header.examples} examples, this coordinator accepts at most {most}",
                code="too_many_examples",
            )
        check_shapes(self._run.head, header.shapes, whose=whose)
        if CODECS.index(header.codec) > CODECS.index(self._run.codec):
            raise DataError(
                f"{whose}: coded as {header.codec}, this run allows {self._run.codec} at most", code="codec"
            )
        check_size(header.codec, self._run.head, header.payload_bytes, whose=whose)
        if header.evaluation is not None:
            self._active.check_evaluation(header.evaluation, whose=whose)
        summary = UpdateSummary(silo, header.update_id, header.examples, _digest(header))
        return AnnouncedUpdate(header, Submission(header.round, header.base_sha256, summary), len(raw), until)

    async def payload(
        self, announced: AnnouncedUpdate, parts: AsyncIterator[bytes], base: Params, bound: NormBound
    ) -> tuple[StoredUpdate, Spool]:
        """Receive the other messages: the update's float32 parameters, durable in a spool and checked.

        ``base``: the round's model, which a lossy codec's delta is against; ``bound``: the round's. The caller discards
        the spool. Raises DataError (``malformed``, ``payload_size``, ``payload_digest``, ``not_finite``, ``bad_codes``,
        ``norm``), StorageError, TimeoutError; then no file is left.
        """
        spool = Spool(
            self._active.store.spool_folder, self._expected
        )  # not in a thread: a caller that hangs up would lose it
        header = announced.header
        try:
            receive = self._receive_plain if header.codec == "fp32" else self._receive_coded
            sha256, received, norm = await receive(announced, parts, base, spool)
            bound.check(norm, header.examples, header.codec, whose=announced.whose)
        except BaseException:
            spool.discard()
            raise
        stored = StoredUpdate(
            round=header.round,
            summary=announced.submission.summary,
            payload_sha256=sha256,
            received_bytes=announced.size + received,
            evaluation=header.evaluation,
            norm=norm,
            codec=header.codec,
            codec_error=header.codec_error,
            shared=header.shared,
        )
        return stored, spool

    async def _receive_plain(
        self, announced: AnnouncedUpdate, parts: AsyncIterator[bytes], base: Params, spool: Spool
    ) -> tuple[str, int, float]:
        """Write fp32 piece by piece; return the file's SHA-256, the messages' bytes, and the distance from ``base``."""
        moved = ArrivingDistance(base, whose=announced.whose)

        def feed(data: bytes | memoryview) -> None:
            spool.feed(data)
            moved.feed(data)

        received, announced_sha256 = 0, announced.header.payload_sha256
        async for data, size in _pieces(parts, announced):
            await self._in_thread(functools.partial(feed, data))
            received += size
        sha256 = await self._in_thread(functools.partial(spool.finish, announced_sha256))
        return sha256, received, moved.so_far

    async def _receive_coded(
        self, announced: AnnouncedUpdate, parts: AsyncIterator[bytes], base: Params, spool: Spool
    ) -> tuple[str, int, float]:
        """Hold a delta in memory, since it is small, and write the parameters that it makes of ``base``."""
        header, received, payload = announced.header, 0, bytearray()
        async for data, size in _pieces(parts, announced):
            if len(payload) + len(data) > header.payload_bytes:
                raise DataError(f"payload of more than {header.payload_bytes} bytes", code="payload_size")
            payload += data
            received += size

        def decode() -> tuple[str, int, float]:
            if len(payload) != header.payload_bytes:
                size = f"payload of {len(payload)} bytes, expected {header.payload_bytes}"
                raise DataError(f"{announced.whose}: {size}", code="payload_size")
            if sha256_bytes(payload) != header.payload_sha256:
                raise DataError(f"{announced.whose}: the payload's SHA-256 is not the header's", code="payload_digest")
            head = self._run.head
            params = apply_delta(header.codec, head, memoryview(payload), base, whose=announced.whose)
            moved = ArrivingDistance(base, whose=announced.whose)
            for tensor in param_views(head, params):
                spool.feed(tensor)
                moved.feed(tensor)
            return spool.finish(), received, moved.so_far

        return await self._in_thread(decode)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()


def _digest(header: messages.UpdateHeader) -> str:
    """Return the digest of all that an update contains, its payload through the payload's own digest."""
    fields = without_defaults(msgspec.to_builtins(header), LATER_FIELDS)
    if fields["evaluation"] is not None:
        fields["evaluation"] = without_defaults(fields["evaluation"], {"by_class": []})
    return hashlib.sha256(msgspec.json.encode(fields)).hexdigest()


async def _pieces(
    parts: AsyncIterator[bytes], announced: AnnouncedUpdate
) -> AsyncIterator[tuple[bytes | memoryview, int]]:
    """Yield the pieces of the payload, each with its message's size."""
    while (raw := await _next_part(parts, announced.until)) is not None:
        data = messages.decode_update_part(raw)
        if isinstance(data, messages.UpdateHeader) or not data:
            raise DataError("expected a piece of the update's payload", code="malformed")
        yield data, len(raw)


async def _next_part(parts: AsyncIterator[bytes], until: float) -> bytes | None:
    """Return the next message of an upload; None at its end. Raises TimeoutError.

    The time limit is checked for every message, so that many quick ones cannot outlast it.
    """
    left = until - asyncio.get_running_loop().time()
    if left <= 0:
        raise TimeoutError
    try:
        async with asyncio.timeout(min(PART_S, left)):
            return await anext(parts)
    except StopAsyncIteration:
        return None
