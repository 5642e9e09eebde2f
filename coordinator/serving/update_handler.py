"""An update's way in: upload.py checks it, the round decides about it, and it is durable before it counts."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable

from ...base.errors import DataError, StorageError
from ...base.log import Log
from ...fedproto import channel as wire
from ...fedproto.records import Receipt
from ...fedproto.tensors import payload_bytes
from ..rounds import Submission, Verdict, on_leave, on_update
from ..storage.journal import StoredUpdate
from ..storage.spool import Spool
from ..strategies.norm_bound import NormBound
from .active_run import ActiveRun
from .limits import TransferLimiter
from .model_broadcast import Outgoing
from .upload import Limits, Refused, Upload

log = Log("coordinator")

CUT_SHORT = ("payload_size", "malformed")  # what the end of a stream in the middle looks like
UPLOADS_PER_SILO = 2  # at one time; further ones of the same silo wait their turn, unread
IN_QUARANTINE = "it is in quarantine: nothing of it is taken until the coordinator's operator releases it"
REFUSALS = {
    Verdict.REUSED_ID: "this update id was used for another update, which counts",
    Verdict.ALREADY_ANSWERED: "another update of this silo counts in this round",
    Verdict.STALE_BASE: "the update was trained from another model than this round's",
    Verdict.LATE: "the round's deadline has passed",
}


class UpdateHandler:
    """Takes updates into the run, a few transfers at a time."""

    def __init__(self, active: ActiveRun, intake: Upload, outgoing: Outgoing, transfers: TransferLimiter) -> None:
        self._active = active
        self._intake = intake
        self._outgoing = outgoing
        self._transfers = transfers
        self._expected = payload_bytes(active.run.head)
        self._slots: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(UPLOADS_PER_SILO))
        self._tasks: set[asyncio.Task[Verdict]] = set()

    async def submit(self, silo: str, parts: AsyncIterator[bytes], gone: Callable[[], Awaitable[bool]]) -> Receipt:
        """Take in an update; returns when it is durable. Raises DataError for one that does not count.

        ``gone`` tells whether the caller has hung up: an upload that its line cut ends like one that is too short, and
        must not be a strike against the silo. It raises CancelledError, as for a caller who cancels.
        """
        try:
            until = asyncio.get_running_loop().time() + wire.transfer_s(self._expected)
            async with asyncio.timeout_at(until), self._slots[silo]:
                return await self._take(silo, parts, until)
        except TimeoutError as error:
            problem = Refused("the upload stood still or took too long", code="too_slow")
            await self.note_refusal(silo, problem)
            raise problem from error
        except StorageError as problem:
            self._active.storage_problem = problem
            self._active.notify()
            raise
        except DataError as problem:
            if problem.code in CUT_SHORT and await gone():
                log.info("upload_cut", silo=silo)
                raise asyncio.CancelledError from problem
            if await self.note_refusal(silo, problem):
                raise Refused(f"{problem.message}; {IN_QUARANTINE}", code=problem.code) from problem
            raise

    async def settle(self) -> None:
        """Let what is being made durable become so."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _take(self, silo: str, parts: AsyncIterator[bytes], until: float) -> Receipt:
        active = self._active
        if silo in active.quarantined:
            raise Refused(f"silo '{silo}': {IN_QUARANTINE}", code="quarantined")
        announced = await self._intake.announced(silo, parts, until)
        header, submission = announced.header, announced.submission
        known = await active.on_disk(lambda: active.store.report(submission.round, silo))
        receipt = Receipt(round=submission.round, update_id=header.update_id, sha256=header.payload_sha256)
        verdict = on_update(active.state, submission, known, time.monotonic())[1]
        _check(verdict, submission)  # before its bytes are read
        if verdict is Verdict.DUPLICATE:
            return receipt
        limits = self._limits()  # the verdict says that the update was trained from the round's model
        async with self._transfers.place():
            taken = await self._intake.payload(announced, parts, limits)
        stored = StoredUpdate(
            round=submission.round,
            report=submission.report,
            payload_sha256=taken.sha256,
            received_bytes=announced.size + taken.received,
            evaluation=header.evaluation,
            norm=taken.norm,
            codec=header.codec,
            codec_error=header.codec_error,
            sent_bytes=self._outgoing.sent[silo],
            shared=header.shared,
        )
        keeping = asyncio.create_task(self._keep(submission, stored, taken.spool))  # goes on if the caller hangs up
        self._tasks.add(keeping)
        keeping.add_done_callback(self._tasks.discard)
        _check(await asyncio.shield(keeping), submission)
        return receipt

    async def _keep(self, submission: Submission, stored: StoredUpdate, spool: Spool) -> Verdict:
        """Decide for good, and make an accepted update durable before it counts."""
        active, silo = self._active, submission.report.silo
        try:
            async with active.turn:
                now = time.monotonic()
                known = await active.on_disk(lambda: active.store.report(submission.round, silo))
                verdict = on_update(active.state, submission, known, now)[1]
                if verdict is Verdict.ACCEPTED:
                    await active.on_disk(lambda: active.store.accept(stored, spool))
                    active.state = on_update(active.state, submission, known, now)[0]  # silos may have asked meanwhile
        finally:
            spool.discard()
        if verdict is Verdict.ACCEPTED:
            log.info("update_accepted", round=submission.round, silo=silo, examples=submission.report.examples)
            active.notify()
        return verdict

    def _limits(self) -> Limits:
        active = self._active
        times = active.server_policy.checks.norm_times
        bound = NormBound(active.run.head, active.run.train, times, active.open_round.number, active.learnt)
        return Limits(active.params, bound)

    async def note_refusal(self, silo: str, problem: DataError) -> bool:
        """Count it in the history; True when it puts the silo in quarantine."""
        active = self._active
        number = active.state.open.number if active.state.open else active.state.last_round
        log.warning("update_refused", round=number, silo=silo, code=problem.code, detail=problem.message)
        code, allowed = problem.code, active.server_policy.checks.quarantine_after
        try:
            shut_out = await active.on_disk(
                lambda: active.store.journal.refuse(number, silo, code, problem.message, allowed=allowed)
            )
        except StorageError:  # a full disk must not hide why the update was refused
            return False
        if shut_out:
            log.error("silo_quarantined", silo=silo, code=code, fix=f"flamest-coordinator silo release {silo}")
            active.quarantined |= {silo}
            active.state = on_leave(active.state, active.quarantined)
            active.notify()
        return shut_out


def _check(verdict: Verdict, submission: Submission) -> None:
    """Raise Refused unless the update counts, or counted already."""
    if verdict not in (Verdict.ACCEPTED, Verdict.DUPLICATE):
        said = REFUSALS.get(verdict, f"round {submission.round} is not open")
        raise Refused(f"update from silo '{submission.report.silo}': {said}", code=verdict.value)
