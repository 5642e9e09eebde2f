"""After a run's last round: the silo measures the models that it is offered, and keeps the one to use."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ..base.errors import DataError, StorageError
from ..base.log import Log
from ..fedproto.model_file import ModelFile, read_model, write_model
from ..fedproto.records import GlobalModel, RunSettings, SubjectEvaluation, TaskStatus
from .client import CoordinatorClient, DuplicateIdentity, RunChanged
from .egress.policy import Policy
from .evaluation import Adoption
from .tasks import DataSource, choose_model, measure_model
from .training.client_state import Corrections
from .worker import Worker, WorkerCrashed

FINAL_MODEL = "model.safetensors"  # in use at this site: the run's, or this silo's own where that was better
OWN_MODEL = "own.safetensors"  # what this silo trained last (policy.refuse_worse)
REFUSED_MODEL = "model.refused.safetensors"

log = Log("agent")


class Kept(NamedTuple):
    """Which model is in use, and why."""

    model: str  # "final" or "own"
    why: str


class Finals:
    """One silo's: what its policy says, and the worker that runs the models."""

    def __init__(self, state: Path, policy: Policy, worker: Worker, source: DataSource) -> None:
        self._state = state
        self._policy = policy
        self._worker = worker
        self._source = source

    @property
    def own_model(self) -> Path:
        """Where the model that this silo trained last is kept."""
        return self._state / OWN_MODEL

    def measure(self, link: CoordinatorClient, run: RunSettings, standing: TaskStatus) -> None:
        """Tell how the offered models do on the held-out clips, or decline. Raises what ends a run: RunChanged,
        DuplicateIdentity, UnreachableError, IdentityError."""
        results: list[SubjectEvaluation] = []
        try:
            for subject in range(standing.subjects if self._policy.reports else 0):
                params = link.fetch_subject(run, standing, subject)
                told = self._worker.call(measure_model, self._source, run, params, self._policy)
                if told is not None:
                    results.append(SubjectEvaluation(subject, told))
        except (DataError, StorageError, WorkerCrashed) as error:
            if isinstance(error, RunChanged | DuplicateIdentity):
                raise
            results = []  # nothing half measured is told
            log.error("evaluation_failed", round=standing.round, code=error.code)
            log.debug("evaluation_failed", detail=error.message)
        try:
            link.report_evaluation(run, standing.round, results)
        except (DataError, StorageError) as refused:
            if isinstance(refused, RunChanged):
                raise
            log.error("evaluation_refused", round=standing.round, code=refused.code, detail=refused.message)
        else:
            log.info("evaluation_sent", round=standing.round, models=len(results), asked=standing.subjects)

    def keep(self, link: CoordinatorClient, run: RunSettings, standing: TaskStatus) -> Kept:
        """Fetch the final model and keep it for use, or beside this silo's own where the policy finds that better."""
        model = link.fetch(run, standing)
        final = ModelFile(run.head, model.params, run.labels, run.fingerprint, run.run, standing.round)
        adoption = self._choose(run, model)
        if adoption is not None and adoption.own:
            write_model(self._state / REFUSED_MODEL, final)
            write_model(self._state / FINAL_MODEL, read_model(self.own_model))
        else:
            write_model(self._state / FINAL_MODEL, final)
        Corrections.of_run(self._state, run).forget()
        kept = Kept("own" if adoption and adoption.own else "final", adoption.words if adoption else "")
        log.info("final_model", round=standing.round, sha256=model.sha256[:12], file=FINAL_MODEL, adopted=kept.model)
        return kept

    def _choose(self, run: RunSettings, model: GlobalModel) -> Adoption | None:
        """Whether the own model stays in use; None when the policy does not ask, or nothing could be compared."""
        if not self._policy.refuse_worse:
            return None
        try:
            return self._worker.call(choose_model, self._source, run, model.params, self.own_model, self._policy)
        except (DataError, StorageError, WorkerCrashed) as error:
            log.error("not_compared", code=error.code)
            log.debug("not_compared", detail=error.message)
            return None
