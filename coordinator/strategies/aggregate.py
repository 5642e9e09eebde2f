"""How the silos' models become one: pure arithmetic, nothing else.

A round goes through three steps, each a function with its paper: the updates may be shortened (``robust.clipped``),
they are combined (mean, median, trimmed mean), and the model moves there at once or by a server optimiser
(``fedavgm``, ``fedadam``). FedDyn does all of it in its own way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from ...base.errors import InvariantError
from ...fedproto.head import HeadSpec, Params
from ...fedproto.records import Evaluation, RunSettings, Strategy
from .contributions import Contribution, Sums, checked, float32, value_of, weighted_mean, zeros
from .robust import clipped, median, trimmed_mean


@dataclass(frozen=True, eq=False)
class ServerState:
    """What the coordinator carries from round to round beside the model."""

    left: int  # rounds that must still close
    h: Sums = field(default_factory=dict)  # FedDyn's
    velocity: Sums = field(default_factory=dict)  # FedAvgM's v, FedAdam's m
    squares: Sums = field(default_factory=dict)  # FedAdam's v
    residual: Sums = field(
        default_factory=dict
    )  # what a lossy codec left out of the model (serving/model_broadcast.py)
    tail: Sums = field(default_factory=dict)  # sum of the models of the last rounds, for average_last
    tail_count: int = 0  # models in ``tail``


@dataclass(frozen=True, eq=False)
class Aggregated:
    """What a round came to."""

    params: Params
    state: ServerState


def first_state(run: RunSettings) -> ServerState:
    """Before round 1."""
    return ServerState(left=run.rounds)


def aggregate(
    strategy: Strategy,
    spec: HeadSpec,
    base: Params,
    contributions: Iterable[Contribution],
    state: ServerState,
    silos: int,
) -> Aggregated:
    """A round's new model and the coordinator's next state, for every strategy.

    ``base``: the model that the round started from. ``contributions``: as ``fedavg`` wants them; with ``clip``,
    ``median`` or ``trimmed_mean`` they are run through more than once. ``silos``: how many there are in all, whether
    they reported or not (FedDyn). Call once for each round that closes.
    Raises DataError and InvariantError, as ``fedavg`` does.
    """
    if strategy.name == "feddyn":
        params, h = feddyn(spec, contributions, state.h, base, strategy.alpha, silos)
        state = replace(state, h=h)
    else:
        if strategy.clip > 0.0:
            contributions = clipped(spec, contributions, base, strategy.clip)
        params, state = _moved(strategy, base, _combined(strategy, spec, contributions), state)
    return _tail_averaged(params, replace(state, left=state.left - 1), strategy.average_last)


def fedavg(spec: HeadSpec, contributions: Iterable[Contribution]) -> Params:
    """The mean of the silos' models weighted by their examples: float32(Σ nᵢ·wᵢ / Σ nᵢ), in float64.

    Equation 12 of the paper; McMahan et al. 2017, algorithm 1 (https://arxiv.org/abs/1602.05629).

    ``contributions`` come in ascending order of silo name, so that the result does not depend on
    the order of arrival, to the bit: nᵢ·wᵢ is exact in float64 (24 bits of mantissa times at most 29),
    only the sums round, and always in the same order. Memory is one model in float64, however many contributions there
    are on disk. Whatever is wrong raises and there is no result: DataError from ``check_params``, InvariantError for an
    order, a weight or a number of contributions that the rounds never let through.
    """
    return float32(weighted_mean(spec, contributions))


def fedavgm(centre: Sums, velocity: Sums, base: Params, momentum: float) -> tuple[Params, Sums]:
    """FedAvg with momentum at the server (Hsu et al. 2019, https://arxiv.org/abs/1909.06335).

    v ← momentum · v + (w_t − centre), w ← w_t − v; ``centre`` is what the updates were combined to, before it is
    rounded to float32.
    """
    moved = {name: value_of(velocity, name) * momentum + (base[name] - tensor) for name, tensor in centre.items()}
    return float32({name: base[name] - tensor for name, tensor in moved.items()}), moved


def fedadam(
    centre: Sums, velocity: Sums, squares: Sums, base: Params, strategy: Strategy
) -> tuple[Params, dict[str, npt.NDArray[np.float64]], dict[str, npt.NDArray[np.float64]]]:
    """Adam at the server (Reddi et al. 2021, algorithm 2, https://arxiv.org/abs/2003.00295).

    Δ = centre − w_t, m ← β₁·m + (1 − β₁)·Δ, v ← β₂·v + (1 − β₂)·Δ², w ← w_t + η·m / (√v + τ), without bias
    correction; before the first round m = 0 and v = τ², the least that the paper allows. The paper's Δ is the plain
    mean of the silos' differences; here it is weighted as FedAvg's mean is.
    """
    b1, b2, tau = strategy.server_beta1, strategy.server_beta2, strategy.server_tau
    step = {name: tensor - base[name] for name, tensor in centre.items()}
    m = {name: value_of(velocity, name) * b1 + (1 - b1) * delta for name, delta in step.items()}
    v = {name: value_of(squares, name, tau**2) * b2 + (1 - b2) * np.square(delta) for name, delta in step.items()}
    rate = strategy.server_adam
    return float32({name: base[name] + rate * m[name] / (np.sqrt(v[name]) + tau) for name in step}), m, v


def feddyn(
    spec: HeadSpec, contributions: Iterable[Contribution], h: Sums, base: Params, alpha: float, silos: int
) -> tuple[Params, Sums]:
    """FedDyn's server step (Acar et al. 2021, algorithm 1, https://arxiv.org/abs/2111.04263).

    h ← h − (alpha/m) · Σ (wᵢ − w_t) over those that reported, m = ``silos``, all of them;
    w ← the unweighted mean of the reported wᵢ, minus h/alpha. In float64, in silo order.
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


def pooled(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """All silos' held-out clips as if they were one set: mean loss by clips, correct, count.

    In the given order (ascending silo name); None when no silo reported.
    """
    count = sum(part.count for part in evaluations)
    if count == 0:
        return None
    loss = sum(part.loss * part.count for part in evaluations) / count
    return Evaluation(loss=loss, correct=sum(part.correct for part in evaluations), count=count)


def _combined(strategy: Strategy, spec: HeadSpec, contributions: Iterable[Contribution]) -> Sums:
    if strategy.combine == "median":
        return median(spec, contributions)
    if strategy.combine == "trimmed_mean":
        return trimmed_mean(spec, contributions, strategy.trim)
    return weighted_mean(spec, contributions)


def _moved(strategy: Strategy, base: Params, centre: Sums, state: ServerState) -> tuple[Params, ServerState]:
    if strategy.server_momentum > 0.0:
        params, velocity = fedavgm(centre, state.velocity, base, strategy.server_momentum)
        return params, replace(state, velocity=velocity)
    if strategy.server_adam > 0.0:
        params, m, v = fedadam(centre, state.velocity, state.squares, base, strategy)
        return params, replace(state, velocity=m, squares=v)
    return float32(centre), state


def _tail_averaged(params: Params, state: ServerState, last: int) -> Aggregated:
    """Sum the models of the ``last`` rounds; the final model is their plain mean (fewer rounds: of all)."""
    if last < 1 or state.left >= last:
        return Aggregated(params, state)
    tail = {name: value_of(state.tail, name) + tensor.astype(np.float64) for name, tensor in params.items()}
    state = replace(state, tail=tail, tail_count=state.tail_count + 1)
    if state.left > 0:
        return Aggregated(params, state)
    return Aggregated(float32({name: tensor / state.tail_count for name, tensor in tail.items()}), state)
