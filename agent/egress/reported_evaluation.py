"""Evaluations as they may leave: on enough clips, with a capped and rounded loss.

The model that is evaluated is the coordinator's choice, in a round as at the end of a run. A loss in full precision is
then a measurement of single clips: a model can be made to answer to one of them, and to amplify what it answers
(docs/guides/privacy.md). Capped and rounded, one clip moves the loss by at most one step: the loss says as much about
it as a count of correct predictions does, which leaves too. Both get noise of the size of a few clips
(evaluation_noise.py).
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ...base.errors import InvariantError
from ...fedproto.bounds import MAX_LOSS
from ...fedproto.head import Params
from ...fedproto.records import Evaluation
from ..training.dataset import SiloData
from ..training.evaluation import ClipResults, class_counts, clip_results
from ..training.trainer import HeadTrainer
from .evaluation_noise import ReportNoise
from .policy import Policy

LEAST_CAP = 10.0  # nats
CAP_IN_GUESSES = 3.0  # times ln(classes), the loss of a model that knows nothing
FINEST_STEP = 0.01  # nats
MARGIN = 1.001  # so that the floating-point error of a mean never makes one clip move two steps
SERIES = (1, 2, 5)  # steps are 1, 2 or 5 times a power of ten


def loss_cap(classes: int) -> float:
    """Return the largest loss of a clip, in nats, that counts in a reported mean; honest losses are far below."""
    return max(LEAST_CAP, CAP_IN_GUESSES * math.log(max(classes, 1)))


def loss_step(classes: int, count: int) -> float:
    """Return the step in nats that the mean loss of ``count`` clips is rounded to: at least ``loss_cap / count``."""
    least = max(FINEST_STEP, MARGIN * loss_cap(classes) / max(count, 1))
    exponent = -2
    while True:
        for digit in SERIES:
            if (step := round(digit * 10.0**exponent, 2)) >= least:
                return step
        exponent += 1


def rounded_loss(losses: npt.NDArray[np.float64], classes: int, count: int, noise: float = 0.0) -> float:
    """Return the mean of capped ``losses`` [N] (one or more) in nats, rounded to the step of ``count`` clips.

    ``noise``, in clips that change from no loss to the cap, is added before it is rounded. A loss that is not finite
    counts as the cap. Changing one clip moves the result by at most one step.
    """
    cap, step = loss_cap(classes), loss_step(classes, min(count, len(losses)))
    capped = np.where(np.isfinite(losses), np.clip(losses, 0.0, cap), cap)
    mean = min(max(float(capped.mean()) + noise * cap / len(losses), 0.0), cap)
    return round(math.floor(mean / step + 0.5) * step, 2)


def reported_evaluation(
    trainer: HeadTrainer, params: Params, data: SiloData, policy: Policy, secret: bytes = b""
) -> Evaluation | None:
    """Evaluate a model on a silo's held-out clips, as far as its policy reports it; None: nothing is reported.

    ``secret``: of this silo, which its noise follows from.

    Nothing is reported by a silo that may not send an update (fewer clips in it than ``min_samples``) or that
    holds out fewer clips than ``policy.min_held_out``: whether something is reported never follows from a clip's
    values.
    """
    sent = data.without_rare_classes(policy.class_floor).train
    if not policy.reports or len(sent) < policy.min_samples or len(data.held_out) < policy.min_held_out:
        return None
    results = clip_results(trainer, params, data.held_out)
    classes = trainer.spec.outputs
    count = policy.rounded_count(len(data.held_out))
    noise = ReportNoise(secret, trainer.spec, params, data.held_out) if policy.evaluation_noise else None
    loss = _loss(results, classes, count, policy, noise)
    by_class = class_counts(results, data.held_out, policy.report_classes)
    exact = Evaluation(loss, int(results.correct.sum()), len(data.held_out), by_class)
    reported = exact if noise is None else _with_noise(exact, noise, policy.evaluation_noise)
    return replace(reported, correct=round(reported.correct * count / exact.count), count=count)


def _loss(results: ClipResults, classes: int, count: int, policy: Policy, noise: ReportNoise | None) -> float:
    if policy.report_loss == "rounded":
        clips = 0.0 if noise is None else policy.evaluation_noise * noise.draw("loss")
        return rounded_loss(results.losses, classes, count, clips)
    return float(np.minimum(results.losses, MAX_LOSS).mean())


def _with_noise(exact: Evaluation, noise: ReportNoise, deviation: float) -> Evaluation:
    """Return the evaluation with noise on every number of correct predictions; classes still add up to the whole."""
    by_class = tuple(
        replace(one, correct=noise.count(f"class {one.label}", one.correct, one.count, deviation))
        for one in exact.by_class
    )
    least = sum(one.correct for one in by_class)
    most = exact.count - sum(one.count - one.correct for one in by_class)
    correct = noise.count("correct", exact.correct, exact.count, deviation)
    return replace(exact, correct=min(max(correct, least), most), by_class=by_class)


def require_reportable(evaluation: Evaluation, policy: Policy, classes: int) -> None:
    """Check at the way out that an evaluation is what ``reported_evaluation`` makes. Raises InvariantError."""
    loss, count = evaluation.loss, evaluation.count
    wrong = not policy.reports or not (math.isfinite(loss) and loss >= 0 and 0 <= evaluation.correct <= count)
    if not wrong and policy.report_loss == "rounded":
        wrong = loss != round(loss, 2) or loss > loss_cap(classes) + 3 * loss_step(classes, count)
    if wrong or count < 1 or (evaluation.by_class and not policy.report_classes):
        raise InvariantError("an evaluation that this silo's policy does not report was to be sent")
