"""Evaluation of models on a silo's held-out clips, and the choice of the model to use."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from ...fedproto.head import Params
from ...fedproto.records import ClassCount, Evaluation
from .dataset import FeatureTable
from .trainer import HeadTrainer, log_softmax


def evaluate(trainer: HeadTrainer, params: Params, table: FeatureTable, class_floor: int) -> Evaluation | None:
    """Return loss and correct predictions of a model on ``table``; None for an empty table.

    ``class_floor``: classes with at least so many clips are counted one by one, as far as ``reportable_classes``
    allows; 0: none.
    """
    if not len(table):
        return None
    total = trainer.evaluate(params, table)
    if class_floor < 1:
        return total
    correct = log_softmax(trainer.logits(params, table.x)).argmax(axis=1) == table.y
    counts = {int(label): int((table.y == label).sum()) for label in np.unique(table.y)}
    by_class = tuple(
        ClassCount(label, int(correct[table.y == label].sum()), counts[label])
        for label in reportable_classes(counts, class_floor)
    )
    return Evaluation(total.loss, total.correct, total.count, by_class)


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
