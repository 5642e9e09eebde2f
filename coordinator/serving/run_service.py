"""The run that the server serves: answers the silos' questions, and hands the rest to the parts that do it.

    wait ──> limits.py, rounds.py        model_parts ──> model_broadcast.py
    submit ──> update_handler.py         tick ──> round_end.py
    report_final ──> final_evaluation.py, and all of them look at active_run.py

All methods run in one event loop. Disk and hash work is done in threads: the store in one of its own, payloads in a few
others. What must not be torn by a caller that hangs up runs as a task of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

from ...base.errors import DataError, StorageError
from ...fedproto import channel as wire
from ...fedproto import messages
from ...fedproto.records import Phase, Receipt, RunSettings, TaskStatus
from ..rounds import RoundStatus, RunState, Verdict, on_contact, status_for
from ..storage.run_store import RunStore
from .active_run import ActiveRun, ServerPolicy
from .final_evaluation import Finals
from .limits import Leases, TransferLimiter
from .model_broadcast import Outgoing
from .round_end import Ending
from .update_handler import UpdateHandler
from .upload import Refused, Upload

ASK_AGAIN_S = {Phase.OPEN: 0.0, Phase.WAIT: 0.2, Phase.FINISHED: 15.0, Phase.EVALUATE: 15.0}  # each varied by a fifth
STOPPING_AGAIN_S = 1.0
ONCE_GRACE_S = 15.0  # with --once: how long silos have to learn that the run has finished
TRANSFERS = 8  # models and updates on their way at one time, all silos together
TRANSFER_HOLD_S = 0.5  # a slower one goes on beside the others


class RunService:
    """Serves one run. ``enrolled`` tells which silos may call now."""

    def __init__(
        self, run: RunSettings, store: RunStore, terms: ServerPolicy, *, enrolled: Callable[[], frozenset[str]]
    ) -> None:
        self.run = run
        self._told_finished: set[str] = set()
        self._met: set[str] = set()  # silos that asked for work since the server started
        self._live = ActiveRun(run, store, terms, enrolled=enrolled)
        self._intake = Upload(run, store.spool_folder, terms.checks.max_examples)
        self.transfers = TransferLimiter(TRANSFERS, TRANSFER_HOLD_S)
        self._outgoing = Outgoing(run, self._live.params)
        self._admission = UpdateHandler(self._live, self._intake, self._outgoing, self.transfers)
        self._finals = Finals(self._live, self._intake)
        self._ending = Ending(self._live, self._outgoing, self._finals)
        self._leases = Leases()

    @property
    def state(self) -> RunState:
        return self._live.state

    @property
    def serving(self) -> bool:
        """Whether silos are given work."""
        return not self._live.stopping

    @property
    def trouble(self) -> StorageError | None:
        """Why nothing can be made durable now; None when it can."""
        return self._live.trouble

    @property
    def grace_s(self) -> float:
        """How long silos have to learn that the run has finished; and to measure, where they are asked to."""
        return ONCE_GRACE_S if self.run.final_evaluation == "none" else max(ONCE_GRACE_S, self.run.deadline_s)

    @property
    def all_told(self) -> bool:
        """Whether every silo that took part since the start knows that the run has finished."""
        return bool(self._met) and self._met <= self._told_finished

    # --- what silos ask ---

    async def wait(self, silo: str, request: messages.WaitRequest) -> TaskStatus:
        """Answered the moment that there is work for the silo, or at the end of its patience."""
        self._intake.check_run(request.settings_sha256)
        await self._take_lease(silo, request)
        live = self._live
        # What it answered before this server started may be of rounds that a restored backup has not seen.
        answered_round = request.answered_round if silo in self._met else 0
        self._met.add(silo)
        until = time.monotonic() + min(request.max_wait_s, wire.MAX_WAIT_S)
        while True:
            changed, now = live.changed, time.monotonic()
            stand = self._stand(silo, answered_round, now)
            if stand.phase is not Phase.WAIT or live.stopping or now >= until:
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), until - now)
        if stand.phase is Phase.FINISHED:
            self._told_finished.add(silo)
        pause = STOPPING_AGAIN_S if live.stopping else ASK_AGAIN_S[stand.phase]
        again = pause * random.uniform(0.8, 1.2)
        # Only silos that carry something from round to round need to know, and agents from before this field refuse it.
        carries = self.run.strategy.name == "feddyn" or self.run.codec != "fp32"
        counted = stand.counted if carries else 0
        subjects = self._finals.subjects(silo) if stand.phase is Phase.EVALUATE else 0
        if stand.phase is Phase.OPEN:  # at work, it need not ask again before the deadline
            self._leases.take(silo, request.instance, time.monotonic(), stand.deadline_s)
        told = (stand.phase, stand.round, live.state.model_sha256, stand.deadline_s, again)
        return TaskStatus(*told, counted_round=counted, subjects=subjects)

    async def _take_lease(self, silo: str, request: messages.WaitRequest) -> None:
        """Refused (``duplicate_identity``) while another agent speaks for this silo."""
        seconds = min(request.max_wait_s, wire.MAX_WAIT_S)
        if not self._leases.take(silo, request.instance, time.monotonic(), seconds):
            problem = Refused(
                f"another agent speaks for silo '{silo}': an identity is one agent's on one machine",
                code="duplicate_identity",
            )
            await self._admission.note_refusal(silo, problem)
            raise problem

    def _stand(self, silo: str, answered_round: int, now: float) -> RoundStatus:
        live = self._live
        if live.ending or live.stopping:  # nothing is given out any more
            stand = status_for(live.state, silo, answered_round, now)
            work = stand.phase is Phase.OPEN or (stand.phase is Phase.FINISHED and self._finals.asks(silo))
            return RoundStatus(Phase.WAIT, live.state.last_round, 0.0) if work else stand
        before = live.state
        if silo in live.quarantined and before.open is not None:
            answered_round = before.open.number  # it is given no work
        live.state = on_contact(before, silo, answered_round, now)
        if live.state != before:
            live.notify()  # it may have declined, and be the last that the round waited for
        stand = status_for(live.state, silo, answered_round, now)
        if stand.phase is Phase.FINISHED and self._finals.asks(silo):
            return replace(stand, phase=Phase.EVALUATE)
        return stand

    async def model_parts(self, silo: str, request: messages.FetchRequest) -> list[bytes]:
        """The messages that carry the open round's model, or the final one of a finished run, or one to measure."""
        self._intake.check_run(request.settings_sha256)
        state = self._live.state
        given = state.open.number if state.open else state.last_round
        if request.round != given:
            raise Refused(f"round {request.round} is not open, {given} is", code=Verdict.STALE_ROUND.value)
        if request.subject:
            return await self._finals.subject_messages(silo, request.subject)
        return self._outgoing.messages(given, state.model_sha256, request.held_sha256)

    def count_sent(self, silo: str, size: int) -> None:
        """Add to the bytes of models sent in this round."""
        self._outgoing.sent[silo] += size

    async def report_final(self, silo: str, report: messages.EvaluationReport) -> messages.EvaluationReceipt:
        """Keep what a silo measured at the end of the run; returns when it is durable."""
        try:
            self._intake.check_run(report.settings_sha256)
            return await self._finals.take(silo, report)
        except DataError as problem:
            await self._admission.note_refusal(silo, problem)
            raise

    async def submit(self, silo: str, parts: AsyncIterator[bytes], gone: Callable[[], Awaitable[bool]]) -> Receipt:
        """Take in an update; returns when it is durable. Raises DataError for one that does not count."""
        return await self._admission.submit(silo, parts, gone)

    # --- the server's loop ---

    async def tick(self) -> None:
        """End the open round if it is time. Raises StorageError when that cannot be made durable: try again."""
        await self._ending.tick()

    def note_clock(self, moved: float) -> None:
        """The wall clock jumped by so many seconds: the open round's times are not to be trusted."""
        self._live.clock_moved += moved

    async def nudged(self, seconds: float) -> None:
        """Until a round may be complete, at most ``seconds``."""
        await self._live.nudged(seconds)

    async def stop(self) -> None:
        """Answer everyone who waits, and let what is being made durable become so."""
        self._live.stopping = True
        self._live.wake()
        await self._admission.settle()

    def close(self) -> None:
        """End the threads; nothing may be called any more."""
        self._intake.close()
        self._live.close()
