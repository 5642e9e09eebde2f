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
        self, run: RunSettings, store: RunStore, server_policy: ServerPolicy, *, enrolled: Callable[[], frozenset[str]]
    ) -> None:
        self.run = run
        self._know_the_end: set[str] = set()
        self._met: set[str] = set()  # silos that asked for work since the server started
        self._active = ActiveRun(run, store, server_policy, enrolled=enrolled)
        self._intake = Upload(run, store.spool_folder, server_policy.checks.max_examples)
        self.transfers = TransferLimiter(TRANSFERS, TRANSFER_HOLD_S)
        self._outgoing = Outgoing(run, self._active.params)
        self._admission = UpdateHandler(self._active, self._intake, self._outgoing, self.transfers)
        self._finals = Finals(self._active, self._intake)
        self._ending = Ending(self._active, self._outgoing, self._finals)
        self._leases = Leases()

    @property
    def state(self) -> RunState:
        return self._active.state

    @property
    def serving(self) -> bool:
        """Whether silos are given work."""
        return not self._active.stopping

    @property
    def storage_problem(self) -> StorageError | None:
        """Why nothing can be made durable now; None when it can."""
        return self._active.storage_problem

    @property
    def grace_s(self) -> float:
        """How long silos have to learn that the run has finished; and to measure, where they are asked to."""
        return ONCE_GRACE_S if self.run.final_evaluation == "none" else max(ONCE_GRACE_S, self.run.deadline_s)

    @property
    def all_know_the_end(self) -> bool:
        """Whether every silo that took part since the start knows that the run has finished."""
        return bool(self._met) and self._met <= self._know_the_end

    # --- what silos ask ---

    async def wait(self, silo: str, request: messages.WaitRequest) -> TaskStatus:
        """Answered the moment that there is work for the silo, or at the end of its patience."""
        self._intake.check_run(request.settings_sha256)
        await self._take_lease(silo, request)
        active = self._active
        # What it answered before this server started may be of rounds that a restored backup has not seen.
        answered_round = request.answered_round if silo in self._met else 0
        self._met.add(silo)
        until = time.monotonic() + min(request.max_wait_s, wire.MAX_WAIT_S)
        while True:
            changed, now = active.changed, time.monotonic()
            status = self._status_for(silo, answered_round, now)
            if status.phase is not Phase.WAIT or active.stopping or now >= until:
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), until - now)
        if status.phase is Phase.FINISHED:
            self._know_the_end.add(silo)
        pause = STOPPING_AGAIN_S if active.stopping else ASK_AGAIN_S[status.phase]
        again = pause * random.uniform(0.8, 1.2)
        # Only silos that carry something from round to round need to know, and agents from before this field refuse it.
        carries = self.run.strategy.name == "feddyn" or self.run.codec != "fp32"
        counted = status.counted if carries else 0
        subjects = self._finals.subjects(silo) if status.phase is Phase.EVALUATE else 0
        if status.phase is Phase.OPEN:  # at work, it need not ask again before the deadline
            self._leases.take(silo, request.instance, time.monotonic(), status.deadline_s)
        told = (status.phase, status.round, active.state.model_sha256, status.deadline_s, again)
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

    def _status_for(self, silo: str, answered_round: int, now: float) -> RoundStatus:
        active = self._active
        if active.ending or active.stopping:  # nothing is given out any more
            status = status_for(active.state, silo, answered_round, now)
            work = status.phase is Phase.OPEN or (status.phase is Phase.FINISHED and self._finals.asks(silo))
            return RoundStatus(Phase.WAIT, active.state.last_round, 0.0) if work else status
        before = active.state
        if silo in active.quarantined and before.open is not None:
            answered_round = before.open.number  # it is given no work
        active.state = on_contact(before, silo, answered_round, now)
        if active.state != before:
            active.notify()  # it may have declined, and be the last that the round waited for
        status = status_for(active.state, silo, answered_round, now)
        if status.phase is Phase.FINISHED and self._finals.asks(silo):
            return replace(status, phase=Phase.EVALUATE)
        return status

    async def model_parts(self, silo: str, request: messages.FetchRequest) -> list[bytes]:
        """The messages that carry the open round's model, or the final one of a finished run, or one to measure."""
        self._intake.check_run(request.settings_sha256)
        state = self._active.state
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
        self._active.clock_moved += moved

    async def round_may_end(self, seconds: float) -> None:
        """Until a round may be complete, at most ``seconds``."""
        await self._active.round_may_end(seconds)

    async def stop(self) -> None:
        """Answer everyone who waits, and let what is being made durable become so."""
        self._active.stopping = True
        self._active.wake()
        await self._admission.settle()

    def close(self) -> None:
        """End the threads; nothing may be called any more."""
        self._intake.close()
        self._active.close()
