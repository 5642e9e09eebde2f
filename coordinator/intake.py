"""An update on its way in: its header checked, its payload on disk and checked. keeper.py decides if it counts."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from ..base.errors import DataError
from ..fedproto import messages
from ..fedproto.codec import check_shapes, decode_params, payload_bytes
from ..fedproto.records import RunSettings
from .rounds import Offer, Report
from .spool import Spool

T = TypeVar("T")

PART_S = 30.0  # an upload that sends nothing for so long is cut
THREADS = 4  # that write, hash and check payloads


class Refused(DataError):
    """An update or a question that this run has no use for; ``code`` says why."""


@dataclass(frozen=True)
class Announced:
    """An update's header, checked, and what it says as an offer to the run."""

    header: messages.UpdateHeader
    offer: Offer
    size: int  # bytes of the header's message


class Intake:
    """Takes uploads for one run; memory per upload is a few chunks until its payload is checked."""

    def __init__(self, run: RunSettings, spool_folder: Path) -> None:
        self._run = run
        self._run_sha256 = run.sha256
        self._expected = payload_bytes(run.head)
        self._spool_folder = spool_folder
        self._threads = ThreadPoolExecutor(THREADS, "flamest-payload")

    def check_run(self, settings_sha256: str) -> None:
        """Refuse a silo that joined another run, or this one with other settings (``other_run``)."""
        if settings_sha256 != self._run_sha256:
            raise Refused(f"this coordinator serves run '{self._run.run}' with other settings", code="other_run")

    async def announced(self, silo: str, parts: AsyncIterator[bytes]) -> Announced:
        """The first message of an upload. Raises DataError for one that no run of this head could use."""
        raw = await _next_part(parts)
        header = messages.decode_update_part(raw) if raw is not None else None
        if raw is None or not isinstance(header, messages.UpdateHeader):
            raise Refused("an update begins with its header", code="malformed")
        self.check_run(header.settings_sha256)
        whose = f"update from silo '{silo}'"
        check_shapes(self._run.head, header.shapes, whose=whose)
        if header.payload_bytes != self._expected:
            raise Refused(
                f"{whose}: payload of {header.payload_bytes} bytes, expected {self._expected}", code="payload_size"
            )
        # The digest is over everything that the update says, its payload through the payload's own.
        digest = hashlib.sha256(msgspec.json.encode(header)).hexdigest()
        report = Report(silo, header.update_id, header.examples, digest)
        return Announced(header, Offer(header.round, header.base_sha256, report), len(raw))

    async def payload(self, announced: Announced, parts: AsyncIterator[bytes]) -> tuple[Spool, int]:
        """The other messages: the payload, durable in a spool and checked, and the bytes of its messages.

        The caller discards the spool. Raises DataError (``malformed``, ``payload_size``,
        ``payload_digest``, ``not_finite``), StorageError, TimeoutError; then nothing is left.
        """
        spool = Spool(self._spool_folder, self._expected)  # not in a thread: a caller that hangs up would lose it
        try:
            received = 0
            while (raw := await _next_part(parts)) is not None:
                data = messages.decode_update_part(raw)
                if not isinstance(data, bytes) or not data:
                    raise Refused("expected a piece of the update's payload", code="malformed")
                await self._in_thread(functools.partial(spool.feed, data))
                received += len(raw)
            await self._in_thread(functools.partial(self._check, spool, announced))
        except BaseException:
            spool.discard()
            raise
        return spool, received

    def _check(self, spool: Spool, announced: Announced) -> None:
        content = spool.finish(announced.header.payload_sha256)
        decode_params(self._run.head, content, whose=f"update from silo '{announced.offer.report.silo}'")

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        self._threads.shutdown()


async def _next_part(parts: AsyncIterator[bytes]) -> bytes | None:
    """The next message of an upload; None at its end. Raises TimeoutError."""
    try:
        return await asyncio.wait_for(anext(parts), PART_S)
    except StopAsyncIteration:
        return None
