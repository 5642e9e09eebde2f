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

    def __init__(self, live: ActiveRun, intake: Upload, outgoing: Outgoing, transfers: TransferLimiter) -> None:
        self._live = live
        self._intake = intake
        self._outgoing = outgoing
        self._transfers = transfers
        self._expected = payload_bytes(live.run.head)
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
            self._live.trouble = problem
            self._live.notify()
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
        live = self._live
        if silo in live.quarantined:
            raise Refused(f"silo '{silo}': {IN_QUARANTINE}", code="quarantined")
        announced = await self._intake.announced(silo, parts, until)
        header, offer = announced.header, announced.offer
        known = await live.on_disk(lambda: live.store.report(offer.round, silo))
        receipt = Receipt(round=offer.round, update_id=header.update_id, sha256=header.payload_sha256)
        verdict = on_update(live.state, offer, known, time.monotonic())[1]
        _check(verdict, offer)  # before its bytes are read
        if verdict is Verdict.DUPLICATE:
            return receipt
        limits = self._limits()  # the verdict says that the update was trained from the round's model
        async with self._transfers.place():
            taken = await self._intake.payload(announced, parts, limits)
        stored = StoredUpdate(
            round=offer.round,
            report=offer.report,
            payload_sha256=taken.sha256,
            received_bytes=announced.size + taken.received,
            evaluation=header.evaluation,
            norm=taken.norm,
            codec=header.codec,
            codec_error=header.codec_error,
            sent_bytes=self._outgoing.sent[silo],
            shared=header.shared,
        )
        keeping = asyncio.create_task(self._keep(offer, stored, taken.spool))  # goes on if the caller hangs up
        self._tasks.add(keeping)
        keeping.add_done_callback(self._tasks.discard)
        _check(await asyncio.shield(keeping), offer)
        return receipt

    async def _keep(self, offer: Submission, stored: StoredUpdate, spool: Spool) -> Verdict:
        """Decide for good, and make an accepted update durable before it counts."""
        live, silo = self._live, offer.report.silo
        try:
            async with live.turn:
                now = time.monotonic()
                known = await live.on_disk(lambda: live.store.report(offer.round, silo))
                verdict = on_update(live.state, offer, known, now)[1]
                if verdict is Verdict.ACCEPTED:
                    await live.on_disk(lambda: live.store.accept(stored, spool))
                    live.state = on_update(live.state, offer, known, now)[0]  # silos may have asked meanwhile
        finally:
            spool.discard()
        if verdict is Verdict.ACCEPTED:
            log.info("update_accepted", round=offer.round, silo=silo, examples=offer.report.examples)
            live.notify()
        return verdict

    def _limits(self) -> Limits:
        live = self._live
        times = live.terms.checks.norm_times
        bound = NormBound(live.run.head, live.run.train, times, live.open_round.number, live.learnt)
        return Limits(live.params, bound)

    async def note_refusal(self, silo: str, problem: DataError) -> bool:
        """Count it in the history; True when it puts the silo in quarantine."""
        live = self._live
        number = live.state.open.number if live.state.open else live.state.last_round
        log.warning("update_refused", round=number, silo=silo, code=problem.code, detail=problem.message)
        code, allowed = problem.code, live.terms.checks.quarantine_after
        try:
            shut_out = await live.on_disk(
                lambda: live.store.journal.refuse(number, silo, code, problem.message, allowed=allowed)
            )
        except StorageError:  # a full disk must not hide why the update was refused
            return False
        if shut_out:
            log.error("silo_quarantined", silo=silo, code=code, fix=f"flamest-coordinator silo release {silo}")
            live.quarantined |= {silo}
            live.state = on_leave(live.state, live.quarantined)
            live.notify()
        return shut_out


def _check(verdict: Verdict, offer: Submission) -> None:
    """Raise Refused unless the update counts, or counted already."""
    if verdict not in (Verdict.ACCEPTED, Verdict.DUPLICATE):
        said = REFUSALS.get(verdict, f"round {offer.round} is not open")
        raise Refused(f"update from silo '{offer.report.silo}': {said}", code=verdict.value)
