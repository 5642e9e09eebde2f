"""The end of a run: the silo evaluates the models it is offered, and chooses the model to use."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

from ..base.errors import DataError, StorageError, UnreachableError
from ..base.log import LimitedLog, Log
from ..fedproto.model_file import ModelFile, read_model, write_model
from ..fedproto.records import GlobalModel, RunSettings, SubjectEvaluation, TaskStatus
from .client import CoordinatorClient, DuplicateIdentity, RunChanged
from .egress.guard import EgressGuard
from .egress.policy import PolicyRefused
from .status import read_status
from .tasks import DataSource, choose_model, evaluate_model
from .training.client_state import ClientState
from .training.evaluation import ModelChoice
from .worker import Worker, WorkerCrashed, WorkExpired

FINAL_MODEL = "model.safetensors"  # in use at this silo: the run's, or this silo's own where that was better
OWN_MODEL = "own.safetensors"  # this silo's own model after its last training (policy.refuse_worse)
REFUSED_MODEL = "model.refused.safetensors"
WITHIN_S = 3600.0  # to fetch and evaluate all models of a final evaluation; the paper's head takes a second each

log = Log("agent")
asked_log = LimitedLog("agent")  # for events that a coordinator can cause without end


class ModelInUse(NamedTuple):
    """The model in use after a run, and the reason."""

    model: str  # "final" or "own"
    why: str
    round: int  # that it is from


def model_in_use(state: Path) -> dict[str, Any]:
    """Return the status's fields about the model in use, from before this daemon started; none without a model."""
    if not (state / FINAL_MODEL).exists():
        return {}
    try:
        before = read_status(state)
    except (DataError, StorageError, UnreachableError):
        return {}
    return {name: getattr(before, name) for name in ("adopted", "adopted_why", "adopted_run", "adopted_round")}


class EndOfRun:
    """One silo's work after the last round of a run."""

    def __init__(self, state: Path, guard: EgressGuard, worker: Worker, source: DataSource) -> None:
        self._state = state
        self._guard = guard
        self._policy = guard.policy
        self._worker = worker
        self._source = source

    def evaluate(self, client: CoordinatorClient, run: RunSettings, task: TaskStatus) -> None:
        """Report how the offered models do on the held-out clips, decline, or answer nothing (``plan_evaluation``).

        Raises what ends a run: RunChanged, DuplicateIdentity, UnreachableError, IdentityError.
        """
        try:
            plan = self._guard.plan_evaluation(run, task)
        except PolicyRefused as refused:
            self._note_refusal(run, task, refused)
            return
        if plan.declined:
            asked_log.warning("evaluation_declined", who="coordinator", round=task.round, reason=plan.declined)
        results = self._results(client, run, task, plan.subjects) if plan.sent is None else plan.sent
        try:
            self._guard.send_evaluation(client, run, task, results)
        except (DataError, StorageError) as refused:
            if isinstance(refused, RunChanged | DuplicateIdentity):
                raise
            asked_log.error(
                "evaluation_refused", who="coordinator", round=task.round, code=refused.code, detail=refused.message
            )
        else:
            asked_log.info(
                "evaluation_sent", who="coordinator", round=task.round, models=len(results), asked=task.subjects
            )

    def _note_refusal(self, run: RunSettings, task: TaskStatus, refused: PolicyRefused) -> None:
        """Enter a refusal and log it, once for each run: the coordinator may ask without end."""
        try:
            entered = self._guard.record_refused_evaluation(run, task, refused)
        except (DataError, StorageError) as error:
            asked_log.error("refusal_not_entered", who="coordinator", round=task.round, code=error.code)
            return
        if entered:
            asked_log.warning(
                "evaluation_refused", who="coordinator", round=task.round, code=refused.code, reason=refused.reason
            )

    def _results(
        self, client: CoordinatorClient, run: RunSettings, task: TaskStatus, subjects: int
    ) -> list[SubjectEvaluation]:
        """Evaluate so many of the offered models; none when the policy reports nothing on this silo's clips,
        or when it takes too long."""
        results: list[SubjectEvaluation] = []
        until = time.monotonic() + WITHIN_S
        try:
            for subject in range(subjects):
                params = client.fetch_subject(run, task, subject)
                evaluation = self._worker.call(evaluate_model, self._source, run, params, self._policy, until=until)
                if evaluation is None:
                    return []
                results.append(SubjectEvaluation(subject, evaluation))
        except (DataError, StorageError, WorkerCrashed, WorkExpired) as error:
            if isinstance(error, RunChanged | DuplicateIdentity):
                raise
            asked_log.error("evaluation_failed", who="coordinator", round=task.round, code=error.code)
            log.debug("evaluation_failed", detail=error.message)
            return []  # an incomplete evaluation is not reported
        return results

    def adopt_model(self, client: CoordinatorClient, run: RunSettings, task: TaskStatus) -> ModelInUse:
        """Fetch the final model and use it, or keep using this silo's own where the policy finds that better."""
        model = client.fetch(run, task)
        final = ModelFile(run.head, model.params, run.labels, run.fingerprint, run.run, task.round)
        choice = self._compare(run, model)
        kept = final
        if choice is not None and choice.own:
            write_model(self._state / REFUSED_MODEL, final)
            kept = read_model(self._state / OWN_MODEL)
        write_model(self._state / FINAL_MODEL, kept)
        ClientState.of_run(self._state, run).remove()
        used = ModelInUse("final" if kept is final else "own", choice.text if choice else "", kept.round)
        asked_log.info(
            "final_model",
            who="coordinator",
            round=task.round,
            sha256=model.sha256[:12],
            file=FINAL_MODEL,
            adopted=used.model,
        )
        return used

    def _compare(self, run: RunSettings, model: GlobalModel) -> ModelChoice | None:
        """Decide whether the own model stays in use; None when the policy does not ask, or the comparison failed."""
        if not self._policy.refuse_worse:
            return None
        own = self._state / OWN_MODEL
        try:
            until = time.monotonic() + WITHIN_S
            return self._worker.call(choose_model, self._source, run, model.params, own, self._policy, until=until)
        except (DataError, StorageError, WorkerCrashed, WorkExpired) as error:
            asked_log.error("not_compared", who="coordinator", code=error.code)
            log.debug("not_compared", detail=error.message)
            return None
