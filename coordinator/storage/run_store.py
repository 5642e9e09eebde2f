"""The durable state of one run: rounds, acknowledged updates, models.

    STATE/lock  coordinator.sqlite  address  health
    STATE/quarantine/                                   files that were found damaged (damaged_files.py)
    STATE/runs/NAME/models/round-000012.safetensors     the model after round 12; 0: before round 1 (models.py)
    STATE/runs/NAME/memory/round-000012.arrays          strategy state after round 12, if any (strategy_state.py)
    STATE/runs/NAME/updates/000013/SILO.f32             payloads of the open round (payloads.py)
    STATE/runs/NAME/last_round.json                     the last round that ended (last_round.py)
    STATE/runs/NAME/spool/                              uploads that are not complete (spool.py)

A file is whole and durable before the row that names it is committed (journal.py), and rows are committed (fsync)
before a silo gets its receipt: this module keeps that order. The next start removes whatever else a crash leaves.
One process at a time: the lock. Not for more than one thread at a time.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from pathlib import Path

from ...base.errors import LockedError, StorageError
from ...base.files import FileLock, sha256_bytes, storage_code
from ...base.log import Log
from ...fedproto.calibration import Calibration
from ...fedproto.head import Params
from ...fedproto.records import Evaluation, RunSettings
from ...fedproto.tensors import payload_bytes
from ..rounds import Cohort, RoundPolicy, RunState, UpdateSummary
from ..strategies.algorithm import ServerState
from .calibrations import CalibrationRows
from .damaged_files import DAMAGED_FOLDER
from .database import DATABASE_FILE
from .journal import Journal, RoundEnd, StoredUpdate
from .last_round import LAST_ROUND_FILE, record_last_round
from .models import ModelStore, models_folder
from .payloads import Payloads, StoredContribution, StoredContributions
from .recovery import Recovery
from .spool import Spool, remove_any, remove_spares
from .strategy_state import StrategyState

log = Log("coordinator")

LOCK_TRIES = 5  # `status` holds the lock for an instant
LOCK_PAUSE_S = 0.1


class RunStore:
    """Durable state of one run; opened by the one coordinator that serves it."""

    def __init__(self, folder: Path, run: RunSettings, keep_models: int, lock: FileLock) -> None:
        self._state = folder
        self._folder = folder / "runs" / run.run
        self._run = run
        self._models = ModelStore(models_folder(folder, run.run), run, keep_models)
        self._strategy_state = StrategyState(self._folder / "memory", run)
        self._payloads = Payloads(self._folder / "updates", run.head)
        self._ended: RunState | None = None  # the state after the last round's end, until ``tidy``
        self._lock = lock
        self.journal = Journal(folder / DATABASE_FILE, run)

    @classmethod
    def open(cls, folder: Path, run: RunSettings, *, keep_models: int = 0) -> RunStore:
        """Lock the state folder (made when absent) and open its database.

        Raises LockedError when another coordinator uses it, DataError or SettingsError when its content cannot be used,
        StorageError.
        """
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = _take_lock(folder)
        except OSError as error:
            raise StorageError(
                f"cannot use the state folder {folder}: {error.strerror}",
                fix="check free space and permissions of server.state",
                code=storage_code(error),
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
        """Return the run's state and its current model. Raises as ``Recovery.start_or_resume``."""
        try:
            for part in ("models", "updates", "spool"):
                (self._folder / part).mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"cannot use {self._folder}: {error.strerror}",
                fix="check free space and permissions of server.state",
                code=storage_code(error),
            ) from error
        recovery = Recovery(self._state, self._run, self.journal, self._models, self._strategy_state)
        state, params = recovery.start_or_resume(policy, cohort)
        record_last_round(self._state, self._run.run, self.journal.db)
        self._remove_leftovers(state)
        return state, params

    def server_state(self, state: RunState) -> ServerState:
        """Return the strategy's state after the last closed round. Raises DataError (``corrupt_memory``)."""
        last = self.journal.closed_rounds()[-1]
        return self._strategy_state.read(state.closed, last.number, state.model_sha256)

    def _remove_leftovers(self, state: RunState) -> None:
        """Remove what a crash left: incomplete uploads, payloads without a row, folders of rounds that ended."""
        for path in (*self.spool_folder.iterdir(), *self._folder.glob(f".{LAST_ROUND_FILE}.*.tmp")):
            remove_any(path)
        self._remove_old_models()
        self._remove_old_strategy_state()
        self._remove_old_payloads(state)

    # --- during a round ---

    def accepted_update(self, round_number: int, silo: str) -> UpdateSummary | None:
        """Return the silo's accepted update in a round, open or not; None when there is none."""
        return self.journal.accepted_update(round_number, silo)

    def accept(self, update: StoredUpdate, spool: Spool) -> None:
        """Accept an update whose payload is durable in ``spool``. It is durable when this returns."""
        self._payloads.keep(update.round, update.summary.silo, spool)
        self.journal.accept(update)

    def contributions(self, round_number: int) -> StoredContributions:
        """Return the round's updates in ascending order of silo name; they can be iterated more than once."""
        return self._payloads.contributions(round_number, self.journal.updates(round_number))

    def probe(self) -> None:
        """Write and remove as many bytes as an update has. Raises StorageError while there is no space for them."""
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
        """Close round ``after.last_round`` with its model, and open the next round, in one transaction.

        ``server_state``: the strategy's state for the next round; durable with the model.
        """
        number = after.last_round
        self._models.write(number, params)
        if server_state is not None:
            self._strategy_state.write(number, after.model_sha256, server_state)
        self._end_round(after, end, after.model_sha256)

    def abandon_round(self, after: RunState, end: RoundEnd) -> None:
        """Abandon round ``after.last_round``, and open the next round."""
        self._end_round(after, end, None)

    def keep_damaged_updates(self, round_number: int) -> Path:
        """Move a round's updates, one of which is damaged, to ``STATE/quarantine``; return their new folder."""
        target = self._state / DAMAGED_FOLDER / f"{self._run.run}-updates-{round_number:06d}"
        self._payloads.keep_damaged(round_number, target)
        return target

    def _end_round(self, after: RunState, end: RoundEnd, model_sha256: str | None) -> None:
        self.journal.end_round(after, end, model_sha256)
        record_last_round(self._state, self._run.run, self.journal.db)
        self._payloads.round_ended()
        self._ended = after

    def tidy(self) -> None:
        """Remove the files that the last round's end made superfluous. Separate, because silos wait for that end."""
        if self._ended is not None:
            self._remove_old_models()
            self._remove_old_strategy_state()
            if self._ended.open is None:
                self._remove_old_payloads(self._ended)
                remove_spares(self.spool_folder)
            else:  # the open round may have updates by now: leave them
                self._payloads.recycle(self._ended.last_round, self.spool_folder)
            self._ended = None

    # --- after the last round ---

    def shared_update(self, round_number: int, silo: str, sha256: str) -> StoredContribution:
        """Return the update that a silo that agreed to be evaluated sent in the last round, on disk and checked."""
        return self._payloads.one(round_number, silo, sha256)

    def report_final(self, silo: str, results: Mapping[str, Evaluation], state: RunState) -> None:
        """Store a silo's final evaluation, by subject; remove payloads that none has to evaluate any more."""
        self.journal.report_final(silo, results)
        self._remove_old_payloads(state)

    @property
    def calibrations(self) -> CalibrationRows:
        """The rows of the final model's calibration."""
        return CalibrationRows(self.journal.path, self.journal.db, self._run.run)

    def end_calibration(self, state: RunState, params: Params, calibration: Calibration | None) -> None:
        """Write the final model again with its calibration, then the row; None: there are too few clips for one."""
        if calibration is not None:
            self._models.write(self.journal.closed_rounds()[-1].number, params, calibration)
        self.calibrations.end(state.model_sha256, calibration)

    def _remove_old_payloads(self, state: RunState) -> None:
        """Keep only payloads of the open round; in a finished run, those that silos may still have to evaluate."""
        current = state.open
        if current is not None:
            self._report_lost_receipts(current.number, current.accepted)
            self._payloads.remove_all_but(current.number, current.accepted)
            return
        shared = [silo for silo, *_ in self.journal.shared(state.last_round)]
        waiting = self._run.final_evaluation == "sites" and not set(shared) <= self.journal.reported().keys()
        self._payloads.remove_all_but(state.last_round if waiting else None, shared)

    def _report_lost_receipts(self, round_number: int, accepted: Collection[str]) -> None:
        """Log payloads without a row, unless it is the one that a crash leaves: their silos have receipts.

        Nothing else is needed: a silo that asks a coordinator which has started gets the open round again.
        """
        lost = self._payloads.silos(round_number) - set(accepted)
        if len(lost) > 1:  # updates are accepted one after the other
            fix = "none needed for the run: the silos answer again; find out what damages files on this disk"
            log.error("receipts_lost", round=round_number, silos=",".join(sorted(lost)), fix=fix)

    def _remove_old_models(self) -> None:
        """Keep the last models, as many as the settings say, and the best one."""
        self._models.remove_old(self.journal.best_round() if self._models.keep else None)

    def _remove_old_strategy_state(self) -> None:
        """Keep the state of the last two closed rounds."""
        self._strategy_state.remove_old(*(at.number for at in self.journal.closed_rounds()[-2:]))


def _take_lock(folder: Path) -> FileLock:
    for _ in range(LOCK_TRIES):
        try:
            return FileLock.take(folder / "lock", owner="flamest-coordinator")
        except LockedError:
            time.sleep(LOCK_PAUSE_S)
    return FileLock.take(folder / "lock", owner="flamest-coordinator")
