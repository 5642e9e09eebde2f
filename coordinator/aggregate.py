"""How the silos' models become one: pure arithmetic, nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..base.errors import InvariantError
from ..fedproto.head import HeadSpec, Params, check_params
from ..fedproto.records import Evaluation


@dataclass(frozen=True, eq=False)
class Contribution:
    """One silo's part of a round."""

    silo: str
    examples: int  # its weight
    params: Params


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
    total = {name: np.zeros(shape, dtype=np.float64) for name, shape in spec.shapes.items()}
    examples, last = 0, ""
    for part in contributions:
        if part.silo <= last or part.examples < 1:
            raise InvariantError(f"update of silo '{part.silo}' ({part.examples} examples) after '{last}' in a sum")
        check_params(spec, part.params, whose=f"update from silo '{part.silo}'")
        for name, tensor in part.params.items():
            total[name] += part.examples * tensor.astype(np.float64)
        examples, last = examples + part.examples, part.silo
    if examples == 0:
        raise InvariantError("a mean of no updates")
    return {name: (tensor / examples).astype(np.float32) for name, tensor in total.items()}


def pooled(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """All silos' held-out clips as if they were one set: mean loss by clips, correct, count.

    In the given order (ascending silo name); None when no silo reported.
    """
    count = sum(part.count for part in evaluations)
    if count == 0:
        return None
    loss = sum(part.loss * part.count for part in evaluations) / count
    return Evaluation(loss=loss, correct=sum(part.correct for part in evaluations), count=count)
