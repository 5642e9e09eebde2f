"""What the silos told about models, read from the rows: which model is best, and how sites' models do elsewhere.

The evaluations inside the updates of a round are of the model that the round started from, so they are counted for the
round before. The final model is measured only where the run asks for it (``final_evaluation``).
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

FINAL = ""  # the subject that is the run's final model; other subjects are silos' names
COUNTED = """
SELECT number, silo, loss, correct, count, by_class FROM updates JOIN rounds USING (run)
WHERE run = ? AND round = number AND status = 'closed' ORDER BY number, silo
"""
FINALS = (
    "SELECT silo, subject, loss, correct, count, by_class FROM final_evaluations WHERE run = ? ORDER BY silo, subject"
)


@dataclass(frozen=True)
class Measured:
    """How the model of one round did."""

    round: int  # that made it; 0: the start
    silos: tuple[tuple[str, Evaluation], ...]  # who told, ascending

    @property
    def all(self) -> Evaluation | None:
        """All silos' held-out clips as one set; None when no one told."""
        return pooled([told for _, told in self.silos])

    @property
    def by_class(self) -> tuple[ClassCount, ...]:
        """Sums over the silos that told a class, ascending labels."""
        return pooled_classes([told for _, told in self.silos])


@dataclass(frozen=True)
class Cell:
    """How one site's model did on another's held-out clips."""

    data: str  # the silo that measured
    model: str  # the silo that trained it in the last round; FINAL: the run's final model
    evaluation: Evaluation


def measured_models(database: Connection, run: str) -> list[Measured]:
    """The models of all closed rounds that a later round, or the end of the run, measured; by round."""
    told: dict[int, list[tuple[str, Evaluation]]] = {}
    for number, silo, loss, correct, count, by_class in database.execute(COUNTED, (run,)):
        found = told.setdefault(number, [])
        if count is not None:
            found.append((silo, Evaluation(loss, correct, count, decode_classes(by_class))))
    closed = list(told)
    measured = [Measured(before, tuple(told[after])) for before, after in zip([0, *closed], closed, strict=False)]
    final = [(cell.data, cell.evaluation) for cell in cells(database, run) if cell.model == FINAL]
    if closed and final:
        measured.append(Measured(closed[-1], tuple(final)))
    return measured


def cells(database: Connection, run: str) -> list[Cell]:
    """What the final evaluation found, by data and model."""
    rows = database.execute(FINALS, (run,))
    return [
        Cell(silo, subject, Evaluation(loss, correct, count, decode_classes(by_class)))
        for silo, subject, loss, correct, count, by_class in rows
    ]


def best_of(measured: Sequence[Measured]) -> tuple[int, Evaluation] | None:
    """The round whose model got the largest share of held-out clips right, the later one of equals.

    Only models count that were measured on at least half as many clips as the one measured on most: a round in which
    few silos told must not win by luck. The start of the run is no candidate: nothing was learnt yet.
    """
    found = [(one.round, told) for one in measured if one.round > 0 and (told := one.all) is not None]
    enough = max((told.count for _, told in found), default=0) / 2
    return max(
        (one for one in found if one[1].count >= enough),
        key=lambda one: (one[1].correct / one[1].count, one[0]),
        default=None,
    )


def pooled(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """Evaluate all silos' held-out clips as one set: mean loss weighted by clips, correct predictions, clips.

    In the given order (ascending silo name); None when no silo reported.
    """
    count = sum(part.count for part in evaluations)
    if count == 0:
        return None
    loss = sum(part.loss * part.count for part in evaluations) / count
    return Evaluation(loss=loss, correct=sum(part.correct for part in evaluations), count=count)


def pooled_classes(evaluations: Sequence[Evaluation]) -> tuple[ClassCount, ...]:
    """Hits and clips by class, over those that told it."""
    sums: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for one in (one for told in evaluations for one in told.by_class):
        sums[one.label][0] += one.correct
        sums[one.label][1] += one.count
    return tuple(ClassCount(label, *sums[label]) for label in sorted(sums))


def encode_classes(by_class: Sequence[ClassCount]) -> str | None:
    """As the column holds it: ``[[label, correct, count], …]``; NULL when nothing was told."""
    if not by_class:
        return None
    return msgspec.json.encode([(one.label, one.correct, one.count) for one in by_class]).decode()


def decode_classes(text: str | None) -> tuple[ClassCount, ...]:
    """Of a column."""
    rows: list[list[Any]] = msgspec.json.decode(text) if text else []
    return tuple(ClassCount(*row) for row in rows)
