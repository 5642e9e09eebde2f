"""Communication cost: bytes that a silo moved until a model was nearly as accurate as the last one, by codec."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ..settings import CoordinatorSettings
from ..storage.evaluations import ModelEvaluation
from .history import History, RoundRow

SHARE = 0.95  # of the last model's accuracy


@dataclass(frozen=True)
class CommunicationCost:
    """Bytes that the silos of one codec moved until a model had ``SHARE`` of the last one's accuracy."""

    codec: str  # of their updates
    round: int  # whose model was the first with that accuracy
    final_accuracy: float
    silos: int
    bytes_per_silo: float  # mean over them: models and updates, both directions, of all rounds up to this one


def communication_costs(rounds: Sequence[RoundRow], evaluations: Sequence[ModelEvaluation]) -> list[CommunicationCost]:
    """Return one row for each codec that silos used, by name; empty unless two models were evaluated.

    A silo that changed its codec counts for the last one. Rounds that were abandoned cost bytes too.
    """
    accuracies = [
        (model.round, found.correct / found.count) for model in evaluations if (found := model.all) is not None
    ]
    if len(accuracies) < 2:
        return []
    final = accuracies[-1][1]
    reached = next(number for number, accuracy in accuracies if accuracy >= SHARE * final)
    spent: dict[str, int] = defaultdict(int)
    codec: dict[str, str] = {}
    for row in rounds:
        for update in row.updates:
            codec[update.silo] = update.codec or "unknown"
            if row.round <= reached:
                spent[update.silo] += update.received_bytes + (update.sent_bytes or 0)
    return [
        CommunicationCost(name, reached, final, len(silos), fmean(spent[silo] for silo in silos))
        for name in sorted(set(codec.values()))
        if (silos := [silo for silo, used in codec.items() if used == name])
    ]


def communication_cost_of(settings: CoordinatorSettings) -> list[dict[str, Any]]:
    """Return ``communication_costs`` of the run as objects for --json."""
    with History.open(settings.server.state, settings.run.name) as history:
        return [vars(cost) for cost in communication_costs(history.rounds(), history.model_evaluations())]


def communication_cost_lines(costs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return ``communication_cost_of`` as text."""
    return [
        f"95 % of the last accuracy ({cost['final_accuracy']:.3f}) in round {cost['round']}: "
        f"{cost['bytes_per_silo'] / 1e6:.2f} MB per silo in {cost['codec']} ({cost['silos']} silos)"
        for cost in costs
    ]
