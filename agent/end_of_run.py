"""The end of a run: the silo counts for the calibration, evaluates the models it is offered, and chooses one to use."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from ..base.errors import DataError, FlamestError, StorageError, UnreachableError
from ..base.log import LimitedLog, Log
from ..fedproto.calibration import Calibration
from ..fedproto.calibration_counts import CountedClips
from ..fedproto.model_file import ModelFile, read_model, write_model
from ..fedproto.records import OWN_HEAD, GlobalModel, RunSettings, SubjectEvaluation, TaskStatus
from .client import CoordinatorClient, DuplicateIdentity, RunChanged
from .egress.evaluation_limits import EvaluationPlan
from .egress.guard import EgressGuard
from .egress.policy import Policy, PolicyRefused
from .end_of_run_tasks import (
    adopt_head,
    choose_model,
    count_for_calibration,
    evaluate_own_head,
    own_calibration,
    training_note_of,
)
from .status import read_status
from .tasks import DataSource, evaluate_model
from .training.client_state import ClientState
from .training.evaluation import ModelChoice
from .worker import Worker, WorkerCrashed, WorkExpired

FINAL_MODEL = "model.safetensors"  # in use at this silo: the run's, or this silo's own where that was better
OWN_MODEL = "own.safetensors"  # as the last round's training left it (policy.refuse_worse)
ALONE_MODEL = "alone.safetensors"  # this silo's own head, trained on its clips alone (policy.adopt, report_gain)
REFUSED_MODEL = "model.refused.safetensors"  # the run's final model where another one is in use
# Held-out clips of this silo from which on they calibrate the final model here, though the run has a calibration: of
# so many, the coverage is off by 1.5 points (one standard deviation); the run's is of all silos' clips, with noise.
OWN_CALIBRATION_CLIPS = 200
IN_STATUS = {"federated": "final"}  # names of heads that the status has otherwise
STATUS_FIELDS = ("adopted", "adopted_why", "adopted_run", "adopted_round", "gain")
ADOPT_WITHIN_S = 24 * 3600.0  # to train a head alone and tune another: as long as all rounds of a run
WITHIN_S = 3600.0  # to fetch and evaluate all models of a final evaluation; the paper's head takes a second each

log = Log("agent")
asked_log = LimitedLog("agent")  # for events that a coordinator can cause without end


class ModelInUse(NamedTuple):
    """The model in use after a run, and the reason."""

    model: str  # "final", "own", "blend" or "tuned"
    why: str
    round: int  # that it is from
    gain: Mapping[str, float] = MappingProxyType({})  # of the final model over an own head; empty: not measured

    def as_status(self, run: str) -> dict[str, Any]:
        """Return the status's fields about it; ``run``: the run that it is of."""
        values = self.model, self.why, run, self.round, dict(self.gain)
        return dict(zip(STATUS_FIELDS, values, strict=True))


