"""The run that the server serves: decides with rounds.py, keeps with state.py, wakes whoever waits.

All methods run in one event loop. Disk and hash work is done in threads: the store in one of its own
(it must not be used by two at a time), payloads in a few others. What must not be torn by a caller
that hangs up runs as a task of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from ..base.errors import DataError, InvariantError, StorageError
from ..base.log import Log
from ..fedproto import channel as wire
from ..fedproto import messages
from ..fedproto.codec import chunks, encode_params, payload_bytes
from ..fedproto.codecs import Codec
from ..fedproto.head import params_sha256
from ..fedproto.records import Phase, Receipt, RunSettings, Standing
from .aggregate import aggregate
from .bounds import NormBound, learnt_norm
from .broadcast import Broadcast, broadcast
from .intake import Intake, Limits, Refused
from .rounds import (
    Decision,
    Offer,
    OpenRound,
    Plan,
    Roll,
    RunState,
    Stand,
    Verdict,
    after_abandon,
    after_close,
    on_contact,
    on_leave,
    on_tick,
    on_update,
    resumed,
    stand_for,
)
from .settings import CheckSettings
from .spool import Spool
from .state import RoundEnd, RunStore, StoredUpdate
from .turnstile import Turnstile

T = TypeVar("T")
log = Log("coordinator")

ASK_AGAIN_S = {Phase.OPEN: 0.0, Phase.WAIT: 0.2, Phase.FINISHED: 15.0}  # each varied by a fifth
STOPPING_AGAIN_S = 1.0
TRANSFERS = 8  # models and updates on their way at one time, all silos together
TRANSFER_HOLD_S = 0.5  # a slower one goes on beside the others
UPLOADS_PER_SILO = 2  # at one time; further ones of the same silo wait their turn, unread
IN_QUARANTINE = "it is in quarantine: nothing of it is taken until the coordinator's operator releases it"
REFUSALS = {
    Verdict.REUSED_ID: "this update id was used for another update, which counts",
    Verdict.ALREADY_ANSWERED: "another update of this silo counts in this round",
    Verdict.STALE_BASE: "the update was trained from another model than this round's",
    Verdict.LATE: "the round's deadline has passed",
}


@dataclass(frozen=True)
class Terms:
    """What the operator decides, beside the run's settings that the silos are told."""

    wanted: int | None  # reports that close a round early
    wanted_share: float | None  # or this share of the silos; without either all of them
    checks: CheckSettings


