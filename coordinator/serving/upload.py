"""An update on its way in: its header checked, its payload on disk and checked. run_service.py decides if it counts."""

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

from ...base.errors import DataError
from ...base.files import sha256_bytes
from ...fedproto import messages
from ...fedproto.codecs import CODECS, apply_delta, check_size
from ...fedproto.head import Params, without_defaults
from ...fedproto.records import Evaluation, RunSettings
from ...fedproto.tensors import check_shapes, param_views, payload_bytes
from ..rounds import Report, Submission
from ..storage.spool import Spool
from ..strategies.norm_bound import ArrivingDistance, NormBound

T = TypeVar("T")

PART_S = 30.0  # an upload that sends nothing for so long is cut
LATER_FIELDS = {
    "codec": "fp32",
    "codec_error": 0.0,
    "shared": False,
}  # left out of the digest at their default: it stays what it was
THREADS = 4  # that write, hash and check payloads


class Refused(DataError):
    """An update or a question that this run has no use for; ``code`` says why."""


@dataclass(frozen=True)
class Announced:
    """An update's header, checked, and what it says as an offer to the run."""

    header: messages.UpdateHeader
    submission: Submission
    size: int  # bytes of the header's message
    until: float  # the event loop's time at which the upload is cut

    @property
    def whose(self) -> str:
        return f"update from silo '{self.submission.report.silo}'"


@dataclass(frozen=True)
class Taken:
    """An update's parameters as float32 in a file that is durable, and not yet anything that counts."""

    spool: Spool
    sha256: str  # of the file
    received: int  # bytes of the messages
    norm: float  # distance from the round's model


@dataclass(frozen=True, eq=False)
class Limits:
    """What an update of the open round is measured against."""

    base: Params  # the model that the round started from
    bound: NormBound


