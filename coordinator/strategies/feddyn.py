"""FedDyn: silos and coordinator each carry a correction, so that local optima agree with the global one.

Acar et al. 2021, algorithm 1 (https://arxiv.org/abs/2111.04263). Every silo minimises
L(w) − ⟨hᵢ, w⟩ + (alpha/2)·‖w − w_t‖² (agent/training/feddyn.py); the coordinator corrects the unweighted mean by its
own h. It combines and steps in its own way, so it goes with no other ``combine``, ``clip`` or server optimiser.
Settings: ``name = "feddyn"``, ``alpha``, whose rule fedproto/records.py holds because silos check it too.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ...base.errors import InvariantError
from ...fedproto.head import Params, TensorLayout
from .algorithm import Algorithm, RoundInput, Step
from .contributions import Contribution, Sums, checked, float32, value_of, zeros


def feddyn(
    spec: TensorLayout, contributions: Iterable[Contribution], h: Sums, base: Params, alpha: float, silos: int
) -> tuple[Params, Sums]:
    """Return the next model w and the next h.

    h ← h − (alpha/m) · Σ (wᵢ − w_t) over those that reported, m = ``silos``, all of them;
    w ← the unweighted mean of the reported wᵢ, minus h/alpha. In float64, in silo order.
    Raises DataError from ``check_params``; InvariantError for no update, or more updates than silos.
    """
    total = zeros(spec)
    reported = 0
    for part in checked(spec, contributions):
        for name, tensor in part.params.items():
            total[name] += tensor
        reported += 1
    if reported == 0 or silos < reported:
        raise InvariantError(f"a mean of {reported} updates of {silos} silos")
    after = {
        name: value_of(h, name) - alpha / silos * (tensor - reported * base[name].astype(np.float64))
        for name, tensor in total.items()
    }
    return float32({name: tensor / reported - after[name] / alpha for name, tensor in total.items()}), after


def _whole_round(round_input: RoundInput) -> Step:
    h = round_input.arrays.get("h", {})
    params, h = feddyn(
        round_input.spec, round_input.contributions, h, round_input.base, round_input.strategy.alpha, round_input.silos
    )
    return params, {"h": h}


FEDDYN = Algorithm(
    setting="name",
    enabled=lambda strategy: strategy.name == "feddyn",
    validate=lambda strategy: strategy.term_problems("feddyn", "alpha"),
    whole_round=_whole_round,
    carries=("h",),
    far_counts=True,
)
