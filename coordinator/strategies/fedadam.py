"""FedAdam: Adam at the coordinator, on the step from the round's model to the combined updates.

Reddi et al. 2021, algorithm 2 (https://arxiv.org/abs/2003.00295). Settings: ``server_adam`` (the learning rate η),
``server_beta1``, ``server_beta2``, ``server_tau``.
"""

from __future__ import annotations

import math

import numpy as np

from ...fedproto.head import Params
from ...fedproto.records import Strategy
from .algorithm import Algorithm, RoundInput, Step
from .contributions import Sums, float32, value_of


def fedadam(target: Sums, velocity: Sums, squares: Sums, base: Params, strategy: Strategy) -> tuple[Params, Sums, Sums]:
    """Return the next model w and the next moments m and v.

    Δ = target − w_t, m ← β₁·m + (1 − β₁)·Δ, v ← β₂·v + (1 − β₂)·Δ², w ← w_t + η·m / (√v + τ), without bias
    correction; before the first round m = 0 and v = τ², the least that the paper allows. The paper's Δ is the plain
    mean of the silos' differences; here it is weighted as FedAvg's mean is. ``target`` is the combined update before it
    is rounded to float32.
    """
    b1, b2, tau = strategy.server_beta1, strategy.server_beta2, strategy.server_tau
    step = {name: tensor - base[name] for name, tensor in target.items()}
    m = {name: value_of(velocity, name) * b1 + (1 - b1) * delta for name, delta in step.items()}
    v = {name: value_of(squares, name, tau**2) * b2 + (1 - b2) * np.square(delta) for name, delta in step.items()}
    rate = strategy.server_adam
    return float32({name: base[name] + rate * m[name] / (np.sqrt(v[name]) + tau) for name in step}), m, v


def _validate(strategy: Strategy) -> list[str]:
    wrong = []
    if not (strategy.server_adam >= 0 and math.isfinite(strategy.server_adam)):
        wrong.append("server_adam: expected 0 (none) or more")
    for field in ("server_beta1", "server_beta2"):
        if not 0 <= getattr(strategy, field) < 1:
            wrong.append(f"{field}: expected 0 or more, and less than 1")
    if not (strategy.server_tau > 0 and math.isfinite(strategy.server_tau)):
        wrong.append("server_tau: expected more than 0")
    if not strategy.server_adam:
        for field in ("server_beta1", "server_beta2", "server_tau"):
            default = getattr(Strategy(), field)
            if getattr(strategy, field) != default:
                wrong.append(f"{field}: fedadam only; expected {default}, or server_adam above 0")
    return wrong


def _step(round_input: RoundInput, target: Sums) -> Step:
    arrays = round_input.arrays
    velocity, squares = arrays.get("velocity", {}), arrays.get("squares", {})
    params, velocity, squares = fedadam(target, velocity, squares, round_input.base, round_input.strategy)
    return params, {"velocity": velocity, "squares": squares}


FEDADAM = Algorithm(
    setting="server_adam",
    enabled=lambda strategy: strategy.server_adam > 0,
    validate=_validate,
    step=_step,
    carries=("velocity", "squares"),
)
