"""The run that the server serves: answers the silos' questions, and hands the rest to the parts that do it.

    wait ──> standing     model_parts ──> outgoing.py     submit ──> admission.py     tick ──> ending.py
                                    all of them look at live.py

All methods run in one event loop. Disk and hash work is done in threads: the store in one of its own, payloads in a few
others. What must not be torn by a caller that hangs up runs as a task of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable

from ..base.errors import StorageError
from ..fedproto import channel as wire
from ..fedproto import messages
from ..fedproto.records import Phase, Receipt, RunSettings, Standing
from .admission import Admission
from .ending import Ending
from .intake import Intake, Refused
from .live import LiveRun, Terms
from .outgoing import Outgoing
from .rounds import RunState, Stand, Verdict, on_contact, stand_for
from .state import RunStore
from .turnstile import Turnstile

ASK_AGAIN_S = {Phase.OPEN: 0.0, Phase.WAIT: 0.2, Phase.FINISHED: 15.0}  # each varied by a fifth
STOPPING_AGAIN_S = 1.0
TRANSFERS = 8  # models and updates on their way at one time, all silos together
TRANSFER_HOLD_S = 0.5  # a slower one goes on beside the others


class RunKeeper:
    """Serves one run. ``enrolled`` tells which silos may call now."""

    def __init__(
        self, run: RunSettings, store: RunStore, terms: Terms, *, enrolled: Callable[[], frozenset[str]]
    ) -> None:
        self.run = run
        self._told_finished: set[str] = set()
        self._met: set[str] = set()  # silos that asked for work since the server started
        self._live = LiveRun(run, store, terms, enrolled=enrolled)
        self._intake = Intake(run, store.spool_folder, terms.checks.max_examples)
        self.transfers = Turnstile(TRANSFERS, TRANSFER_HOLD_S)
        self._outgoing = Outgoing(run, self._live.params)
        self._admission = Admission(self._live, self._intake, self.transfers)
        self._ending = Ending(self._live, self._outgoing)

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
    def all_told(self) -> bool:
        """Whether every silo that took part since the start knows that the run has finished."""
        return bool(self._met) and self._met <= self._told_finished

    # --- what silos ask ---

    async def wait(self, silo: str, request: messages.WaitRequest) -> Standing:
        """Answered the moment that there is work for the silo, or at the end of its patience."""
        self._intake.check_run(request.settings_sha256)
        live = self._live
        self._met.add(silo)
        until = time.monotonic() + min(request.max_wait_s, wire.MAX_WAIT_S)
        while True:
            changed, now = live.changed, time.monotonic()
            stand = self._stand(silo, request.answered_round, now)
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
        return Standing(stand.phase, stand.round, live.state.model_sha256, stand.deadline_s, again, counted)

    def _stand(self, silo: str, answered_round: int, now: float) -> Stand:
        live = self._live
        if live.ending or live.stopping:  # nothing is given out any more
            stand = stand_for(live.state, silo, answered_round, now)
            return stand if stand.phase is not Phase.OPEN else Stand(Phase.WAIT, live.state.last_round, 0.0)
        before = live.state
        if silo in live.quarantined and before.open is not None:
            answered_round = before.open.number  # it is given no work
        live.state = on_contact(before, silo, answered_round, now)
        if live.state != before:
            live.nudge()  # it may have declined, and be the last that the round waited for
        return stand_for(live.state, silo, answered_round, now)

    def model_parts(self, request: messages.FetchRequest) -> list[bytes]:
        """The messages that carry the open round's model, or the final one of a finished run."""
        self._intake.check_run(request.settings_sha256)
        state = self._live.state
        given = state.open.number if state.open else state.last_round
        if request.round != given:
            raise Refused(f"round {request.round} is not open, {given} is", code=Verdict.STALE_ROUND.value)
        return self._outgoing.messages(given, state.model_sha256, request.held_sha256)

    def count_sent(self, size: int) -> None:
        """Add to the bytes of models sent in this round."""
        self._outgoing.sent_bytes += size

    async def submit(self, silo: str, parts: AsyncIterator[bytes]) -> Receipt:
        """Take in an update; returns when it is durable. Raises DataError for one that does not count."""
        return await self._admission.submit(silo, parts)

    # --- the server's loop ---

    async def tick(self) -> None:
        """End the open round if it is time. Raises StorageError when that cannot be made durable: try again."""
        await self._ending.tick()

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
