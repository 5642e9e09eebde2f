"""How the silos' models become one: pure arithmetic, nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from ..base.errors import InvariantError
from ..fedproto.head import HeadSpec, Params, check_params
from ..fedproto.records import Evaluation, RunSettings, Strategy

Sums = Mapping[str, npt.NDArray[np.float64]]  # one array for each of the head's tensors; empty: all zero


@dataclass(frozen=True, eq=False)
class Contribution:
    """One silo's part of a round."""

    silo: str
    examples: int  # its weight
    params: Params


@dataclass(frozen=True, eq=False)
class ServerState:
    """What the coordinator carries from round to round beside the model."""

    left: int  # rounds that must still close
    h: Sums = field(default_factory=dict)  # FedDyn's
    velocity: Sums = field(default_factory=dict)  # FedAvgM's
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

    ``base``: the model that the round started from. ``contributions``: as ``fedavg`` wants them. ``silos``: how
    many there are in all, whether they reported or not (FedDyn). Call once for each round that closes.
    Raises DataError and InvariantError, as ``fedavg`` does.
    """
    if strategy.name == "feddyn":
        params, h = feddyn(spec, contributions, state.h, base, strategy.alpha, silos)
        state = replace(state, h=h)
    elif strategy.server_momentum > 0.0:
        params, velocity = fedavgm(spec, contributions, state.velocity, base, strategy.server_momentum)
        state = replace(state, velocity=velocity)
    else:
        params = fedavg(spec, contributions)
    return _tail_averaged(params, replace(state, left=state.left - 1), strategy.average_last)


def fedavg(spec: HeadSpec, contributions: Iterable[Contribution]) -> Params:
    """The mean of the silos' models weighted by their examples: float32(Σ nᵢ·wᵢ / Σ nᵢ), in float64.

    Equation 12 of the paper; McMahan et al. 2017, algorithm 1 (https://arxiv.org/abs/1602.05629).

    ``contributions`` come in ascending order of silo name, so that the result does not depend on
    the order of arrival, to the bit: nᵢ·wᵢ is exact in float64 (24 bits of mantissa times at most 29),
    only the sums round, and always in the same order. Memory is one model in float64 and one
    contribution, however many there are. Each is checked before any of it is added; whatever is wrong
    raises and there is no result: DataError from ``check_params``, InvariantError for an order, a weight or
    a number of contributions that the rounds never let through.
    """
    return _float32(_weighted_mean(spec, contributions))


def fedavgm(
    spec: HeadSpec, contributions: Iterable[Contribution], velocity: Sums, base: Params, momentum: float
) -> tuple[Params, Sums]:
    """FedAvg with momentum at the server (Hsu et al. 2019, https://arxiv.org/abs/1909.06335).

    v ← momentum · v + (w_t − mean), w ← w_t − v; the mean is ``fedavg``'s, before it is rounded to float32.
    """
    mean = _weighted_mean(spec, contributions)
    moved = {name: _of(velocity, name) * momentum + (base[name] - mean[name]) for name in spec.shapes}
    return _float32({name: base[name] - moved[name] for name in spec.shapes}), moved


def feddyn(
    spec: HeadSpec, contributions: Iterable[Contribution], h: Sums, base: Params, alpha: float, silos: int
) -> tuple[Params, Sums]:
    """FedDyn's server step (Acar et al. 2021, algorithm 1, https://arxiv.org/abs/2111.04263).

    h ← h − (alpha/m) · Σ (wᵢ − w_t) over those that reported, m = ``silos``, all of them;
    w ← the unweighted mean of the reported wᵢ, minus h/alpha. In float64, in silo order.
    """
    total = _zeros(spec)
    reported = 0
    for part in _checked(spec, contributions):
        for name, tensor in part.params.items():
            total[name] += tensor
        reported += 1
    if reported == 0 or silos < reported:
        raise InvariantError(f"a mean of {reported} updates of {silos} silos")
    after = {
        name: _of(h, name) - alpha / silos * (tensor - reported * base[name].astype(np.float64))
        for name, tensor in total.items()
    }
    return _float32({name: tensor / reported - after[name] / alpha for name, tensor in total.items()}), after


def pooled(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """All silos' held-out clips as if they were one set: mean loss by clips, correct, count.

    In the given order (ascending silo name); None when no silo reported.
    """
    count = sum(part.count for part in evaluations)
    if count == 0:
        return None
    loss = sum(part.loss * part.count for part in evaluations) / count
    return Evaluation(loss=loss, correct=sum(part.correct for part in evaluations), count=count)


def _tail_averaged(params: Params, state: ServerState, last: int) -> Aggregated:
    """Sum the models of the ``last`` rounds; the final model is their plain mean (fewer rounds: of all)."""
    if last < 1 or state.left >= last:
        return Aggregated(params, state)
    tail = {name: _of(state.tail, name) + tensor.astype(np.float64) for name, tensor in params.items()}
    state = replace(state, tail=tail, tail_count=state.tail_count + 1)
    if state.left > 0:
        return Aggregated(params, state)
    return Aggregated(_float32({name: tensor / state.tail_count for name, tensor in tail.items()}), state)


def _weighted_mean(spec: HeadSpec, contributions: Iterable[Contribution]) -> dict[str, npt.NDArray[np.float64]]:
    total = _zeros(spec)
    examples = 0
    for part in _checked(spec, contributions):
        for name, tensor in part.params.items():
            total[name] += part.examples * tensor.astype(np.float64)
        examples += part.examples
    if examples == 0:
        raise InvariantError("a mean of no updates")
    return {name: tensor / examples for name, tensor in total.items()}


def _checked(spec: HeadSpec, contributions: Iterable[Contribution]) -> Iterator[Contribution]:
    last = ""
    for part in contributions:
        if part.silo <= last or part.examples < 1:
            raise InvariantError(f"update of silo '{part.silo}' ({part.examples} examples) after '{last}' in a sum")
        check_params(spec, part.params, whose=f"update from silo '{part.silo}'")
        yield part
        last = part.silo


def _zeros(spec: HeadSpec) -> dict[str, npt.NDArray[np.float64]]:
    return {name: np.zeros(shape, dtype=np.float64) for name, shape in spec.shapes.items()}


def _of(sums: Sums, name: str) -> npt.NDArray[np.float64] | float:
    return sums[name] if sums else 0.0


def _float32(tensors: Sums) -> Params:
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
