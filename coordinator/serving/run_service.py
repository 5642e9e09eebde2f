"""The service of one run: answers silos that ask for work or a model, and names the parts that do the rest.

    wait ──> limits.py, rounds.py        model_parts ──> model_broadcast.py
    updates ──> update_handler.py        tick ──> round_end.py
    final_evaluation ──> final_evaluation.py   final_calibration ──> final_calibration.py
    all of them use active_run.py

All methods run in one event loop. Disk and hash work is done in threads: the store in one of its own, payloads in a few
others. Work that a caller who hangs up must not interrupt runs as a task of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from ...base.errors import DataError
from ...fedproto import calls, messages
from ...fedproto.records import Phase, RunSettings, TaskStatus
from ..rounds import RoundStatus, RunState, Verdict, on_contact, status_for
from ..storage.run_store import RunStore
from .active_run import ActiveRun, ServerPolicy
from .attendance import Attendance
from .final_calibration import FinalCalibration
from .final_evaluation import FinalEvaluation
from .limits import Leases, TransferLimiter
from .model_broadcast import ModelMessages
from .round_end import RoundCloser
from .update_handler import UpdateHandler
from .upload import UploadReceiver

ASK_AGAIN_S = {
    Phase.OPEN: 0.0,
    Phase.WAIT: 0.2,
    Phase.FINISHED: 15.0,
    Phase.EVALUATE: 15.0,
    Phase.CALIBRATE: 5.0,
}  # each varied by a fifth
STOPPING_AGAIN_S = 1.0
ONCE_GRACE_S = 15.0  # with --once: time for silos to learn that the run has finished
TRANSFERS = 8  # models and updates under way at one time, all silos together
TRANSFER_HOLD_S = 0.5  # a slower one gives up its place and continues


class RunService:
    """Serves one run. ``enrolled`` returns the silos that may call now."""

    def __init__(
        self, run: RunSettings, store: RunStore, server_policy: ServerPolicy, *, enrolled: Callable[[], frozenset[str]]
    ) -> None:
        self.run = run
        self._notified: set[str] = set()
        self._seen_silos: set[str] = set()  # silos that asked for work since the server started
        self._declined: dict[str, int] = {}  # by silo: the last round that it declined since then
        self._leases = Leases()
        self._active = ActiveRun(run, store, server_policy, enrolled=enrolled)
        self._model = ModelMessages(run, self._active.params)
        self._uploads = UploadReceiver(self._active)
        self.transfers = TransferLimiter(TRANSFERS, TRANSFER_HOLD_S)
        self.updates = UpdateHandler(self._active, self._uploads, self._model, self.transfers)
        self.final_evaluation = FinalEvaluation(self._active)
        self.final_calibration = FinalCalibration(self._active, self._model)
        self._closer = RoundCloser(self._active, self._model, self._begin_end)

    @property
    def state(self) -> RunState:
        """The run's state now."""
        return self._active.state

    @property
    def serving(self) -> bool:
        """True while silos are given work."""
        return not self._active.stopping

    @property
    def grace_s(self) -> float:
        """Seconds for silos to learn that the run has finished, and to calibrate and evaluate it if they are asked."""
        deadlines = (self.run.final_evaluation != "none") + 2 * self.run.calibrate
        return max(ONCE_GRACE_S, deadlines * self.run.deadline_s)

    @property
    def all_notified(self) -> bool:
        """True when every silo that took part since the start knows that the run has finished."""
        return bool(self._seen_silos) and self._seen_silos <= self._notified

    @property
    def attendance(self) -> Attendance:
        """The silos that have asked for work, and those that declined a round."""
        return Attendance(self.run.run, tuple(sorted(self._seen_silos)), dict(self._declined))

    # --- questions of silos ---

    async def wait(self, silo: str, request: messages.WaitRequest) -> TaskStatus:
        """Answer as soon as there is work for the silo, or after ``max_wait_s``."""
        active = self._active
        active.check_run(request.settings_sha256)
        await self._take_lease(silo, request)
        # What it answered before this server started may be of rounds that a restored backup has not seen.
        answered_round = request.answered_round if silo in self._seen_silos else 0
        self._seen_silos.add(silo)
        until = time.monotonic() + min(request.max_wait_s, calls.MAX_WAIT_S)
        while True:
            active.check_enrolled(silo)
            changed, now = active.changed, time.monotonic()
            status = self._status_for(silo, answered_round, now)
            if status.phase is not Phase.WAIT or active.stopping or now >= until:
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), until - now)
        if status.phase is Phase.FINISHED:
            self._notified.add(silo)
        if status.phase is Phase.OPEN:  # at work, it need not ask again before the deadline
            self._leases.take(silo, request.instance, time.monotonic(), status.deadline_s)
        return self._task_status(silo, status)

    def _task_status(self, silo: str, status: RoundStatus) -> TaskStatus:
        pause = STOPPING_AGAIN_S if self._active.stopping else ASK_AGAIN_S[status.phase]
        # Only silos that carry a correction or a residual from round to round need it.
        carries = self.run.strategy.name == "feddyn" or self.run.codec != "fp32"
        return TaskStatus(
            status.phase,
            status.round,
            self._active.state.model_sha256,
            status.deadline_s,
            poll_after_s=pause * random.uniform(0.8, 1.2),
            counted_round=status.counted if carries else 0,
            subjects=self.final_evaluation.subjects(silo) if status.phase is Phase.EVALUATE else 0,
            temperature=self.final_calibration.temperature if status.phase is Phase.CALIBRATE else 0.0,
        )

    async def _take_lease(self, silo: str, request: messages.WaitRequest) -> None:
        """Raise DataError (``duplicate_identity``) while another agent holds this silo's identity."""
        seconds = min(request.max_wait_s, calls.MAX_WAIT_S)
        if not self._leases.take(silo, request.instance, time.monotonic(), seconds):
            problem = DataError(
                f"another agent speaks for silo '{silo}': an identity is one agent's on one machine",
                code="duplicate_identity",
            )
            await self._active.record_refusal(silo, problem)
            raise problem

    def _status_for(self, silo: str, answered_round: int, now: float) -> RoundStatus:
        active = self._active
        if active.closing or active.stopping:  # nothing is given out any more
            status = status_for(active.state, silo, answered_round, now)
            after = self.final_calibration.pending or self.final_evaluation.asks(silo)
            work = status.phase is Phase.OPEN or (status.phase is Phase.FINISHED and after)
            return RoundStatus(Phase.WAIT, active.state.last_round, 0.0) if work else status
        before = active.state
        if silo in active.quarantined and before.open is not None:
            answered_round = before.open.number  # it is given no work
        active.state = on_contact(before, silo, answered_round, now)
        if active.state.open is not None and silo in active.state.open.declined and silo not in active.quarantined:
            self._declined[silo] = active.state.open.number
        if active.state != before:
            active.notify()  # it may have declined, and be the last that the round waited for
        status = status_for(active.state, silo, answered_round, now)
        return replace(status, phase=self._phase_after(silo)) if status.phase is Phase.FINISHED else status

    def _phase_after(self, silo: str) -> Phase:
        """Return the phase of a run that has finished: the model is calibrated before it is evaluated or adopted."""
        if self.final_calibration.asks(silo):
            self.final_calibration.note_asked()
            return Phase.CALIBRATE
        if self.final_calibration.pending and silo not in self._active.quarantined:
            return Phase.WAIT
        return Phase.EVALUATE if self.final_evaluation.asks(silo) else Phase.FINISHED

    async def model_parts(self, silo: str, request: messages.FetchRequest) -> AsyncIterator[bytes]:
        """Yield the messages that carry the open round's model, a finished run's final one, or one to evaluate.

        Raises DataError (``other_run``, ``stale_round``, also when the round closes meanwhile, ``not_shared``).
        """
        self._active.check_run(request.settings_sha256)
        state = self._active.state
        current = state.open.number if state.open else state.last_round
        if request.round != current:
            raise DataError(f"round {request.round} is not open, {current} is", code=Verdict.STALE_ROUND.value)
        if request.subject:
            async for part in self.final_evaluation.subject_messages(silo, request.subject):
                yield part
            return
        for part in self._model.messages(current, state.model_sha256, request.held_sha256):
            yield part

    def count_sent(self, silo: str, size: int) -> None:
        """Add to the bytes of models sent in this round."""
        self._model.sent[silo] += size

    # --- the server's loop ---

    async def tick(self) -> None:
        """End the open round if it is time. Raises StorageError when that cannot be made durable: try again."""
        await self._active.write_refusals()
        await self._closer.tick()
        await self.final_calibration.tick()

    def _begin_end(self, state: RunState) -> None:
        """Begin what follows the last round. In the store's thread."""
        self.final_evaluation.begin(state.last_round)
        self.final_calibration.begin(state.model_sha256)

    def note_clock_jump(self, seconds: float) -> None:
        """Record that the wall clock jumped: the history marks the open round's times."""
        self._active.clock_moved += seconds

    async def round_may_end(self, seconds: float) -> None:
        """Wait until the open round may be complete, at most ``seconds``."""
        await self._active.round_may_end(seconds)

    async def stop(self) -> None:
        """Answer every silo that waits, and wait for updates that are being made durable."""
        self._active.stopping = True
        self._active.wake()
        await self.updates.finish()
        await self._active.write_refusals(now=True)

    def close(self) -> None:
        """End the threads; nothing may be called any more."""
        self._uploads.close()
        self._active.close()
