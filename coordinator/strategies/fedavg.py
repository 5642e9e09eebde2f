"""FedAvg, the mean of the silos' models weighted by their examples; and FedAvgM, FedAvg with momentum at the server.

FedAvg: McMahan et al. 2017, algorithm 1 (https://arxiv.org/abs/1602.05629), equation 12 of the paper (docs/paper.md).
FedAvgM: Hsu et al. 2019 (https://arxiv.org/abs/1909.06335). Settings: ``combine = "mean"``, ``server_momentum``.
"""

from __future__ import annotations

from collections.abc import Iterable

from ...fedproto.head import Params, TensorLayout
from ...fedproto.records import Strategy
from .algorithm import Algorithm, RoundInput, Step
from .contributions import Contribution, Sums, float32, value_of, weighted_mean


def fedavg(spec: TensorLayout, contributions: Iterable[Contribution]) -> Params:
    """Return float32(Σ nᵢ·wᵢ / Σ nᵢ), computed in float64.

    ``contributions`` come in ascending order of silo name, so that the result does not depend on
    the order of arrival, to the bit: nᵢ·wᵢ is exact in float64 (24 bits of mantissa times at most 29),
    only the sums round, and always in the same order. Memory is one model in float64, however many contributions there
    are on disk. Any error raises and there is no result: DataError from ``check_params``, InvariantError for an
    order, a weight or a number of contributions that the rounds never let through.
    """
    return float32(weighted_mean(spec, contributions))


def fedavgm(target: Sums, velocity: Sums, base: Params, momentum: float) -> tuple[Params, Sums]:
    """Return the next model w and the next velocity v: v ← momentum · v + (w_t − target), w ← w_t − v.

    ``target`` is the combined update before it is rounded to float32.
    """
    moved = {name: value_of(velocity, name) * momentum + (base[name] - tensor) for name, tensor in target.items()}
    return float32({name: base[name] - tensor for name, tensor in moved.items()}), moved


def _validate_momentum(strategy: Strategy) -> list[str]:
    if 0 <= strategy.server_momentum < 1:
        return []
    return ["server_momentum: expected 0 (none) or more, and less than 1"]


def _momentum_step(round_input: RoundInput, target: Sums) -> Step:
    velocity = round_input.arrays.get("velocity", {})
    params, velocity = fedavgm(target, velocity, round_input.base, round_input.strategy.server_momentum)
    return params, {"velocity": velocity}


FEDAVG = Algorithm(
    setting="combine",
    enabled=lambda strategy: strategy.combine == "mean" and strategy.name != "feddyn",
    combine=lambda round_input: weighted_mean(round_input.spec, round_input.contributions),
    weighs=True,
)
FEDAVGM = Algorithm(
    setting="server_momentum",
    enabled=lambda strategy: strategy.server_momentum > 0,
    validate=_validate_momentum,
    step=_momentum_step,
    carries=("velocity",),
)
