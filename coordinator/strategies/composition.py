"""The algorithms of ``[run.strategy]`` put together: a round's updates become the next model.

Pure arithmetic: no clock, no socket, no disk. A new algorithm is a file like its neighbours, and a line in ALGORITHMS.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

import numpy as np

from ...fedproto.head import Params, TensorLayout
from ...fedproto.records import RunSettings, Strategy
from .algorithm import Algorithm, RoundInput, ServerState, Step
from .claims import Claim, Limits, distance_limits, limits_of
from .contributions import Contribution, float32, value_of
from .fedadam import FEDADAM
from .fedavg import FEDAVG, FEDAVGM
from .feddyn import FEDDYN
from .fedprox import FEDPROX
from .robust import CLIPPING, MEDIAN, TRIMMED_MEAN

ALGORITHMS: tuple[Algorithm, ...] = (
    FEDPROX,
    FEDDYN,
    CLIPPING,
    FEDAVG,
    MEDIAN,
    TRIMMED_MEAN,
    FEDAVGM,
    FEDADAM,
)


@dataclass(frozen=True, eq=False)
class Aggregated:
    """Result of a round: the next model, and the coordinator's state for the next round."""

    params: Params
    state: ServerState


def first_state(run: RunSettings) -> ServerState:
    """Return the state before round 1."""
    return ServerState(rounds_left=run.rounds)


def aggregate(
    strategy: Strategy,
    spec: TensorLayout,
    base: Params,
    contributions: Iterable[Contribution],
    state: ServerState,
    silos: int,
) -> Aggregated:
    """Return a round's new model and the coordinator's next state. Call it once for each round that closes.

    ``base``: the model that the round started from. ``contributions``: in ascending order of silo name; iterated more
    than once where ``needs_two_passes``. ``silos``: all that are enrolled, with an update or without (FedDyn).
    Raises DataError and InvariantError, as ``fedavg`` does.
    """
    round_input = RoundInput(strategy, spec, base, contributions, state.arrays, silos)
    params, arrays = _next_model(round_input)
    return end_round(params, replace(state, arrays=arrays), strategy.average_last)


def end_round(params: Params, state: ServerState, average_last: int) -> Aggregated:
    """Return the round's model and the state after it, where ``params`` is what the updates were aggregated to.

    The models of the ``average_last`` last rounds are summed; the final one is their plain mean (of all, if there were
    fewer).
    """
    state = replace(state, rounds_left=state.rounds_left - 1)
    if average_last < 1 or state.rounds_left >= average_last:
        return Aggregated(params, state)
    tail = {name: value_of(state.tail, name) + tensor.astype(np.float64) for name, tensor in params.items()}
    state = replace(state, tail=tail, tail_count=state.tail_count + 1)
    if state.rounds_left > 0:
        return Aggregated(params, state)
    return Aggregated(float32({name: tensor / state.tail_count for name, tensor in tail.items()}), state)


def _next_model(round_input: RoundInput) -> Step:
    algorithms = _enabled(round_input.strategy)
    for algorithm in algorithms:
        if algorithm.whole_round is not None:
            return algorithm.whole_round(round_input)
    for algorithm in algorithms:
        if algorithm.adjust is not None:
            round_input = replace(round_input, contributions=algorithm.adjust(round_input))
    (combine,) = [algorithm.combine for algorithm in algorithms if algorithm.combine is not None]
    target = combine(round_input)
    for algorithm in algorithms:
        if algorithm.step is not None:
            return algorithm.step(round_input, target)
    return float32(target), {}


def strategy_problems(strategy: Strategy) -> list[str]:
    """Return what is wrong with ``[run.strategy]``, each problem beginning with the key's name."""
    wrong = [problem for algorithm in ALGORITHMS for problem in algorithm.validate(strategy)]
    if strategy.average_last < 0:
        wrong.append("average_last: expected 0 (none) or more")
    return wrong + _conflicts(strategy)


def _conflicts(strategy: Strategy) -> list[str]:
    """Name the settings of algorithms that would do the same part of a round as another one."""
    algorithms, off = _enabled(strategy), Strategy()
    steps = [algorithm for algorithm in algorithms if algorithm.step is not None]
    alone = [algorithm for algorithm in algorithms if algorithm.whole_round is not None]
    wrong = [(algorithm, steps[0].setting) for algorithm in steps[1:]]
    for algorithm in algorithms:
        if alone and (algorithm.adjust or algorithm.combine or algorithm.step):
            wrong.append((algorithm, strategy.name))
    return [
        f"{algorithm.setting}: not with {other}, which moves the model by its own rule; "
        f"expected {getattr(off, algorithm.setting)!r}"
        for algorithm, other in wrong
    ]


def needs_two_passes(strategy: Strategy) -> bool:
    """Return whether ``aggregate`` iterates over the contributions more than once."""
    return any(algorithm.two_passes for algorithm in _enabled(strategy))


def weighs_examples(strategy: Strategy) -> bool:
    """Return whether the silos' examples are weights in ``aggregate``."""
    return any(algorithm.weighs for algorithm in _enabled(strategy))


def round_limits(
    strategy: Strategy, claims: Collection[Claim], learnt: int | None, examples_times: float, norm_times: float
) -> Limits | None:
    """Return the limits of a round's updates; None where the strategy or the settings have none (claims.py)."""
    if weighs_examples(strategy):
        return limits_of(claims, learnt, examples_times)
    if any(algorithm.far_counts for algorithm in _enabled(strategy)):
        return distance_limits(claims, norm_times)
    return None


def state_arrays(strategy: Strategy) -> tuple[str, ...]:
    """Return the names of the arrays that the algorithms in use carry from round to round."""
    return tuple(name for algorithm in _enabled(strategy) for name in algorithm.carries)


def _enabled(strategy: Strategy) -> list[Algorithm]:
    return [algorithm for algorithm in ALGORITHMS if algorithm.enabled(strategy)]