def model_in_use(state: Path) -> dict[str, Any]:
    """Return the status's fields about the model in use, from before this daemon started; none without a model."""
    if not (state / FINAL_MODEL).exists():
        return {}
    try:
        before = read_status(state)
    except (DataError, StorageError, UnreachableError):
        return {}
    return {name: getattr(before, name) for name in STATUS_FIELDS}


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
        results = self._results(client, run, task, plan) if plan.sent is None else plan.sent
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
        self, client: CoordinatorClient, run: RunSettings, task: TaskStatus, plan: EvaluationPlan
    ) -> list[SubjectEvaluation]:
        """Evaluate so many of the offered models; none when the policy reports nothing on this silo's clips,
        or when it takes too long."""
        results: list[SubjectEvaluation] = []
        until = time.monotonic() + WITHIN_S
        try:
            for subject in range(plan.subjects):
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
        return [*results, *self._own_results(run)] if plan.own else results

    def _own_results(self, run: RunSettings) -> list[SubjectEvaluation]:
        """Train a head on this silo's clips alone and evaluate it; nothing when that fails."""
        own = self._state / ALONE_MODEL
        try:
            until = time.monotonic() + ADOPT_WITHIN_S
            found = self._worker.call(evaluate_own_head, self._source, run, own, self._policy, until=until)
        except (DataError, StorageError, WorkerCrashed, WorkExpired) as error:
            self._note_uncompared(error)
            return []
        return [] if found is None else [SubjectEvaluation(OWN_HEAD, found)]

    def calibrate(self, client: CoordinatorClient, run: RunSettings, task: TaskStatus) -> None:
        """Report the numbers for a step of the final model's calibration, decline, or answer nothing.

        Raises what ends a run: RunChanged, DuplicateIdentity, UnreachableError, IdentityError.
        """
        step = "confidence" if task.temperature == 0 else "scores"
        try:
            plan = self._guard.plan_calibration(run, task)
        except PolicyRefused as refused:
            self._note_refusal(run, task, refused)
            return
        if plan.declined:
            asked_log.warning("calibration_declined", who="coordinator", round=task.round, reason=plan.declined)
        found = plan.sent
        try:
            if not plan.sent_before and not plan.declined:
                found = self._counts(client, run, task)
            self._guard.send_calibration(client, run, task, found)
        except (DataError, StorageError) as refused:
            if isinstance(refused, RunChanged | DuplicateIdentity):
                raise
            asked_log.error(
                "calibration_refused", who="coordinator", round=task.round, code=refused.code, detail=refused.message
            )
        else:
            clips = 0 if found is None else found.clips
            asked_log.info("calibration_sent", who="coordinator", round=task.round, step=step, clips=clips)

    def _counts(self, client: CoordinatorClient, run: RunSettings, task: TaskStatus) -> CountedClips | None:
        """Count the held-out clips; None when the policy reports nothing on them, or when it fails."""
        until = time.monotonic() + WITHIN_S
        arguments = (run, client.fetch(run, task).params, self._policy, task.temperature)
        try:
            return self._worker.call(count_for_calibration, self._source, *arguments, until=until)
        except (DataError, StorageError, WorkerCrashed, WorkExpired) as error:
            asked_log.error("calibration_failed", who="coordinator", round=task.round, code=error.code)
            log.debug("calibration_failed", detail=error.message)
            return None

    def adopt_model(
        self, client: CoordinatorClient, run: RunSettings, task: TaskStatus, *, compare: bool = False
    ) -> ModelInUse:
        """Fetch the final model and use it, or another one where the policy finds that better.

        ``compare``: hold it against a head of this silo's own, also where the policy lets nothing depend on that.
        """
        model = client.fetch(run, task)
        note = training_note_of(self._source, run, self._policy).as_metadata()
        names = (run.labels, run.fingerprint, run.run, task.round, note)
        final = ModelFile(run.head, model.params, *names, calibration=model.calibration)
        kept, used = self._choose(run, model, final, compare=compare)
        if used.model == "final":
            kept = replace(kept, calibration=self._calibration(run, model))
        refused = self._state / REFUSED_MODEL
        if used.model == "final":
            refused.unlink(missing_ok=True)  # of an earlier run
        else:
            write_model(refused, final)
        write_model(self._state / FINAL_MODEL, kept)
        ClientState.of_run(self._state, run).remove()
        asked_log.info(
            "final_model",
            who="coordinator",
            round=task.round,
            sha256=model.sha256[:12],
            file=FINAL_MODEL,
            adopted=used.model,
            **{name: round(used.gain[name], 4) for name in ("gain", "low", "high") if used.gain},
        )
        return used

    def _calibration(self, run: RunSettings, model: GlobalModel) -> Calibration | None:
        """Return the final model's calibration here: by this silo's own held-out clips, or the run's.

        With the run's at hand, only ``OWN_CALIBRATION_CLIPS`` or more of its own count for more.
        """
        try:
            until = time.monotonic() + WITHIN_S
            own = self._worker.call(own_calibration, self._source, run, model.params, self._policy, until=until)
        except (DataError, StorageError, WorkerCrashed, WorkExpired) as error:
            asked_log.error("not_calibrated", who="coordinator", code=error.code)
            log.debug("not_calibrated", detail=error.message)
            return model.calibration
        enough = own is not None and own.clips >= OWN_CALIBRATION_CLIPS
        return own if enough or model.calibration is None else model.calibration

    def _choose(
        self, run: RunSettings, model: GlobalModel, final: ModelFile, *, compare: bool
    ) -> tuple[ModelFile, ModelInUse]:
        """Return the model to use; the final one where the policy asks for no other, or the comparison failed."""
        policy = self._policy
        if compare and policy.adopt is None and not policy.refuse_worse:
            policy = msgspec.structs.replace(policy, adopt="federated")
        if policy.adopt is not None:
            return self._adopt(run, model, final, policy)
        choice = self._compare(run, model)
        kept = read_model(self._state / OWN_MODEL) if choice is not None and choice.own else final
        return kept, ModelInUse("final" if kept is final else "own", choice.text if choice else "", kept.round)

    def _adopt(
        self, run: RunSettings, model: GlobalModel, final: ModelFile, policy: Policy
    ) -> tuple[ModelFile, ModelInUse]:
        """Choose as ``policy.adopt`` says."""
        own = self._state / ALONE_MODEL
        try:
            until = time.monotonic() + ADOPT_WITHIN_S
            head = self._worker.call(adopt_head, self._source, run, model.params, own, policy, until=until)
        except (DataError, StorageError, WorkerCrashed, WorkExpired) as error:
            self._note_uncompared(error)
            why = f"the final model is in use: it could not be compared with a head of this silo's own ({error.code})"
            return final, ModelInUse("final", why, final.round)
        gain = msgspec.to_builtins(head.adoption.gain) if head.adoption else {}
        calibration = final.calibration if head.candidate == "federated" else None
        kept = replace(final, params=head.params, calibration=head.calibration or calibration)
        return kept, ModelInUse(IN_STATUS.get(head.candidate, head.candidate), head.why, final.round, gain)

    def _compare(self, run: RunSettings, model: GlobalModel) -> ModelChoice | None:
        """Decide whether the own model stays in use; None when the policy does not ask, or the comparison failed."""
        if not self._policy.refuse_worse:
            return None
        own = self._state / OWN_MODEL
        try:
            until = time.monotonic() + WITHIN_S
            return self._worker.call(choose_model, self._source, run, model.params, own, self._policy, until=until)
        except (DataError, StorageError, WorkerCrashed, WorkExpired) as error:
            self._note_uncompared(error)
            return None

    def _note_uncompared(self, error: FlamestError) -> None:
        asked_log.error("not_compared", who="coordinator", code=error.code)
        log.debug("not_compared", detail=error.message)
