"""Limits on evaluations: how many may leave, and at the end of a run one, of the models that its settings ask for.

The coordinator says when a run has ended and which models are to be evaluated; the silo checks it against the run's
settings, its policy, and what its own ledger says about the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from ...base.files import sha256_bytes
from ...fedproto.records import OWN_HEAD, RunSettings, SubjectEvaluation, TaskStatus
from .ledger import Ledger
from .policy import Policy, PolicyRefused
from .quotas import MONTH_DAYS

MAX_SITES = 64  # single silos' models that are evaluated at the end of a run
MAX_SENDINGS = 5  # times that the same evaluation is sent: a restart may have lost the receipt


@dataclass(frozen=True)
class EvaluationPlan:
    """The answer to a coordinator that asks for an evaluation at the end of a run."""

    subjects: int  # models to evaluate, the final one first; 0: none, the silo declines
    declined: str = ""  # why the silo declines
    own: bool = False  # and a head that this silo trains on its own clips alone
    sent: tuple[SubjectEvaluation, ...] | None = None  # what left before: the same is sent again


def plan_evaluation(run: RunSettings, task: TaskStatus, policy: Policy, ledger: Ledger) -> EvaluationPlan:
    """Decide what is answered to a request for an evaluation.

    Raises PolicyRefused when nothing is answered: ``not_asked_for``, the run's settings ask for none, or the run has
    not ended; ``evaluated_before``, another model of the run was evaluated, or the same answer left often enough;
    ``too_many_messages``.
    """
    if run.final_evaluation == "none" or task.round < run.rounds:
        raise PolicyRefused(
            f"the coordinator asks for an evaluation after round {task.round} of {run.rounds} of a run whose settings "
            f"ask for '{run.final_evaluation}': nothing was sent. Ask its operator why",
            reason="not_asked_for",
        )
    if earlier := ledger.content.evaluations(run.sha256):
        first = earlier[0]
        if (first.model_sha256, first.round) != (task.model_sha256, task.round) or len(earlier) >= MAX_SENDINGS:
            raise PolicyRefused(
                "the evaluation of this run's final model has left: it is not given for another model, and not sent "
                f"more than {MAX_SENDINGS} times",
                reason="evaluated_before",
            )
    ledger.require_room()
    if earlier:
        return EvaluationPlan(0, sent=tuple(result.result() for result in earlier[0].results))
    return _first_plan(run, task, policy, ledger)


def _first_plan(run: RunSettings, task: TaskStatus, policy: Policy, ledger: Ledger) -> EvaluationPlan:
    if not policy.reports:
        return EvaluationPlan(0, "report_evaluation")
    if not ledger.content.took_part(run.sha256):
        return EvaluationPlan(0, "no_part")
    if withheld := withheld_reason(run, policy, ledger):
        return EvaluationPlan(0, withheld)
    left = evaluations_left(policy, ledger)
    sites = MAX_SITES if run.final_evaluation == "sites" and policy.share_for_evaluation else 0
    subjects = max(0, min(task.subjects, 1 + sites, left))
    return EvaluationPlan(subjects, own=run.gains and policy.report_gain and left > subjects)


def withheld_reason(run: RunSettings, policy: Policy, ledger: Ledger) -> str:
    """Return why no evaluation may leave now, in a round or at the end of a run; empty: one may.

    ``evaluations_spent``: as many as the policy allows in a day or a month have left; ``splits_spent``: runs
    that hold out other clips were evaluated lately, as many as may be.
    """
    if evaluations_left(policy, ledger) <= 0:
        return "evaluations_spent"
    return "" if ledger.content.quotas.may_use_split(split_of(run), ledger.now()) else "splits_spent"


def split_of(run: RunSettings) -> str:
    """Return a hash of what the choice of held-out clips follows from in a run's settings.

    A coordinator that varies seed, labels or bundle has other clips evaluated each time, and could compare.
    """
    return sha256_bytes(msgspec.json.encode((run.seed, sorted(run.labels), run.fingerprint)))[:16]


def evaluations_left(policy: Policy, ledger: Ledger) -> int:
    """Return how many models' evaluations may leave now: of a day's and of a month's the smaller rest."""
    quotas, now = ledger.content.quotas, ledger.now()
    return min(
        policy.evaluations_per_day - quotas.evaluations(now),
        policy.evaluations_per_month - quotas.evaluations(now, MONTH_DAYS),
    )


def is_planned(results: Sequence[SubjectEvaluation], plan: EvaluationPlan) -> bool:
    """Return whether ``results`` are what ``plan`` allows: the same again, or at most the models planned."""
    if plan.sent is not None:
        return tuple(results) == plan.sent
    subjects = [one.subject for one in results]
    if plan.own and len(subjects) > 1 and subjects[-1] == OWN_HEAD:
        subjects.pop()
    return subjects == list(range(len(subjects))) and len(subjects) <= plan.subjects