class RunKeeper:
    """Serves one run. ``enrolled`` tells which silos may call now."""

    def __init__(
        self, run: RunSettings, store: RunStore, terms: Terms, *, enrolled: Callable[[], frozenset[str]]
    ) -> None:
        self.run = run
        self._told_finished: set[str] = set()
        self._met: set[str] = set()  # silos that asked for work since the server started
        self._store = store
        self._terms = terms
        self._enrolled = enrolled
        self._expected = payload_bytes(run.head)
        self._disk = ThreadPoolExecutor(1, "flamest-state")
        self._intake = Intake(run, store.spool_folder, terms.checks.max_examples)
        self.transfers = Turnstile(TRANSFERS, TRANSFER_HOLD_S)
        self._slots: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(UPLOADS_PER_SILO))
        self._turn = asyncio.Lock()  # one change of what is on disk at a time
        self._changed = asyncio.Event()  # set, and replaced, when a round ends or the server stops
        self._nudge = asyncio.Event()  # set when the round may be complete
        self._tasks: set[asyncio.Task[Verdict]] = set()
        self._ending = False  # the open round is being closed and is not given out any more
        self._stopping = False
        self._trouble: StorageError | None = None
        self._sent_bytes = 0  # of the open round's model
        plan = Plan(rounds=run.rounds, min_silos=run.min_silos, deadline_s=run.deadline_s)
        self._quarantined = store.quarantined()
        state, params = store.load(plan, self._roll())
        self._state = resumed(state, time.monotonic())
        self._params, self._carried = params, store.server_state(state)
        self._data_parts = _data_parts(encode_params(run.head, params))
        self._delta: _Delta | None = None  # from the model before, with a lossy codec; not kept over a restart
        self._learnt = learnt_norm(store.farthest())

    @property
    def state(self) -> RunState:
        return self._state

    @property
    def serving(self) -> bool:
        """Whether silos are given work."""
        return not self._stopping

    @property
    def trouble(self) -> StorageError | None:
        """Why nothing can be made durable now; None when it can."""
        return self._trouble

    @property
    def all_told(self) -> bool:
        """Whether every silo that took part since the start knows that the run has finished."""
        return bool(self._met) and self._met <= self._told_finished

    # --- what silos ask ---

    async def wait(self, silo: str, request: messages.WaitRequest) -> Standing:
        """Answered the moment that there is work for the silo, or at the end of its patience."""
        self._intake.check_run(request.settings_sha256)
        self._met.add(silo)
        until = time.monotonic() + min(request.max_wait_s, wire.MAX_WAIT_S)
        while True:
            changed, now = self._changed, time.monotonic()
            stand = self._stand(silo, request.answered_round, now)
            if stand.phase is not Phase.WAIT or self._stopping or now >= until:
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), until - now)
        if stand.phase is Phase.FINISHED:
            self._told_finished.add(silo)
        pause = STOPPING_AGAIN_S if self._stopping else ASK_AGAIN_S[stand.phase]
        again = pause * random.uniform(0.8, 1.2)
        # Only silos that carry something from round to round need to know, and agents from before this field refuse it.
        carries = self.run.strategy.name == "feddyn" or self.run.codec != "fp32"
        counted = stand.counted if carries else 0
        return Standing(stand.phase, stand.round, self._state.model_sha256, stand.deadline_s, again, counted)

    def _stand(self, silo: str, answered_round: int, now: float) -> Stand:
        if self._ending or self._stopping:  # nothing is given out any more
            stand = stand_for(self._state, silo, answered_round, now)
            return stand if stand.phase is not Phase.OPEN else Stand(Phase.WAIT, self._state.last_round, 0.0)
        before = self._state
        if silo in self._quarantined and before.open is not None:
            answered_round = before.open.number  # it is given no work
        self._state = on_contact(before, silo, answered_round, now)
        if self._state != before:
            self._nudge.set()  # it may have declined, and be the last that the round waited for
        return stand_for(self._state, silo, answered_round, now)

    def model_parts(self, request: messages.FetchRequest) -> list[bytes]:
        """The messages that carry the open round's model, or the final one of a finished run."""
        self._intake.check_run(request.settings_sha256)
        state = self._state
        given = state.open.number if state.open else state.last_round
        if request.round != given:
            raise Refused(f"round {request.round} is not open, {given} is", code=Verdict.STALE_ROUND.value)
        size, parts = self._expected, self._data_parts
        codec: Codec = "fp32"
        if request.held_sha256 == state.model_sha256:
            size, parts = 0, []
        elif self._delta is not None and request.held_sha256 == self._delta.base_sha256:
            size, codec, parts = self._delta.size, self.run.codec, self._delta.parts
        return [messages.encode_model_header(messages.ModelHeader(given, state.model_sha256, size, codec)), *parts]

    def count_sent(self, size: int) -> None:
        """Add to the bytes of models sent in this round."""
        self._sent_bytes += size

    async def submit(self, silo: str, parts: AsyncIterator[bytes]) -> Receipt:
        """Take in an update; returns when it is durable. Raises DataError for one that does not count."""
        try:
            until = asyncio.get_running_loop().time() + wire.transfer_s(self._expected)
            async with asyncio.timeout_at(until), self._slots[silo]:
                return await self._take(silo, parts, until)
        except TimeoutError as error:
            problem = Refused("the upload stood still or took too long", code="too_slow")
            await self._note_refusal(silo, problem)
            raise problem from error
        except StorageError as problem:
            self._trouble = problem
            self._nudge.set()
            raise
        except DataError as problem:
            if await self._note_refusal(silo, problem):
                raise Refused(f"{problem.message}; {IN_QUARANTINE}", code=problem.code) from problem
            raise

    # --- an update's way in ---

    async def _take(self, silo: str, parts: AsyncIterator[bytes], until: float) -> Receipt:
        if silo in self._quarantined:
            raise Refused(f"silo '{silo}': {IN_QUARANTINE}", code="quarantined")
        announced = await self._intake.announced(silo, parts, until)
        header, offer = announced.header, announced.offer
        known = await self._on_disk(lambda: self._store.report(offer.round, silo))
        receipt = Receipt(round=offer.round, update_id=header.update_id, sha256=header.payload_sha256)
        verdict = on_update(self._state, offer, known, time.monotonic())[1]
        _check(verdict, offer)  # before its bytes are read
        if verdict is Verdict.DUPLICATE:
            return receipt
        limits = self._limits()  # the verdict says that the update was trained from the round's model
        async with self.transfers.place():
            taken = await self._intake.payload(announced, parts, limits)
        size = announced.size + taken.received
        stored = StoredUpdate(offer.round, offer.report, taken.sha256, size, header.evaluation, taken.norm)
        keeping = asyncio.create_task(self._keep(offer, stored, taken.spool))  # goes on if the caller hangs up
        self._tasks.add(keeping)
        keeping.add_done_callback(self._tasks.discard)
        _check(await asyncio.shield(keeping), offer)
        return receipt

    async def _keep(self, offer: Offer, stored: StoredUpdate, spool: Spool) -> Verdict:
        """Decide for good, and make an accepted update durable before it counts."""
        silo = offer.report.silo
        try:
            async with self._turn:
                now = time.monotonic()
                known = await self._on_disk(lambda: self._store.report(offer.round, silo))
                verdict = on_update(self._state, offer, known, now)[1]
                if verdict is Verdict.ACCEPTED:
                    await self._on_disk(lambda: self._store.accept(stored, spool))
                    self._state = on_update(self._state, offer, known, now)[0]  # silos may have asked meanwhile
        finally:
            spool.discard()
        if verdict is Verdict.ACCEPTED:
            log.info("update_accepted", round=offer.round, silo=silo, examples=offer.report.examples)
            self._nudge.set()
        return verdict

    def _limits(self) -> Limits:
        current = _open_round(self._state)
        times = self._terms.checks.norm_times
        return Limits(self._params, NormBound(self.run.head, self.run.train, times, current.number, self._learnt))

    async def _note_refusal(self, silo: str, problem: DataError) -> bool:
        """True when this refusal puts the silo in quarantine."""
        number = self._state.open.number if self._state.open else self._state.last_round
        log.warning("update_refused", round=number, silo=silo, code=problem.code, detail=problem.message)
        code, allowed = problem.code, self._terms.checks.quarantine_after
        try:
            shut_out = await self._on_disk(
                lambda: self._store.refuse(number, silo, code, problem.message, allowed=allowed)
            )
        except StorageError:  # a full disk must not hide why the update was refused
            return False
        if shut_out:
            log.error("silo_quarantined", silo=silo, code=code, fix=f"flamest-coordinator silo release {silo}")
            self._quarantined |= {silo}
            self._state = on_leave(self._state, self._quarantined)
            self._nudge.set()
        return shut_out

    # --- rounds ---

    async def tick(self) -> None:
        """End the open round if it is time. Raises StorageError when that cannot be made durable: try again."""
        try:
            if self._trouble is not None:
                await self._on_disk(self._store.probe)
            await self._tick()
        except StorageError as problem:
            self._trouble = problem
            raise
        self._trouble = None

    async def _tick(self) -> None:
        if self._quarantined:
            self._quarantined = await self._on_disk(self._store.quarantined)  # the operator may have released one
        async with self._turn:
            self._state = on_leave(self._state, self._left())
            decision = on_tick(self._state, time.monotonic())
            if decision is Decision.COLLECT or self._stopping:
                return
            self._ending = True
            try:
                await (self._close() if decision is Decision.CLOSE else self._abandon())
            finally:
                self._ending = False
        self._sent_bytes = 0
        self._wake()
        await self._on_disk(self._store.tidy)

    async def nudged(self, seconds: float) -> None:
        """Until a round may be complete, at most ``seconds``."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._nudge.wait(), seconds)
        self._nudge.clear()

    async def stop(self) -> None:
        """Answer everyone who waits, and let what is being made durable become so."""
        self._stopping = True
        self._wake()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def close(self) -> None:
        """End the threads; nothing may be called any more."""
        self._intake.close()
        self._disk.shutdown()

    async def _close(self) -> None:
        state, run = self._state, self.run
        current = _open_round(state)
        silos = len(self._enrolled() | current.reports.keys())  # one may have been revoked after it reported

        def combine() -> tuple[Broadcast, str, list[bytes]]:
            parts = self._store.contributions(current.number)
            mean = aggregate(run.strategy, run.head, self._params, parts, self._carried, silos)
            made = broadcast(run, self._params, mean)
            return made, params_sha256(made.params), _data_parts(encode_params(run.head, made.params))

        made, sha256, data_parts = await self._on_disk(combine)
        after, end = after_close(state, sha256, self._roll()), self._round_end(current)
        await self._on_disk(lambda: self._store.close_round(after, made.params, end, made.state))
        self._delta = _Delta.of(state.model_sha256, made.payload) if made.payload else None
        self._learnt = learnt_norm(await self._on_disk(self._store.farthest))
        self._state, self._data_parts = after, data_parts
        self._params, self._carried = made.params, made.state
        log.info(
            "round_closed",
            round=current.number,
            of=self.run.rounds,
            accepted=len(current.reports),
            wanted=current.roll.wanted,
            examples=sum(report.examples for report in current.reports.values()),
            seconds=end.seconds,
            model=sha256[:12],
        )
        if after.open is None:
            log.info("run_finished", run=self.run.run, rounds=after.closed, model=sha256[:12])

    async def _abandon(self) -> None:
        current = _open_round(self._state)
        after, end = after_abandon(self._state, self._roll()), self._round_end(current)
        await self._on_disk(lambda: self._store.abandon_round(after, end))
        self._state = after
        log.warning(
            "round_abandoned", round=current.number, accepted=len(current.reports), min_silos=self.run.min_silos
        )

    def _round_end(self, current: OpenRound) -> RoundEnd:
        started = time.monotonic() if current.deadline is None else current.deadline - self.run.deadline_s
        return RoundEnd(seconds=time.monotonic() - started, sent_bytes=self._sent_bytes)

    def _roll(self) -> Roll:
        silos = self._enrolled() - self._quarantined
        return Roll.call(silos, self._terms.wanted, self._terms.wanted_share, self.run.min_silos)

    def _left(self) -> frozenset[str]:
        """Silos that the open round was for and that are revoked or in quarantine now."""
        current = self._state.open
        return frozenset() if current is None else current.roll.silos - (self._enrolled() - self._quarantined)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # --- threads ---

    async def _on_disk(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, work)


def _check(verdict: Verdict, offer: Offer) -> None:
    """Raise Refused unless the update counts, or counted already."""
    if verdict not in (Verdict.ACCEPTED, Verdict.DUPLICATE):
        said = REFUSALS.get(verdict, f"round {offer.round} is not open")
        raise Refused(f"update from silo '{offer.report.silo}': {said}", code=verdict.value)


@dataclass(frozen=True)
class _Delta:
    """How the current model goes to a silo that has the one before."""

    base_sha256: str
    size: int
    parts: list[bytes]

    @classmethod
    def of(cls, base_sha256: str, payload: bytes) -> _Delta:
        return cls(base_sha256, len(payload), _data_parts(payload))


def _data_parts(payload: bytes) -> list[bytes]:
    """A model's payload as messages: made once, sent to every silo."""
    return [messages.encode_model_data(piece) for piece in chunks(payload)]


def _open_round(state: RunState) -> OpenRound:
    if state.open is None:
        raise InvariantError("a round was ended in a run that is finished")
    return state.open
