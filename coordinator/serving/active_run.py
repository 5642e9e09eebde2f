"""The served run in memory: where it stands, its model, and who is to be woken; its store in a thread of its own.

run_service.py answers questions from it, update_handler.py takes updates into it, round_end.py ends its rounds.
All of them run in one event loop; the store must not be used by two at a time, so disk work goes through ``on_disk``.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from ...base.errors import InvariantError, StorageError
from ...fedproto.records import RunSettings
from ..rounds import Cohort, OpenRound, RoundPolicy, resumed
from ..settings import CheckSettings
from ..storage.run_store import RunStore
from ..strategies.norm_bound import learnt_norm

T = TypeVar("T")


@dataclass(frozen=True)
class ServerPolicy:
    """What the operator decides, beside the run's settings that the silos are told."""

    wanted: int | None  # reports that close a round early
    wanted_share: float | None  # or this share of the silos; without either all of them
    checks: CheckSettings


class ActiveRun:
    """Loads the run; ``enrolled`` tells which silos may call now."""

    def __init__(
        self, run: RunSettings, store: RunStore, server_policy: ServerPolicy, *, enrolled: Callable[[], frozenset[str]]
    ) -> None:
        self.run, self.store, self.server_policy, self.enrolled = run, store, server_policy, enrolled
        self.turn = asyncio.Lock()  # one change of what is on disk at a time
        self.changed = asyncio.Event()  # set, and replaced, when a round ends or the server stops
        self._round_may_end = asyncio.Event()  # set when the round may be complete
        self.ending = False  # the open round is being closed and is not given out any more
        self.stopping = False
        self.storage_problem: StorageError | None = None  # why nothing can be made durable now
        self.clock_moved = 0.0  # seconds that the wall clock jumped while the round was open
        self._disk = ThreadPoolExecutor(1, "flamest-state")
        self.quarantined = store.journal.quarantined()
        policy = RoundPolicy(rounds=run.rounds, min_silos=run.min_silos, deadline_s=run.deadline_s)
        state, self.params = store.load(policy, self.cohort())
        self.state = resumed(state, time.monotonic())
        self.server_state = store.server_state(state)
        self.learnt = learnt_norm(store.journal.farthest())

    @property
    def open_round(self) -> OpenRound:
        """The open round; InvariantError in a finished run."""
        if self.state.open is None:
            raise InvariantError("a round was ended in a run that is finished")
        return self.state.open

    def cohort(self) -> Cohort:
        """Whom a round that opens now is for."""
        silos = self.enrolled() - self.quarantined
        return Cohort.call(silos, self.server_policy.wanted, self.server_policy.wanted_share, self.run.min_silos)

    def left(self) -> frozenset[str]:
        """Silos that the open round was for and that are revoked or in quarantine now."""
        current = self.state.open
        return frozenset() if current is None else current.cohort.silos - (self.enrolled() - self.quarantined)

    def wake(self) -> None:
        """Answer everyone who waits."""
        self.changed.set()
        self.changed = asyncio.Event()

    def notify(self) -> None:
        """The open round may be complete: have it looked at."""
        self._round_may_end.set()

    async def round_may_end(self, seconds: float) -> None:
        """Until a round may be complete, at most ``seconds``."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._round_may_end.wait(), seconds)
        self._round_may_end.clear()

    async def on_disk(self, work: Callable[[], T]) -> T:
        """``work`` in the store's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._disk, work)

    def close(self) -> None:
        """End the store's thread."""
        self._disk.shutdown()
