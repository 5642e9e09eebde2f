"""The run that is being served, in memory: its state, its current model, and the event that wakes waiting silos.

run_service.py answers silos from it, update_handler.py adds updates to it, round_end.py ends its rounds. All of them
run in one event loop. The store must not be used by two threads at a time, so disk work goes through ``on_disk``.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from ...base.errors import DataError, IdentityError, InvariantError, StorageError, printable
from ...base.log import LimitedLog, Log
from ...base.token_bucket import TokenBucket
from ...fedproto.records import Evaluation, RunSettings
from ..rounds import Cohort, OpenRound, RoundPolicy, on_leave, resumed
from ..settings import CheckSettings
from ..storage.run_store import RunStore
from ..strategies.claims import learnt_examples
from ..strategies.norm_bound import NormBound, learnt_norm

log = Log("coordinator")
limited_log = LimitedLog("coordinator")

T = TypeVar("T")
REFUSALS_AT_ONCE = 50  # of a silo, each made durable by itself; further ones wait
REFUSAL_S = 10.0  # for so long, and one more may be durable at once
IN_QUARANTINE = "it is in quarantine: nothing from it is accepted until the coordinator's operator releases it"


@dataclass(frozen=True)
class ServerPolicy:
    """Settings of the operator that are not sent to the silos."""

    wanted: int | None  # updates that close a round early
    wanted_share: float | None  # or this share of the silos; without either all of them
    checks: CheckSettings


@dataclass(frozen=True)
class UnwrittenRefusals:
    """Refusals of one silo, round and code that the database does not have yet."""

    message: str  # of the last one
    times: int


class ActiveRun:
    """Loads the run from ``store``. ``enrolled`` returns the silos that may call now."""

    def __init__(
        self, run: RunSettings, store: RunStore, server_policy: ServerPolicy, *, enrolled: Callable[[], frozenset[str]]
    ) -> None:
        self.run, self.store, self.server_policy, self.enrolled = run, store, server_policy, enrolled
        self.write_lock = asyncio.Lock()  # one change of the state and of its files at a time
        self.changed = asyncio.Event()  # set, and replaced, when a round ends or the server stops
        self._round_may_end = asyncio.Event()
        self.closing = False  # the open round is being ended and is not given out any more
        self.stopping = False
        self.storage_problem: StorageError | None = None  # why nothing can be made durable now
        self.clock_moved = 0.0  # seconds that the wall clock jumped while the round was open
        self._disk = ThreadPoolExecutor(1, "flamest-state")
        self._run_sha256 = run.sha256
        self._unwritten: dict[tuple[int, str, str], UnwrittenRefusals] = {}  # by round, silo and code
        self._refusal_buckets: dict[str, TokenBucket] = {}  # by silo
        self._refusals_written = 0.0
        self.quarantined = store.journal.quarantined()
        policy = RoundPolicy(rounds=run.rounds, min_silos=run.min_silos, deadline_s=run.deadline_s)
        state, self.params = store.load(policy, self.cohort())
        self.state = resumed(state, time.monotonic())
        self.server_state = store.server_state(state)
        self.learn()

    @property
    def open_round(self) -> OpenRound:
        """The open round; InvariantError in a finished run."""
        if self.state.open is None:
            raise InvariantError("a round was ended in a run that is finished")
        return self.state.open

    def cohort(self) -> Cohort:
        """Return the cohort of a round that opens now."""
        silos = self.enrolled() - self.quarantined
        return Cohort.call(silos, self.server_policy.wanted, self.server_policy.wanted_share, self.run.min_silos)

    def departed(self) -> frozenset[str]:
        """Return the silos of the open round's cohort that have been revoked or quarantined since it opened."""
        current = self.state.open
        return frozenset() if current is None else current.cohort.silos - (self.enrolled() - self.quarantined)

    def learn(self) -> None:
        """Learn norms and claims from the closed rounds. Uses the store: call it in the store's thread."""
        self.learnt_norm = learnt_norm(self.store.journal.largest_norms())
        self.learnt_examples = learnt_examples(self.store.journal.largest_claims())

    def norm_bound(self) -> NormBound:
        """Return the norm bound of the open round."""
        times = self.server_policy.checks.norm_times
        return NormBound(self.run.head, self.run.train, times, self.open_round.number, self.learnt_norm)

    # --- refusals ---

    def check_run(self, settings_sha256: str) -> None:
        """Refuse a silo that joined another run, or this one with other settings. Raises DataError (``other_run``)."""
        if settings_sha256 != self._run_sha256:
            raise DataError(f"this coordinator serves run '{self.run.run}' with other settings", code="other_run")

    def check_enrolled(self, silo: str) -> None:
        """Refuse a silo that was revoked while its call lasted. Raises IdentityError (``revoked``)."""
        if silo not in self.enrolled():
            raise IdentityError(f"silo '{silo}' was revoked during the call", code="revoked")

    def check_not_quarantined(self, silo: str) -> None:
        """Refuse a silo in quarantine. Raises DataError (``quarantined``)."""
        if silo in self.quarantined:
            raise DataError(f"silo '{silo}': {IN_QUARANTINE}", code="quarantined")

    def check_evaluation(self, evaluation: Evaluation, *, whose: str) -> None:
        """Refuse an evaluation on more clips than a silo may have, or of classes that the run does not have.

        Raises DataError (``evaluation``).
        """
        most, classes = self.server_policy.checks.max_examples, self.run.head.outputs
        if evaluation.count > most:
            problem = f"an evaluation on {evaluation.count} clips, this coordinator accepts at most {most}"
            raise DataError(f"{whose}: {problem}", code="evaluation")
        if any(one.label >= classes for one in evaluation.by_class):
            problem = f"an evaluation of class {evaluation.by_class[-1].label}, the run has {classes}"
            raise DataError(f"{whose}: {problem}", code="evaluation")

    async def record_refusal(self, silo: str, problem: DataError) -> bool:
        """Count a refusal in the history; return whether it puts the silo in quarantine.

        Each is durable at once, but a silo that is refused over and over has its further ones written together, so that
        it does not keep the disk from the others.
        """
        number, code = self.current_number, problem.code
        limited_log.warning(
            "update_refused", who=silo, round=number, silo=silo, code=code, detail=printable(problem.message)
        )
        known = self._unwritten.get((number, silo, code))
        self._unwritten[number, silo, code] = UnwrittenRefusals(problem.message, known.times + 1 if known else 1)
        bucket = self._refusal_buckets.setdefault(silo, TokenBucket(REFUSALS_AT_ONCE, REFUSAL_S))
        if not bucket.take(time.monotonic()):
            return False
        return await self._write_refusals([(number, silo, code)])

    async def write_refusals(self, *, now: bool = False) -> None:
        """Make the refusals durable that are not yet, at most once every ``REFUSAL_S`` unless ``now``."""
        at = time.monotonic()
        if self._unwritten and (now or at - self._refusals_written >= REFUSAL_S):
            self._refusals_written = at
            await self._write_refusals(list(self._unwritten))

    async def _write_refusals(self, keys: list[tuple[int, str, str]]) -> bool:
        allowed, written = self.server_policy.checks.quarantine_after, False
        for number, silo, code in keys:
            refused = self._unwritten.pop((number, silo, code), None)
            if refused is None:
                continue
            refuse = functools.partial(self.store.journal.refuse, number, silo, code, refused.message)
            try:
                quarantined = await self.on_disk(functools.partial(refuse, allowed=allowed, times=refused.times))
            except StorageError:  # a full disk must not hide why the update was refused
                continue
            if quarantined:
                written = True
                log.error("silo_quarantined", silo=silo, code=code, fix=f"flamest-coordinator silo release {silo}")
                self.quarantined |= {silo}
                self.state = on_leave(self.state, self.quarantined)
                self.notify()
        return written

    @property
    def current_number(self) -> int:
        """Number of the open round, of the last one in a finished run."""
        return self.state.open.number if self.state.open else self.state.last_round

    # --- waiting ---

    def wake(self) -> None:
        """Answer every silo that waits."""
        self.changed.set()
        self.changed = asyncio.Event()

    def notify(self) -> None:
        """Report that the open round may be complete."""
        self._round_may_end.set()

    async def round_may_end(self, seconds: float) -> None:
        """Wait until the open round may be complete, at most ``seconds``."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._round_may_end.wait(), seconds)
        self._round_may_end.clear()

    async def on_disk(self, work: Callable[[], T]) -> T:
        """Run ``work`` in the store's thread and return its result."""
        return await asyncio.get_running_loop().run_in_executor(self._disk, work)

    def close(self) -> None:
        """End the store's thread."""
        self._disk.shutdown()
