"""Measuring models on a silo's held-out clips, and what of it may be told class by class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from ..fedproto.records import ClassCount, Evaluation

if TYPE_CHECKING:
    from ..fedproto.head import Params
    from .training.dataset import FeatureTable
    from .training.trainer import HeadTrainer


def measure(trainer: HeadTrainer, params: Params, table: FeatureTable, class_floor: int) -> Evaluation | None:
    """Loss and hits of a model on ``table``; None for an empty one.

    ``class_floor``: classes with at least so many clips are told one by one, as far as ``classes_to_tell`` lets
    them; 0: none.
    """
    import numpy as np

    from .training.trainer import log_softmax

    if not len(table):
        return None
    told = trainer.evaluate(params, table)
    if class_floor < 1:
        return told
    hits = log_softmax(trainer.logits(params, table.x)).argmax(axis=1) == table.y
    counts = {int(label): int((table.y == label).sum()) for label in np.unique(table.y)}
    by_class = tuple(
        ClassCount(label, int(hits[table.y == label].sum()), counts[label])
        for label in classes_to_tell(counts, class_floor)
    )
    return Evaluation(told.loss, told.correct, told.count, by_class)


def classes_to_tell(counts: Mapping[int, int], floor: int) -> list[int]:
    """The classes (clips by label) that can be told one by one, ascending.

    Each has ``floor`` clips or more. What is left can be had by subtracting, so it must be nothing, or ``floor`` clips
    or more too: otherwise the smallest class is kept back with it.
    """
    told = sorted(
        (label for label, count in counts.items() if count >= floor), key=lambda label: (counts[label], label)
    )
    while told and 0 < sum(counts.values()) - sum(counts[label] for label in told) < floor:
        told.pop(0)
    return sorted(told)


class Adoption(msgspec.Struct, frozen=True):
    """Which model a silo takes into use at the end of a run, and why."""

    own: bool  # its own last one, because the final one is worse
    final: Evaluation | None  # on the held-out clips; None: none are held out
    mine: Evaluation | None  # None: there is no own one

    @property
    def words(self) -> str:
        """For the status."""
        if self.final is None or self.mine is None:
            return "the final model is in use: there was nothing to compare it by"
        figures = (
            f"{self.final.correct} of {self.final.count} held-out clips right, this silo's own {self.mine.correct}"
        )
        which = "the own one is in use (policy.refuse_worse)" if self.own else "it is in use"
        return f"the final model gets {figures}: {which}"


def adopt(final: Evaluation | None, mine: Evaluation | None) -> Adoption:
    """The own model is kept only if it got more of the same clips right."""
    worse = final is not None and mine is not None and mine.correct > final.correct
    return Adoption(worse, final, mine)
