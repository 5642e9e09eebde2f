"""Evaluations that silos reported, read from the rows: of each round's model, of the best one, of single silos' models.

The evaluations inside a round's updates are of the model that the round started from, so they belong to the round
before. The final model is evaluated only where the run asks for it (``final_evaluation``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from ...fedproto.records import ClassCount, Evaluation

if TYPE_CHECKING:
    from apsw import Connection

FINAL = ""  # subject: the run's final model; other subjects are silos' names
COUNTED = """
SELECT number, silo, loss, correct, count, by_class FROM updates JOIN rounds USING (run)
WHERE run = ? AND round = number AND status = 'closed' ORDER BY number, silo
"""
FINALS = (
    "SELECT silo, subject, loss, correct, count, by_class FROM final_evaluations WHERE run = ? ORDER BY silo, subject"
)


@dataclass(frozen=True)
class ModelEvaluation:
    """Evaluations of the model of one round."""

    round: int  # that made it; 0: the initial model
    silos: tuple[tuple[str, Evaluation], ...]  # by name, ascending; only those that reported

    @property
    def all(self) -> Evaluation | None:
        """Evaluation on all silos' held-out clips together; None when no silo reported."""
        return pool_evaluations([evaluation for _, evaluation in self.silos])

    @property
    def by_class(self) -> tuple[ClassCount, ...]:
        """Sums over the silos that reported a class, ascending labels."""
        return pool_classes([evaluation for _, evaluation in self.silos])


@dataclass(frozen=True)
class CrossEvaluation:
    """Evaluation of one silo's model on another's held-out clips."""

    data: str  # the silo that evaluated it
    model: str  # the silo that trained it in the last round; FINAL: the run's final model
    evaluation: Evaluation


def model_evaluations(database: Connection, run: str) -> list[ModelEvaluation]:
    """Return the evaluations of the models of closed rounds, by round."""
    reported: dict[int, list[tuple[str, Evaluation]]] = {}
    for number, silo, loss, correct, count, by_class in database.execute(COUNTED, (run,)):
        found = reported.setdefault(number, [])
        if count is not None:
            found.append((silo, Evaluation(loss, correct, count, decode_classes(by_class))))
    closed = list(reported)
    evaluations = [
        ModelEvaluation(before, tuple(reported[after])) for before, after in zip([0, *closed], closed, strict=False)
    ]
    final = [(cell.data, cell.evaluation) for cell in cross_evaluations(database, run) if cell.model == FINAL]
    if closed and final:
        evaluations.append(ModelEvaluation(closed[-1], tuple(final)))
    return evaluations


def cross_evaluations(database: Connection, run: str) -> list[CrossEvaluation]:
    """Return the final evaluation's results, by data and model."""
    rows = database.execute(FINALS, (run,))
    return [
        CrossEvaluation(silo, subject, Evaluation(loss, correct, count, decode_classes(by_class)))
        for silo, subject, loss, correct, count, by_class in rows
    ]


def best_model(evaluations: Sequence[ModelEvaluation]) -> tuple[int, Evaluation] | None:
    """Return the round whose model has the highest accuracy on held-out clips, the later one of equals.

    Only models count that were evaluated on at least half as many clips as the model with most: a round in which few
    silos reported must not win by luck. The initial model is no candidate.
    """
    found = [(one.round, evaluation) for one in evaluations if one.round > 0 and (evaluation := one.all) is not None]
    enough = max((evaluation.count for _, evaluation in found), default=0) / 2
    return max(
        (one for one in found if one[1].count >= enough),
        key=lambda one: (one[1].correct / one[1].count, one[0]),
        default=None,
    )


def pool_evaluations(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """Return the evaluation of all silos' held-out clips together: mean loss weighted by clips, sums of the others.

    In the given order (ascending silo name); None when no silo reported.
    """
    count = sum(part.count for part in evaluations)
    if count == 0:
        return None
    loss = sum(part.loss * part.count for part in evaluations) / count
    return Evaluation(loss=loss, correct=sum(part.correct for part in evaluations), count=count)


def pool_classes(evaluations: Sequence[Evaluation]) -> tuple[ClassCount, ...]:
    """Return correct predictions and clips by class, over the evaluations that report it."""
    sums: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for one in (one for evaluation in evaluations for one in evaluation.by_class):
        sums[one.label][0] += one.correct
        sums[one.label][1] += one.count
    return tuple(ClassCount(label, *sums[label]) for label in sorted(sums))


def encode_classes(by_class: Sequence[ClassCount]) -> str | None:
    """Return the text of a ``by_class`` column: ``[[label, correct, count], …]``; None when nothing was reported."""
    if not by_class:
        return None
    return msgspec.json.encode([(one.label, one.correct, one.count) for one in by_class]).decode()


def decode_classes(text: str | None) -> tuple[ClassCount, ...]:
    """Return what ``encode_classes`` wrote."""
    rows: list[list[Any]] = msgspec.json.decode(text) if text else []
    return tuple(ClassCount(*row) for row in rows)
