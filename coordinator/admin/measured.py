"""The accuracy of each round's own model, or the reason why it is not known.

A round's updates bring evaluations of the model that the round started from, so a model is measured in the round after
the one that made it; the last one after the run, where ``run.final_evaluation`` asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...fedproto.records import Evaluation
from ..settings import CoordinatorSettings
from ..storage.evaluations import best_model
from .history import History, RoundRow

# Why a model has no accuracy: the word for a table's cell, and the sentence.
MISSING = {
    "": "",
    "initial": "the initial model: no round has closed, so it is not trained",
    "no-model": "the round made no model",
    "pending": "not measured yet: the silos report it with their next updates",
    "waiting": "not measured yet: the silos report it when they next ask, after the last round",
    "not-asked": 'not measured: run.final_evaluation is "none"; "model" has silos measure the last model',
    "no-report": "not measured: no silo reports evaluations ([policy] report_evaluation, or too few held-out clips)",
}


@dataclass(frozen=True)
class MeasuredModels:
    """Evaluations of a run's models, by the round that made them (0: the initial one)."""

    evaluations: Mapping[int, Evaluation]
    reasons: Mapping[int, str]  # by round without one: a key of MISSING
    best: tuple[int, Evaluation] | None  # round and evaluation

    @classmethod
    def of(cls, history: History, rows: Sequence[RoundRow], settings: CoordinatorSettings) -> MeasuredModels:
        """Read them; ``rows`` are the history's rounds."""
        found = history.model_evaluations()
        evaluations = {model.round: model.all for model in found if model.all is not None}
        closed = [row.round for row in rows if row.status == "closed"]
        reasons = {row.round: "no-report" if row.round in closed else "no-model" for row in rows}
        if closed:
            reasons[closed[-1]] = _missing_of_last(history, rows, settings)
        reasons[0] = "initial"
        return cls(evaluations, {number: reasons[number] for number in reasons.keys() - evaluations}, best_model(found))

    def evaluation(self, round_number: int) -> Evaluation | None:
        """Return the evaluation of the model that a round made; None: see ``missing``."""
        return self.evaluations.get(round_number)

    def missing(self, round_number: int) -> str:
        """Return the word why the model of a round has no evaluation (a key of MISSING); empty when it has one."""
        return self.reasons.get(round_number, "")

    def missing_text(self, round_number: int) -> str:
        """Return ``missing`` as a sentence."""
        return MISSING[self.missing(round_number)]


def _missing_of_last(history: History, rows: Sequence[RoundRow], settings: CoordinatorSettings) -> str:
    """Return why the model of the last closed round has no evaluation."""
    closed = [row for row in rows if row.status == "closed"]
    if len(closed) < settings.run.rounds:
        return "pending"
    if settings.run.final_evaluation == "none":
        return "not-asked"
    answered = {update.silo for update in closed[-1].updates} <= history.final_reports().keys()
    return "no-report" if answered else "waiting"
