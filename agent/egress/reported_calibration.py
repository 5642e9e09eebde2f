"""Numbers for the calibration of a run's final model, as they may leave: of enough clips, rounded, with noise.

The same rules as for evaluations (reported_evaluation.py): nothing leaves a silo that may not send an update, or that
holds out too few clips; a class is counted by itself only where so many held-out clips have its label, whatever the
model says of them. Every number gets noise of its own, from the same secret.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...base.errors import InvariantError
from ...fedproto.calibration_counts import (
    REFERENCE,
    SPREAD,
    ClassScores,
    ConfidenceSums,
    CountedClips,
    Counts,
    ScoreCounts,
    confidence_sums,
    score_histogram,
    scores_at,
)
from ...fedproto.head import Params
from ..training.dataset import FeatureTable, SiloData
from ..training.evaluation import reportable_classes
from ..training.trainer import HeadTrainer
from .entry import NOISE_SHARE
from .evaluation_noise import ReportNoise
from .policy import Policy


def reported_calibration(
    trainer: HeadTrainer, params: Params, data: SiloData, policy: Policy, temperature: float, secret: bytes = b""
) -> CountedClips | None:
    """Return a silo's numbers for one step, as far as its policy reports them; None: nothing is reported.

    ``temperature``: 0 for sums of confidence, otherwise of the scores. ``secret``: of this silo, which its noise
    follows from.
    """
    if not policy.reports or len(data.train) < policy.min_samples or len(data.held_out) < policy.min_held_out:
        return None
    held_out = data.held_out
    with np.errstate(all="ignore"):  # finite parameters can give scores that overflow
        logits = trainer.logits(params, held_out.x).astype(np.float64)
    logits = np.where(np.isfinite(logits).all(axis=1, keepdims=True), logits, 0.0)
    noise = ReportNoise(secret, trainer.spec, params, held_out) if policy.evaluation_noise else None
    sender = _Numbers(policy, noise, len(held_out), f"calibration {temperature!r}")
    figures = sender.sums(logits, held_out) if temperature == 0 else sender.counts(logits, held_out, temperature)
    return CountedClips(sender.count, sender.deviation * sender.scale, figures)


class _Numbers:
    """Makes exact numbers of clips into those that may leave."""

    def __init__(self, policy: Policy, noise: ReportNoise | None, clips: int, name: str) -> None:
        self._floor, self._noise, self._name = policy.report_classes, noise, name
        self.deviation = NOISE_SHARE * policy.evaluation_noise
        self.count = policy.rounded_count(clips)
        self.scale = self.count / clips

    def sums(self, logits: npt.NDArray[np.float64], held_out: FeatureTable) -> ConfidenceSums:
        excess, lost = confidence_sums(logits, held_out.y)
        first = self._one("excess", excess)
        noised = [self._one(f"lost {index}", value) for index, value in enumerate(lost.tolist())]
        above = self._within(noised[REFERENCE:], first, sign=-1)
        below = self._within(noised[:REFERENCE][::-1], first, sign=1)[::-1]
        return ConfidenceSums(first, (*below, *above))

    def counts(self, logits: npt.NDArray[np.float64], held_out: FeatureTable, temperature: float) -> ScoreCounts:
        classes, scores, answers = logits.shape[1], scores_at(logits, temperature), logits.argmax(axis=1)
        labelled = {int(label): int((held_out.y == label).sum()) for label in np.unique(held_out.y)}
        reported = reportable_classes(labelled, self._floor) if self._floor else []
        by_class = tuple(
            ClassScores(
                label,
                self._one(f"class {label}", int((answers == label).sum())),
                self._histogram(f"class {label} ", score_histogram(scores[answers == label], classes)),
            )
            for label in reported
        )
        return ScoreCounts(self._histogram("", score_histogram(scores, classes)), by_class)

    def _histogram(self, name: str, exact: npt.NDArray[np.int64]) -> Counts:
        noised = [self._one(f"{name}bin {index}", value) for index, value in enumerate(exact.tolist())]
        return self._within(noised, 0, sign=1)

    def _one(self, name: str, exact: float) -> int:
        """Return a number with noise, scaled to the number of clips that is reported, within its bounds."""
        drawn = 0.0 if self._noise is None else self.deviation * self._noise.draw(f"{self._name} {name}")
        return min(max(round((exact + drawn) * self.scale), -self._most), self._most)

    def _within(self, values: list[int], start: int, *, sign: int) -> Counts:
        """Return ``values`` so that no running sum from ``start`` is out of bounds; only absurd noise makes one so."""
        kept, total = [], start
        for value in values:
            after = min(max(total + sign * value, -self._most), self._most)
            kept.append(sign * (after - total))
            total = after
        return tuple(kept)

    @property
    def _most(self) -> int:
        return SPREAD * self.count


def require_countable(found: CountedClips, policy: Policy) -> None:
    """Check at the way out that numbers are what ``reported_calibration`` makes. Raises InvariantError."""
    wrong = not policy.reports or found.clips < 1 or bool(found.figures.problems(found.clips))
    if isinstance(found.figures, ScoreCounts) and found.figures.by_class and not policy.report_classes:
        wrong = True
    if wrong:
        raise InvariantError("numbers for a calibration that this silo's policy does not report were to be sent")
