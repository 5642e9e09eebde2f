"""An update on its way into the run: receive, check, decide, make durable, count.

header    received and checked                     upload.py, active_run.py
decide    before its payload is read               rounds.py
payload   received, checked on the way to a file   upload.py, strategies/norm_bound.py
decide    again, since the round may have ended    rounds.py
durable   the file gets its name, then the row     storage/run_store.py
count     the run's state has the update           here; only now the silo gets its receipt
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

from ...base.errors import DataError, StorageError
from ...base.log import LimitedLog, Log
from ...fedproto import calls
from ...fedproto.records import Receipt
from ...fedproto.tensors import payload_bytes
from ..rounds import Submission, UpdateSummary, Verdict, explain, on_update
from ..storage.journal import StoredUpdate
from ..storage.spool import Spool
from .active_run import IN_QUARANTINE, ActiveRun
from .limits import TransferLimiter
from .model_broadcast import ModelMessages
from .upload import UploadReceiver

log = Log("coordinator")
limited_log = LimitedLog("coordinator")

CUT_SHORT = ("payload_size", "malformed")  # what a stream that ends in the middle looks like
UPLOADS_PER_SILO = 2  # at one time; further ones of the same silo wait, unread


class UpdateHandler:
    """Adds updates to the run, a few transfers at a time."""

    def __init__(
        self, active: ActiveRun, uploads: UploadReceiver, model: ModelMessages, transfers: TransferLimiter
    ) -> None:
        self._active = active
        self._uploads = uploads
        self._model = model
        self._transfers = transfers
        self._expected = payload_bytes(active.run.head)
        self._slots: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(UPLOADS_PER_SILO))
        self._tasks: set[asyncio.Task[Verdict]] = set()

    async def submit(self, silo: str, parts: AsyncIterator[bytes], gone: Callable[[], Awaitable[bool]]) -> Receipt:
        """Add an update to the open round; return its receipt once it is durable.

        ``gone`` returns whether the caller has hung up: an upload that a lost connection cut looks like one that is too
        short, and must not be a strike against the silo. It raises CancelledError, as for a caller who cancels.
        Raises DataError for an update that does not count.
        """
        active = self._active
        try:
            until = asyncio.get_running_loop().time() + calls.transfer_s(self._expected)
            async with asyncio.timeout_at(until), self._slots[silo]:
                return await self._handle(silo, parts, until)
        except TimeoutError as error:
            problem = DataError("the upload stopped or took too long", code="too_slow")
            await active.record_refusal(silo, problem)
            raise problem from error
        except StorageError as problem:
            active.storage_problem = problem
            active.notify()
            raise
        except DataError as problem:
            if problem.code in CUT_SHORT and await gone():
                limited_log.info("upload_cut", who=silo, silo=silo)
                raise asyncio.CancelledError from problem
            if await active.record_refusal(silo, problem):
                raise DataError(f"{problem.message}; {IN_QUARANTINE}", code=problem.code) from problem
            raise

    async def _handle(self, silo: str, parts: AsyncIterator[bytes], until: float) -> Receipt:
        active = self._active
        active.check_not_quarantined(silo)
        announced = await self._uploads.header(silo, parts, until)
        submission, header = announced.submission, announced.header
        receipt = Receipt(round=header.round, update_id=header.update_id, sha256=header.payload_sha256)
        known = await self._known(submission)
        verdict = on_update(active.state, submission, known, time.monotonic())[1]
        _check(verdict, submission)
        if verdict is Verdict.DUPLICATE:
            return receipt
        base, bound = active.params, active.norm_bound()  # of the round's model, from which the update was trained
        async with self._transfers.place():
            stored, spool = await self._uploads.payload(announced, parts, base, bound)
        stored = replace(stored, sent_bytes=self._model.sent[silo])
        task = asyncio.create_task(self._count(submission, stored, spool))  # completes even if the caller hangs up
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        _check(await asyncio.shield(task), submission)
        return receipt

    async def _known(self, submission: Submission) -> UpdateSummary | None:
        """Return the update of the same silo in the same round that counts already."""
        if submission.round > self._active.current_number:  # and maybe beyond the database's integers
            return None
        store, silo = self._active.store, submission.summary.silo
        return await self._active.on_disk(lambda: store.accepted_update(submission.round, silo))

    async def _count(self, submission: Submission, stored: StoredUpdate, spool: Spool) -> Verdict:
        """Decide for good, and make an accepted update durable before it counts."""
        active, silo = self._active, submission.summary.silo
        try:
            async with active.write_lock:
                active.check_enrolled(silo)  # an upload may last minutes
                active.check_not_quarantined(silo)
                now = time.monotonic()
                known = await self._known(submission)
                verdict = on_update(active.state, submission, known, now)[1]
                if verdict is Verdict.ACCEPTED:
                    await active.on_disk(lambda: active.store.accept(stored, spool))
                    active.state = on_update(active.state, submission, known, now)[0]  # silos may have asked meanwhile
        finally:
            spool.discard()
        if verdict is Verdict.ACCEPTED:
            log.info("update_accepted", round=submission.round, silo=silo, examples=submission.summary.examples)
            active.notify()
        return verdict

    async def finish(self) -> None:
        """Wait until every update that is being made durable has become so."""
        if self._tasks:
            await asyncio.wait(self._tasks)


def _check(verdict: Verdict, submission: Submission) -> None:
    """Raise DataError unless the update counts, or counted already."""
    if verdict not in (Verdict.ACCEPTED, Verdict.DUPLICATE):
        why = explain(verdict, submission)
        raise DataError(f"update from silo '{submission.summary.silo}': {why}", code=verdict.value)
