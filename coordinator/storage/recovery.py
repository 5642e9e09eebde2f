"""The start of a server: a new run, or the run as it was, resumed from the last model that is intact.

When the newest model or its strategy state is damaged, the rounds after the last intact one are lost: the log and the
history say so, and their files are kept in ``STATE/quarantine``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ...base.errors import DataError, SettingsError
from ...base.files import fsync_directory
from ...base.log import Log
from ...fedproto.head import Params, initial_params, params_sha256
from ...fedproto.records import RunSettings
from ..rounds import Cohort, RoundPolicy, RunState, start_run
from .damaged_files import DAMAGED_FOLDER, FIND_CAUSE, keep_damaged
from .database import incomplete_error
from .journal import ClosedRound, Journal
from .models import ModelStore
from .strategy_state import StrategyState

log = Log("coordinator")


@dataclass(frozen=True)
class Recovery:
    """Brings one run into memory: ``start_or_resume``."""

    state: Path  # the state folder
    run: RunSettings
    journal: Journal
    models: ModelStore
    strategy_state: StrategyState

    def start_or_resume(self, policy: RoundPolicy, cohort: Cohort) -> tuple[RunState, Params]:
        """Return the run's state and its current model; a run that the journal does not know is started.

        Raises SettingsError (``other_settings``) when the run was started with other settings, DataError when files
        are missing (``lost_run``) or no model is intact (``corrupt_model``, ``corrupt_memory``).
        """
        started = self.journal.started()
        if started is None:
            run_state = self._start(policy, cohort)
            return run_state, self.models.read(0, run_state.model_sha256)
        settings, initial_sha256 = started
        check_same_settings(self.run, settings)
        rounds = self.journal.closed_rounds(initial_sha256)
        intact, params = self._last_intact(rounds)
        if lost := rounds[intact + 1 :]:
            self._give_up(lost, rounds[intact], cohort)
        return self._resume(policy, cohort, initial_sha256), params

    def _start(self, policy: RoundPolicy, cohort: Cohort) -> RunState:
        folder = self.models.folder.parent
        params = initial_params(self.run.head, self.run.seed)
        run_state = start_run(policy, params_sha256(params), cohort)
        self.models.write(0, params)
        for each in (folder, folder.parent, self.state):
            fsync_directory(each)
        self.journal.start(run_state)
        return run_state

    def _last_intact(self, rounds: Sequence[ClosedRound]) -> tuple[int, Params]:
        """Return the index of the last round whose model and strategy state are what was written, and the model.

        Raises the DataError of the newest one when there is none.
        """
        problems: list[DataError] = []
        for closed in range(len(rounds) - 1, -1, -1):
            at = rounds[closed]
            try:
                params = self.models.read(at.number, at.model_sha256)
                self.strategy_state.read(closed, at.number, at.model_sha256)
            except DataError as problem:
                problems.append(problem)
            else:
                return closed, params
        raise problems[0]

    def _give_up(self, lost: Sequence[ClosedRound], intact: ClosedRound, cohort: Cohort) -> None:
        """Abandon the rounds after ``intact`` in one transaction, once their files are out of the way."""
        for at in lost:
            for path in (self.models.path(at.number), self.strategy_state.path(at.number)):
                keep_damaged(path, self.state / DAMAGED_FOLDER / f"{self.run.run}-{path.name}")
        self.journal.abandon_after(intact, cohort)
        log.error(
            "models_damaged",
            lost=",".join(str(at.number) for at in lost),
            resumed_from=intact.number,
            kept_in=DAMAGED_FOLDER,
            fix=f"{FIND_CAUSE}; flamest-coordinator history shows the lost rounds",
        )

    def _resume(self, policy: RoundPolicy, cohort: Cohort, initial_sha256: str) -> RunState:
        closed, opened = self.journal.closed_rounds(initial_sha256), self.journal.open_round(cohort)
        if (opened is None) != (len(closed) > self.run.rounds):
            finished = "no round is open" if opened is None else f"round {opened.number} is open"
            raise incomplete_error(
                self.journal.path, f"{finished} after {len(closed) - 1} of {self.run.rounds} rounds have closed"
            )
        return RunState(
            policy=policy,
            closed=len(closed) - 1,
            model_sha256=closed[-1].model_sha256,
            last_round=self.journal.last_ended(),
            open=opened,
            counted=self.journal.counted(),
        )


def check_same_settings(run: RunSettings, started: bytes) -> None:
    """Raise SettingsError (``other_settings``) unless ``started``, with which the run began, are its settings."""
    if started != run.encode():
        changed = _differences(started, run.encode())
        raise SettingsError(
            f"run '{run.run}' was started with other settings ({', '.join(changed)} differ)",
            fix="give the new settings another [run] name, or change them back (a run from before there were recipes: "
            'recipe = "paper" in [run])',
            code="other_settings",
        )


def _differences(old: bytes, new: bytes) -> list[str]:
    before, after = msgspec.json.decode(old), msgspec.json.decode(new)
    return [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
