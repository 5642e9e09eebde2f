"""Evaluation of models on a silo's held-out clips, and the choice of the model to use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from ...fedproto.head import Params
from ...fedproto.records import ClassCount, Evaluation
from .dataset import FeatureTable
from .trainer import HeadTrainer, log_softmax


@dataclass(frozen=True, eq=False)
class ClipResults:
    """A model's results on N clips, one by one. They stay in the silo."""

    losses: npt.NDArray[np.float64]  # [N], nats; infinite where the model's scores are not finite
    correct: npt.NDArray[np.bool_]  # [N]; False where they are not finite


def clip_results(trainer: HeadTrainer, params: Params, table: FeatureTable) -> ClipResults:
    """Return loss and prediction of every clip of ``table``."""
    losses, correct = np.empty(len(table)), np.empty(len(table), np.bool_)
    with np.errstate(all="ignore"):  # finite parameters can give scores that overflow
        for rows, scores in trainer.logits_by_batch(params, table.x):
            log_probability, y = log_softmax(scores), table.y[rows]
            finite = np.isfinite(scores).all(axis=1)
            losses[rows] = np.where(finite, -log_probability[np.arange(len(y)), y], np.inf)
            correct[rows] = finite & (log_probability.argmax(axis=1) == y)
    return ClipResults(losses, correct)


def evaluate_here(trainer: HeadTrainer, params: Params, table: FeatureTable) -> Evaluation | None:
    """Return the exact loss and correct predictions on ``table``, for use in the silo alone; None for an empty one."""
    if not len(table):
        return None
    results = clip_results(trainer, params, table)
    return Evaluation(float(results.losses.mean()), int(results.correct.sum()), len(table))


def class_counts(results: ClipResults, table: FeatureTable, floor: int) -> tuple[ClassCount, ...]:
    """Return the correct predictions of each class that ``reportable_classes`` allows; of none with a floor of 0."""
    if floor < 1:
        return ()
    counts = {int(label): int((table.y == label).sum()) for label in np.unique(table.y)}
    return tuple(
        ClassCount(label, int(results.correct[table.y == label].sum()), counts[label])
        for label in reportable_classes(counts, floor)
    )


def reportable_classes(counts: Mapping[int, int], floor: int) -> list[int]:
    """Return the classes (of clips by label) that can be reported one by one, ascending.

    Each has ``floor`` clips or more. The rest can be computed by subtraction, so it must be empty, or have ``floor``
    clips or more too: otherwise the smallest class is withheld with it.
    """
    reported = sorted(
        (label for label, count in counts.items() if count >= floor), key=lambda label: (counts[label], label)
    )
    while reported and 0 < sum(counts.values()) - sum(counts[label] for label in reported) < floor:
        reported.pop(0)
    return sorted(reported)


class ModelChoice(msgspec.Struct, frozen=True):
    """The choice of the model that a silo uses after a run."""

    own: bool  # its own last model, because the final one is worse
    final: Evaluation | None  # on the held-out clips; None: none are held out
    mine: Evaluation | None  # None: there is no own one

    @property
    def text(self) -> str:
        """The reason, for the status."""
        if self.final is None or self.mine is None:
            return "the final model is in use: there was nothing to compare it with"
        figures = (
            f"{self.final.correct} of {self.final.count} held-out clips right, this silo's own {self.mine.correct}"
        )
        which = "this silo's own model stays in use (policy.refuse_worse)" if self.own else "it is in use"
        return f"the final model gets {figures}: {which}"


def choose_better(final: Evaluation | None, mine: Evaluation | None) -> ModelChoice:
    """Choose the own model only if it predicts more of the same clips correctly."""
    worse = final is not None and mine is not None and mine.correct > final.correct
    return ModelChoice(worse, final, mine)
