"""Limits on the numbers for a calibration: what leaves for each of its two steps, and against which quota.

They count as the evaluations of several models (``entry``; docs/decisions/046-calibration-by-counts.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from ...fedproto.calibration_counts import CountedClips
from ...fedproto.records import RunSettings, TaskStatus
from .entry import CLASSES_COST, COUNTS_COST, SUMS_COST
from .evaluation_limits import evaluations_left, withheld_reason
from .ledger import Ledger
from .policy import Policy, PolicyRefused

MAX_SENDINGS = 5  # times that the same numbers are sent: a restart may have lost the receipt


@dataclass(frozen=True)
class CalibrationPlan:
    """The answer to a coordinator that asks for numbers for a calibration."""

    declined: str = ""  # why the silo declines; empty: it counts
    sent_before: bool = False
    sent: CountedClips | None = None  # what left before: the same is sent again; None: it was declined


def plan_calibration(run: RunSettings, task: TaskStatus, policy: Policy, ledger: Ledger) -> CalibrationPlan:
    """Decide what is answered to a request for numbers.

    Raises PolicyRefused when nothing is answered: ``not_asked_for``, the run's settings ask for none, or the run has
    not ended; ``calibrated_before``, numbers of another model or at another temperature have left, or the same ones
    often enough; ``too_many_messages``.
    """
    if not run.calibrate or task.round < run.rounds:
        raise PolicyRefused(
            f"the coordinator asks for a calibration after round {task.round} of {run.rounds} of a run with calibrate "
            f"= {str(run.calibrate).lower()}: nothing was sent. Ask its operator why",
            reason="not_asked_for",
        )
    both = [
        *ledger.content.calibrations(run.sha256, sums=True),
        *ledger.content.calibrations(run.sha256, sums=False),
    ]
    earlier = ledger.content.calibrations(run.sha256, sums=task.temperature == 0)
    known = earlier[0].counted if earlier else None
    other_model = any((entry.model_sha256, entry.round) != (task.model_sha256, task.round) for entry in both)
    if other_model or len(earlier) >= MAX_SENDINGS or (known and known.temperature != task.temperature):
        raise PolicyRefused(
            "numbers for this run's calibration have left: none are given for another model or temperature, and none "
            f"more than {MAX_SENDINGS} times",
            reason="calibrated_before",
        )
    ledger.require_room()
    if known is not None:
        return CalibrationPlan(sent_before=True, sent=known.figures())
    return CalibrationPlan(_declined(run, task, policy, ledger))


def _declined(run: RunSettings, task: TaskStatus, policy: Policy, ledger: Ledger) -> str:
    if not policy.reports:
        return "report_evaluation"
    if not ledger.content.took_part(run.sha256):
        return "no_part"
    if evaluations_left(policy, ledger) < calibration_cost(policy, sums=task.temperature == 0):
        return "evaluations_spent"
    return withheld_reason(run, policy, ledger)


def calibration_cost(policy: Policy, *, sums: bool) -> int:
    """Return how many models' evaluations a step counts as."""
    return SUMS_COST if sums else COUNTS_COST + (CLASSES_COST if policy.report_classes else 0)
