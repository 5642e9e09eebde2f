"""What a run has cost in bytes when it was nearly as good as it got: to compare codecs by."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from .evaluations import Measured
from .history import RoundRow

SHARE = 0.95


@dataclass(frozen=True)
class Reached:
    """When a model first had ``SHARE`` of the last one's accuracy, and what the silos of a codec had moved by then."""

    codec: str  # of their updates
    round: int
    final_accuracy: float
    silos: int
    bytes_per_silo: float  # mean over them: models and updates, both directions, of all rounds up to this one


def bytes_to_share(rounds: Sequence[RoundRow], measured: Sequence[Measured]) -> list[Reached]:
    """One row for each codec that silos used, by name; empty unless two models were measured.

    A silo that changed its codec counts for the last one. Rounds that were abandoned cost bytes too.
    """
    accuracies = [(one.round, told.correct / told.count) for one in measured if (told := one.all) is not None]
    if len(accuracies) < 2:
        return []
    final = accuracies[-1][1]
    reached = next(number for number, accuracy in accuracies if accuracy >= SHARE * final)
    spent: dict[str, int] = defaultdict(int)
    codec: dict[str, str] = {}
    for row in rounds:
        for one in row.updates:
            codec[one.silo] = one.codec or "unknown"
            if row.round <= reached:
                spent[one.silo] += one.received_bytes + (one.sent_bytes or 0)
    return [
        Reached(name, reached, final, len(silos), fmean(spent[silo] for silo in silos))
        for name in sorted(set(codec.values()))
        if (silos := [silo for silo, used in codec.items() if used == name])
    ]
