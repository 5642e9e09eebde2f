"""Evaluations that silos reported, read from the rows: of each round's model, of the best one, of single silos' models.

The evaluations inside a round's updates are of the model that the round started from, so they belong to the round
before. The final model is evaluated only where the run asks for it (``final_evaluation``).

Counts, correct predictions and losses are a silo's own word, like its examples (strategies/claims.py). Once three silos
have reported, one counts for at most ``CLIPS_TIMES`` times the clips of the median silo, and the best model is chosen
among those that the median silo finds good.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import msgspec

from ...fedproto.records import ClassCount, Evaluation
from ..strategies.claims import lower_median
from ..strategies.norm_bound import SILOS_NEEDED

if TYPE_CHECKING:
    from apsw import Connection

CLIPS_TIMES = 3  # the clips that a silo's evaluation counts for at most, in the median silo's
MEDIAN_SLACK = 0.1  # of accuracy: how far the median silo's may be below its highest for a model to be the best
LARGEST_LOSS = 1e3  # that enters a mean; a useful model's is far below
FINAL = ""  # subject: the run's final model; other subjects are silos' names
OWN = "*own"  # subject, no silo's name: a head that the silo trained on its own clips alone
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
    most: int | None = None  # clips that one silo counts for at most; None: no limit

    @property
    def all(self) -> Evaluation | None:
        """Evaluation on all silos' held-out clips together; None when no silo reported."""
        return pool_evaluations([evaluation for _, evaluation in self.silos], self.most)

    @property
    def by_class(self) -> tuple[ClassCount, ...]:
        """Sums over the silos that reported a class, ascending labels."""
        return pool_classes([evaluation for _, evaluation in self.silos], self.most)


@dataclass(frozen=True)
class CrossEvaluation:
    """Evaluation of one silo's model on another's held-out clips."""

    data: str  # the silo that evaluated it
    model: str  # the silo that trained it in the last round; FINAL: the run's final model; OWN: a head trained alone
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
    most = most_clips((silo, one.count) for model in evaluations for silo, one in model.silos)
    return [replace(model, most=most) for model in evaluations]


def cross_evaluations(database: Connection, run: str) -> list[CrossEvaluation]:
    """Return the final evaluation's results, by data and model."""
    rows = database.execute(FINALS, (run,))
    return [
        CrossEvaluation(silo, subject, Evaluation(loss, correct, count, decode_classes(by_class)))
        for silo, subject, loss, correct, count, by_class in rows
    ]


@dataclass(frozen=True)
class SiloGain:
    """A silo's gain: the final model's accuracy on its held-out clips, less that of a head that it trained alone."""

    silo: str
    final: Evaluation
    own: Evaluation

    @property
    def gain(self) -> float:
        """Difference of the accuracies, -1 to 1; both have the silo's noise."""
        return self.final.correct / self.final.count - self.own.correct / self.own.count


def silo_gains(cells: Sequence[CrossEvaluation]) -> list[SiloGain]:
    """Return the gains of the silos that reported both evaluations, the smallest first."""
    found = {(cell.data, cell.model): cell.evaluation for cell in cells}
    gains = [
        SiloGain(silo, found[silo, FINAL], own)
        for (silo, model), own in found.items()
        if model == OWN and (silo, FINAL) in found
    ]
    return sorted(gains, key=lambda one: (one.gain, one.silo))


def median_clips(counts: Iterable[tuple[str, int]]) -> int | None:
    """Return the clips of the median silo, from every count that each silo reported; None with too few silos.

    Of a silo it is the lower median of its counts, so that it cannot differ for the rounds in which few others report.
    """
    by_silo: dict[str, list[int]] = defaultdict(list)
    for silo, count in counts:
        by_silo[silo].append(count)
    if len(by_silo) < SILOS_NEEDED:
        return None
    return lower_median([lower_median(found) for found in by_silo.values()])


def most_clips(counts: Iterable[tuple[str, int]]) -> int | None:
    """Return the clips that a silo's evaluation counts for at most; None for no limit. ``counts``: as above."""
    median = median_clips(counts)
    return None if median is None else CLIPS_TIMES * median


def best_model(evaluations: Sequence[ModelEvaluation]) -> tuple[int, Evaluation] | None:
    """Return the round whose model has the highest accuracy on held-out clips, the later one of equals.

    Only models count that were evaluated on at least half as many clips as the model with most, a silo's counted up to
    the median silo's: a round in which few silos reported must not win by luck, nor a silo end the others' by a claim.
    And the median silo's accuracy must not be lower than for another model by more than ``MEDIAN_SLACK``: a few silos
    that report what they like cannot choose a bad model. The initial model is no candidate.
    """
    found = {one: evaluation for one in evaluations if one.round > 0 and (evaluation := one.all) is not None}
    median = median_clips((silo, evaluation.count) for one in found for silo, evaluation in one.silos)
    clips = {one: _clips(one, median) for one in found}
    enough = [one for one in found if 2 * clips[one] >= max(clips.values())]
    least = max((_median_accuracy(one) for one in enough), default=0.0) - MEDIAN_SLACK - 1e-9
    good = enough if median is None else [one for one in enough if _median_accuracy(one) >= least]
    return max(
        ((one.round, found[one]) for one in good), key=lambda one: (one[1].correct / one[1].count, one[0]), default=None
    )


def _clips(model: ModelEvaluation, most: int | None) -> int:
    return sum(one.count if most is None else min(one.count, most) for _, one in model.silos)


def _median_accuracy(model: ModelEvaluation) -> float:
    return lower_median([one.correct / one.count for _, one in model.silos])


def pool_evaluations(evaluations: Sequence[Evaluation], most: int | None = None) -> Evaluation | None:
    """Return the evaluation of all silos' held-out clips together: mean loss weighted by clips, sums of the others.

    In the given order (ascending silo name); None when no silo reported. ``most``: clips that one counts for at most;
    its correct predictions count in proportion, and the sum is rounded.
    """
    clips = [part.count if most is None else min(part.count, most) for part in evaluations]
    count = sum(clips)
    if count == 0:
        return None
    loss = sum(min(part.loss, LARGEST_LOSS) * own for part, own in zip(evaluations, clips, strict=True)) / count
    correct = sum(Fraction(part.correct * own, part.count) for part, own in zip(evaluations, clips, strict=True))
    return Evaluation(loss=loss, correct=round(correct), count=count)


def pool_classes(evaluations: Sequence[Evaluation], most: int | None = None) -> tuple[ClassCount, ...]:
    """Return correct predictions and clips by class, over the evaluations that report it; ``most`` as above."""
    sums: Mapping[int, list[Fraction]] = defaultdict(lambda: [Fraction(0), Fraction(0)])
    for evaluation in evaluations:
        share = Fraction(1 if most is None else min(evaluation.count, most), 1 if most is None else evaluation.count)
        for one in evaluation.by_class:
            sums[one.label][0] += one.correct * share
            sums[one.label][1] += one.count * share
    return tuple(ClassCount(label, round(sums[label][0]), max(1, round(sums[label][1]))) for label in sorted(sums))


def encode_classes(by_class: Sequence[ClassCount]) -> str | None:
    """Return the text of a ``by_class`` column: ``[[label, correct, count], …]``; None when nothing was reported."""
    if not by_class:
        return None
    return msgspec.json.encode([(one.label, one.correct, one.count) for one in by_class]).decode()


def decode_classes(text: str | None) -> tuple[ClassCount, ...]:
    """Return what ``encode_classes`` wrote."""
    rows: list[list[Any]] = msgspec.json.decode(text) if text else []
    return tuple(ClassCount(*row) for row in rows)