class Upload:
    """Takes uploads for one run; memory per upload is a few chunks until its payload is checked."""

    def __init__(self, run: RunSettings, spool_folder: Path, max_examples: int) -> None:
        self._run = run
        self._max_examples = max_examples
        self._run_sha256 = run.sha256
        self._expected = payload_bytes(run.head)
        self._spool_folder = spool_folder
        self._threads = ThreadPoolExecutor(THREADS, "flamest-payload")

    def check_run(self, settings_sha256: str) -> None:
        """Refuse a silo that joined another run, or this one with other settings (``other_run``)."""
        if settings_sha256 != self._run_sha256:
            raise Refused(f"this coordinator serves run '{self._run.run}' with other settings", code="other_run")

    async def announced(self, silo: str, parts: AsyncIterator[bytes], until: float) -> Announced:
        """The first message of an upload. Raises DataError for one that no run of this head could use, TimeoutError."""
        raw = await _next_part(parts, until)
        header = messages.decode_update_part(raw) if raw is not None else None
        if raw is None or not isinstance(header, messages.UpdateHeader):
            raise Refused("an update begins with its header", code="malformed")
        self.check_run(header.settings_sha256)
        whose = f"update from silo '{silo}'"
        if header.examples > self._max_examples:
            raise Refused(
                f"{whose}: {header.examples} examples, this coordinator takes at most {self._max_examples}",
                code="too_many_examples",
            )
        check_shapes(self._run.head, header.shapes, whose=whose)
        if CODECS.index(header.codec) > CODECS.index(self._run.codec):
            raise Refused(f"{whose}: coded as {header.codec}, this run takes {self._run.codec} at most", code="codec")
        check_size(header.codec, self._run.head, header.payload_bytes, whose=whose)
        if header.evaluation is not None:
            self.check_evaluation(header.evaluation, whose=whose)
        report = Report(silo, header.update_id, header.examples, _digest(header))
        return Announced(header, Submission(header.round, header.base_sha256, report), len(raw), until)

    def check_evaluation(self, told: Evaluation, *, whose: str) -> None:
        """Refuse an evaluation on more clips than a silo may have, or by classes that the run does not have."""
        if told.count > self._max_examples:
            raise Refused(
                f"{whose}: an evaluation on {told.count} clips, this coordinator takes at most {self._max_examples}",
                code="evaluation",
            )
        if any(one.label >= self._run.head.outputs for one in told.by_class):
            raise Refused(
                f"{whose}: an evaluation of class {told.by_class[-1].label}, the run has {self._run.head.outputs}",
                code="evaluation",
            )

    async def payload(self, announced: Announced, parts: AsyncIterator[bytes], limits: Limits) -> Taken:
        """The other messages: the update's parameters, durable in a spool and checked.

        ``limits``: of the round, whose model is also what a lossy codec's delta is against. The caller discards the
        spool. Raises DataError (``malformed``, ``payload_size``, ``payload_digest``, ``not_finite``, ``bad_codes``,
        ``norm``), StorageError,
        TimeoutError; then nothing is left.
        """
        spool = Spool(self._spool_folder, self._expected)  # not in a thread: a caller that hangs up would lose it
        try:
            take = self._take_plain if announced.header.codec == "fp32" else self._take_coded
            taken = await take(announced, parts, limits.base, spool)
            header = announced.header
            limits.bound.check(taken.norm, header.examples, header.codec, whose=announced.whose)
        except BaseException:
            spool.discard()
            raise
        return taken

    async def _take_plain(self, announced: Announced, parts: AsyncIterator[bytes], base: Params, spool: Spool) -> Taken:
        """fp32: to the file and through the checks piece by piece."""
        moved = ArrivingDistance(base, whose=announced.whose)

        def feed(data: bytes | memoryview) -> None:
            spool.feed(data)
            moved.feed(data)

        received, announced_sha256 = 0, announced.header.payload_sha256
        async for data, size in _pieces(parts, announced):
            await self._in_thread(functools.partial(feed, data))
            received += size
        sha256 = await self._in_thread(functools.partial(spool.finish, announced_sha256))
        return Taken(spool, sha256, received, moved.so_far)

    async def _take_coded(self, announced: Announced, parts: AsyncIterator[bytes], base: Params, spool: Spool) -> Taken:
        """A delta: whole in memory, since it is small, and kept as the parameters that it means."""
        header, received, payload = announced.header, 0, bytearray()
        async for data, size in _pieces(parts, announced):
            if len(payload) + len(data) > header.payload_bytes:
                raise Refused(f"payload of more than {header.payload_bytes} bytes", code="payload_size")
            payload += data
            received += size

        def decode() -> Taken:
            if len(payload) != header.payload_bytes:
                size = f"payload of {len(payload)} bytes, expected {header.payload_bytes}"
                raise Refused(f"{announced.whose}: {size}", code="payload_size")
            if sha256_bytes(payload) != header.payload_sha256:
                raise Refused(f"{announced.whose}: payload has not its header's digest", code="payload_digest")
            head = self._run.head
            params = apply_delta(header.codec, head, memoryview(payload), base, whose=announced.whose)
            moved = ArrivingDistance(base, whose=announced.whose)
            for tensor in param_views(head, params):
                spool.feed(tensor)
                moved.feed(tensor)
            return Taken(spool, spool.finish(), received, moved.so_far)

        return await self._in_thread(decode)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        self._threads.shutdown()


def _digest(header: messages.UpdateHeader) -> str:
    """Over everything that an update says, its payload through the payload's own digest."""
    told = without_defaults(msgspec.to_builtins(header), LATER_FIELDS)
    if told["evaluation"] is not None:
        told["evaluation"] = without_defaults(told["evaluation"], {"by_class": []})
    return hashlib.sha256(msgspec.json.encode(told)).hexdigest()


async def _pieces(parts: AsyncIterator[bytes], announced: Announced) -> AsyncIterator[tuple[bytes | memoryview, int]]:
    """The pieces of the payload, each with its message's size."""
    while (raw := await _next_part(parts, announced.until)) is not None:
        data = messages.decode_update_part(raw)
        if isinstance(data, messages.UpdateHeader) or not data:
            raise Refused("expected a piece of the update's payload", code="malformed")
        yield data, len(raw)


async def _next_part(parts: AsyncIterator[bytes], until: float) -> bytes | None:
    """The next message of an upload; None at its end. Raises TimeoutError.

    The end is looked at for every message, so that many quick ones cannot outlast it.
    """
    left = until - asyncio.get_running_loop().time()
    if left <= 0:
        raise TimeoutError
    try:
        async with asyncio.timeout(min(PART_S, left)):
            return await anext(parts)
    except StopAsyncIteration:
        return None
