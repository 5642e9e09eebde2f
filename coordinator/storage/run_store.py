"""What a run must not lose, on disk: rounds, acknowledged updates, models.

    STATE/lock  coordinator.sqlite  address  health
    STATE/quarantine/                                   models that were found damaged
    STATE/runs/NAME/models/round-000012.safetensors     the model after round 12; 0: before round 1 (models.py)
    STATE/runs/NAME/memory/round-000012.arrays          what the strategy carries on, if anything (strategy_state.py)
    STATE/runs/NAME/updates/000013/SILO.f32             payloads of the open round (payloads.py)
    STATE/runs/NAME/spool/                              uploads that are not complete (spool.py)

A file is whole and durable before the row that names it is committed (journal.py), and rows are committed
(fsync) before anyone is told: this module keeps that order. What a crash leaves besides is removed at the next start.
One process at a time: the lock. Not for more than one thread at a time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from ...base.errors import DataError, LockedError, SettingsError, StorageError
from ...base.files import FileLock, fsync_directory, sha256_bytes, storage_code
from ...base.log import Log
from ...fedproto.head import Params, initial_params, params_sha256
from ...fedproto.records import Evaluation, RunSettings
from ...fedproto.tensors import payload_bytes
from ..rounds import Cohort, Report, RoundPolicy, RunState, start_run
from ..strategies.algorithm import ServerState
from .database import FILE
from .journal import Journal, RoundEnd, StoredUpdate
from .models import ModelStore, models_folder
from .payloads import Contributions, Payloads
from .recovery import ClosedRound, last_intact, move_to_quarantine
from .spool import Spool, remove_spares
from .strategy_state import StrategyState

log = Log("coordinator")

LOCK_TRIES = 5  # `status` holds the lock for an instant
LOCK_PAUSE_S = 0.1


class RunStore:
    """One run's durable state; opened by the one coordinator that serves it."""

    def __init__(self, folder: Path, run: RunSettings, keep_models: int, lock: FileLock) -> None:
        self._state = folder
        self._folder = folder / "runs" / run.run
        self._run = run
        self._models = ModelStore(models_folder(folder, run.run), run, keep_models)
        self._memory = StrategyState(self._folder / "memory", run)
        self._payloads = Payloads(self._folder / "updates", run.head)
        self._tidy: RunState | None = None  # the last round's end, until ``tidy``
        self._lock = lock
        self.journal = Journal(folder / FILE, run)

    @classmethod
    def open(cls, folder: Path, run: RunSettings, *, keep_models: int = 0) -> RunStore:
        """Take the state folder (made when absent).

        Raises LockedError when another coordinator has it, DataError or SettingsError when what is in
        it cannot be used, StorageError.
        """
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = _take_lock(folder)
        except OSError as error:
            raise StorageError(
                f"cannot use the state folder {folder}: {error.strerror}", code=storage_code(error)
            ) from error
        try:
            return cls(folder, run, keep_models, lock)
        except BaseException:
            lock.release()
            raise

    def close(self) -> None:
        self.journal.close()
        self._lock.release()

    def __enter__(self) -> RunStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def spool_folder(self) -> Path:
        return self._folder / "spool"

    # --- start ---

    def load(self, policy: RoundPolicy, cohort: Cohort) -> tuple[RunState, Params]:
        """Where the run stands, and its current model; a new run is begun.

        When the last model is damaged, the run goes on from the last one that is not; the rounds after it are lost,
        say so in the log and in the history, and their files are kept in ``STATE/quarantine``. Raises SettingsError
        (``other_settings``) when the run was begun with other settings, DataError (``lost_run``; ``corrupt_model``,
        ``corrupt_memory`` when no model is sound) when the folder does not hold what it should.
        """
        for part in ("models", "updates", "spool"):
            (self._folder / part).mkdir(mode=0o700, parents=True, exist_ok=True)
        known = self.journal.begun()
        if known is None:
            state = self._begin(policy, cohort)
            params = self._models.read(0, state.model_sha256)
        else:
            self._check_settings(known[0])
            rounds = self.journal.closed_rounds(known[1])
            sound = last_intact(self._models, self._memory, rounds)
            if lost := rounds[sound.closed + 1 :]:
                self._fall_back(lost, sound.at, cohort)
            state, params = self._resume(policy, cohort, known[1]), sound.params
        self._remove_leftovers(state)
        return state, params

    def server_state(self, state: RunState) -> ServerState:
        """What the strategy carries on from the last closed round; DataError (``corrupt_memory``)."""
        return self._memory.read(state.closed, self.journal.closed_rounds()[-1].number, state.model_sha256)

    def _fall_back(self, lost: Sequence[ClosedRound], sound: ClosedRound, cohort: Cohort) -> None:
        """Give up what was made after ``sound``, in one transaction, once the damaged files are out of the way."""
        aside = self._state / "quarantine"
        for at in lost:
            for path in (self._models.path(at.number), self._memory.path(at.number)):
                move_to_quarantine(path, aside / f"{self._run.run}-{path.name}")
        self.journal.give_up_after(sound, cohort)
        log.error(
            "models_damaged",
            lost=",".join(str(at.number) for at in lost),
            goes_on_from=sound.number,
            kept_in=aside.name,
            fix="look for what damages files on this disk; flamest-coordinator history shows the lost rounds",
        )

    def _begin(self, policy: RoundPolicy, cohort: Cohort) -> RunState:
        if self._models.has_more_than_the_start():
            raise DataError(
                f"{self._folder} holds models, but {self.journal.path} knows nothing of the run",
                fix=f"restore {self._state} from a backup, or move {self._folder} away to begin anew",
                code="lost_run",
            )
        params = initial_params(self._run.head, self._run.seed)
        state = start_run(policy, params_sha256(params), cohort)
        self._models.write(0, params)
        for folder in (self._folder, self._folder.parent, self._state):
            fsync_directory(folder)
        self.journal.begin(state)
        return state

    def _check_settings(self, settings: bytes) -> None:
        if settings != self._run.encode():
            changed = _differences(settings, self._run.encode())
            raise SettingsError(
                f"run '{self._run.run}' was begun with other settings ({', '.join(changed)} differ)",
                fix="give the new settings another [run] name, or change them back",
                code="other_settings",
            )

    def _resume(self, policy: RoundPolicy, cohort: Cohort, initial_sha256: str) -> RunState:
        closed = self.journal.closed_rounds(initial_sha256)
        return RunState(
            policy=policy,
            closed=len(closed) - 1,
            model_sha256=closed[-1].model_sha256,
            last_round=self.journal.last_ended(),
            open=self.journal.open_round(cohort),
            counted=self.journal.counted(),
        )

    def _remove_leftovers(self, state: RunState) -> None:
        """What a crash left: incomplete uploads, payloads without a row, folders of rounds that ended."""
        for path in self.spool_folder.iterdir():
            path.unlink()
        self._remove_old_models()
        self._remove_old_memory()
        self._remove_old_payloads(state)

    # --- during a round ---

    def report(self, round_number: int, silo: str) -> Report | None:
        """What counts of this silo in this round, whether the round is open or not."""
        return self.journal.report(round_number, silo)

    def accept(self, update: StoredUpdate, spool: Spool) -> None:
        """Make an update whose payload is durable in ``spool`` count. When this returns, it is durable."""
        self._payloads.keep(update.round, update.report.silo, spool)
        self.journal.accept(update)

    def contributions(self, round_number: int) -> Contributions:
        """The round's updates in ascending order of silo name, to be run through as often as one likes."""
        return self._payloads.contributions(round_number, self.journal.updates(round_number))

    def probe(self) -> None:
        """Write as much as an update is, durably, and remove it: whether there is space again. Raises StorageError."""
        spool = Spool(self.spool_folder, payload_bytes(self._run.head))
        try:
            payload = bytes(payload_bytes(self._run.head))
            spool.feed(payload)
            spool.finish(sha256_bytes(payload))
        finally:
            spool.discard()

    # --- the end of a round ---

    def close_round(
        self, after: RunState, params: Params, end: RoundEnd, server_state: ServerState | None = None
    ) -> None:
        """Keep the model that round ``after.last_round`` made, and open the next round, in one transaction.

        ``carried``: what the strategy needs in the next round; durable with the model.
        """
        number = after.last_round
        self._models.write(number, params)
        if server_state is not None:
            self._memory.write(number, after.model_sha256, server_state)
        self._end_round(after, end, after.model_sha256)

    def abandon_round(self, after: RunState, end: RoundEnd) -> None:
        """Note that round ``after.last_round`` came to nothing, and open the next round."""
        self._end_round(after, end, None)

    def quarantine_updates(self, round_number: int) -> Path:
        """Move a round's updates, one of which is damaged, to ``STATE/quarantine``; where they are then."""
        target = self._state / "quarantine" / f"{self._run.run}-updates-{round_number:06d}"
        self._payloads.quarantine_round(round_number, target)
        return target

    def _end_round(self, after: RunState, end: RoundEnd, model_sha256: str | None) -> None:
        self.journal.end_round(after, end, model_sha256)
        self._payloads.round_ended()
        self._tidy = after

    def tidy(self) -> None:
        """Remove what the last round's end has made needless; apart from it, because silos wait for that."""
        if self._tidy is not None:
            self._remove_old_models()
            self._remove_old_memory()
            if self._tidy.open is None:
                self._remove_old_payloads(self._tidy)
                remove_spares(self.spool_folder)
            else:  # the open round may have updates by now: leave it alone
                self._payloads.give_up(self._tidy.last_round, self.spool_folder)
            self._tidy = None

    # --- after the last round ---

    def shared_params(self, round_number: int, silo: str, sha256: str) -> Params:
        """What a silo that agreed to be measured sent in the last round."""
        return self._payloads.one(round_number, silo, sha256)

    def report_final(self, silo: str, results: Mapping[str, Evaluation], state: RunState) -> None:
        """A silo's report at the end of the run, by subject; payloads go when every silo of the round has reported."""
        self.journal.report_final(silo, results)
        self._remove_old_payloads(state)

    def _remove_old_payloads(self, state: RunState) -> None:
        """All but those of the open round; in a finished run, those that silos may still have to measure."""
        current = state.open
        if current is not None:
            self._payloads.remove_all_but(current.number, current.reports)
            return
        shared = [silo for silo, *_ in self.journal.shared(state.last_round)]
        waiting = self._run.final_evaluation == "sites" and not set(shared) <= self.journal.reported().keys()
        self._payloads.remove_all_but(state.last_round if waiting else None, shared)

    def _remove_old_models(self) -> None:
        """All but the last ones that are kept, and the best one."""
        self._models.remove_old(self.journal.best_round() if self._models.keep else None)

    def _remove_old_memory(self) -> None:
        self._memory.remove_old(*(at.number for at in self.journal.closed_rounds()[-2:]))


def _take_lock(folder: Path) -> FileLock:
    for _ in range(LOCK_TRIES):
        try:
            return FileLock.take(folder / "lock", owner="flamest-coordinator")
        except LockedError:
            time.sleep(LOCK_PAUSE_S)
    return FileLock.take(folder / "lock", owner="flamest-coordinator")


def _differences(old: bytes, new: bytes) -> list[str]:
    before, after = msgspec.json.decode(old), msgspec.json.decode(new)
    return [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
