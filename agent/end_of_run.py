"""The end of a run: the silo evaluates the models it is offered, and chooses the model to use."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ..base.errors import DataError, StorageError
from ..base.log import Log
from ..fedproto.model_file import ModelFile, read_model, write_model
from ..fedproto.records import GlobalModel, RunSettings, SubjectEvaluation, TaskStatus
from .client import CoordinatorClient, DuplicateIdentity, RunChanged
from .egress.guard import EgressGuard
from .tasks import DataSource, choose_model, evaluate_model
from .training.client_state import ClientState
from .training.evaluation import ModelChoice
from .worker import Worker, WorkerCrashed

FINAL_MODEL = "model.safetensors"  # in use at this silo: the run's, or this silo's own where that was better
OWN_MODEL = "own.safetensors"  # this silo's own model after its last training (policy.refuse_worse)
REFUSED_MODEL = "model.refused.safetensors"

log = Log("agent")


class ModelInUse(NamedTuple):
    """The model in use after a run, and the reason."""

    model: str  # "final" or "own"
    why: str


class EndOfRun:
    """One silo's work after the last round of a run."""

    def __init__(self, state: Path, guard: EgressGuard, worker: Worker, source: DataSource) -> None:
        self._state = state
        self._guard = guard
        self._policy = guard.policy
        self._worker = worker
        self._source = source

    def evaluate(self, client: CoordinatorClient, run: RunSettings, task: TaskStatus) -> None:
        """Report how the offered models do on the held-out clips, or decline.

        Raises what ends a run: RunChanged, DuplicateIdentity, UnreachableError, IdentityError.
        """
        results: list[SubjectEvaluation] = []
        try:
            for subject in range(task.subjects if self._policy.reports else 0):
                params = client.fetch_subject(run, task, subject)
                evaluation = self._worker.call(evaluate_model, self._source, run, params, self._policy)
                if evaluation is not None:
                    results.append(SubjectEvaluation(subject, evaluation))
        except (DataError, StorageError, WorkerCrashed) as error:
            if isinstance(error, RunChanged | DuplicateIdentity):
                raise
            results = []  # an incomplete evaluation is not reported
            log.error("evaluation_failed", round=task.round, code=error.code)
            log.debug("evaluation_failed", detail=error.message)
        try:
            self._guard.send_evaluation(client, run, task.round, results)
        except (DataError, StorageError) as refused:
            if isinstance(refused, RunChanged):
                raise
            log.error("evaluation_refused", round=task.round, code=refused.code, detail=refused.message)
        else:
            log.info("evaluation_sent", round=task.round, models=len(results), asked=task.subjects)

    def adopt_model(self, client: CoordinatorClient, run: RunSettings, task: TaskStatus) -> ModelInUse:
        """Fetch the final model and use it, or keep using this silo's own where the policy finds that better."""
        model = client.fetch(run, task)
        final = ModelFile(run.head, model.params, run.labels, run.fingerprint, run.run, task.round)
        choice = self._compare(run, model)
        if choice is not None and choice.own:
            write_model(self._state / REFUSED_MODEL, final)
            write_model(self._state / FINAL_MODEL, read_model(self._state / OWN_MODEL))
        else:
            write_model(self._state / FINAL_MODEL, final)
        ClientState.of_run(self._state, run).remove()
        used = ModelInUse("own" if choice and choice.own else "final", choice.text if choice else "")
        log.info("final_model", round=task.round, sha256=model.sha256[:12], file=FINAL_MODEL, adopted=used.model)
        return used

    def _compare(self, run: RunSettings, model: GlobalModel) -> ModelChoice | None:
        """Decide whether the own model stays in use; None when the policy does not ask, or the comparison failed."""
        if not self._policy.refuse_worse:
            return None
        own = self._state / OWN_MODEL
        try:
            return self._worker.call(choose_model, self._source, run, model.params, own, self._policy)
        except (DataError, StorageError, WorkerCrashed) as error:
            log.error("not_compared", code=error.code)
            log.debug("not_compared", detail=error.message)
            return None
