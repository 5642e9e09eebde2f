"""FedAsync, the second half of KD: asynchronous federated optimisation, with simulated time.

Xie et al. 2019 (https://arxiv.org/abs/1903.03934), on which Jain et al. build: nobody waits. A silo takes the
current model, trains, and reports when it is done. The centre mixes each report into its model at once, with
a smaller share the older the silo's initial model is. A silo's training time follows from its speed and its
number of clips, so that runs are repeatable.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...base.errors import InvariantError, UsageError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Arrival:
    """One report of a silo. The centre's model has version n after n arrivals."""

    silo: int
    base: int  # version of the silo's initial model
    time: float  # simulated, in units of one clip trained once on the fastest device

    def staleness(self, version: int) -> int:
        """Versions made since the silo began; ``version`` is the current one on arrival."""
        return version - self.base


def schedule_arrivals(clips: Sequence[int], *, arrivals: int, epochs: int, slowest: float, seed: int) -> list[Arrival]:
    """The first ``arrivals`` reports of silos that repeatedly train ``epochs`` epochs on their ``clips``.

    Every silo's device takes 1 to ``slowest`` times as long as the fastest possible one, drawn uniformly from
    ``seed``; each training varies by up to a tenth. Raises UsageError on ``slowest`` below 1.
    """
    if slowest < 1:
        raise UsageError(
            f"the slowest device takes {slowest} times as long as the fastest, expected 1 or more",
            fix="choose 1 or more",
        )
    random = np.random.Generator(np.random.PCG64(seed))
    pace = random.uniform(1, slowest, size=len(clips))

    def duration(silo: int) -> float:
        return float(clips[silo] * epochs * pace[silo] * random.uniform(0.9, 1.1))

    training = [(duration(silo), silo, 0) for silo in range(len(clips))]
    heapq.heapify(training)
    reports: list[Arrival] = []
    while len(reports) < arrivals:
        now, silo, base = heapq.heappop(training)
        reports.append(Arrival(silo, base, now))
        heapq.heappush(training, (now + duration(silo), silo, len(reports)))
    return reports


def mixing_share(beta: float, staleness: int, power: float) -> float:
    """FedAsync's polynomial rule, beta · (1 + staleness) ** -power; power 0 gives every report the same share."""
    return float(beta * (1 + staleness) ** -power)


def mix(current: Mapping[str, Tensor], arrived: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Mixed model w ← (1 - share) w + share w_i, tensor by tensor; integer counters take the greater value.

    Running means of batch normalisation are mixed like weights. Raises InvariantError when the tensors of the
    two models differ.
    """
    import torch

    if {n: t.shape for n, t in current.items()} != {n: t.shape for n, t in arrived.items()}:
        raise InvariantError("a silo reported a model whose tensors differ from the centre's")
    return {
        name: ((1 - share) * tensor + share * arrived[name])
        if tensor.is_floating_point()
        else torch.maximum(tensor, arrived[name])
        for name, tensor in current.items()
    }


def versions_needed(arrivals: Sequence[Arrival], done: int) -> set[int]:
    """Versions that a checkpoint must keep after ``done`` reports: initial models of silos that still train."""
    return {arrival.base for arrival in arrivals[done:] if arrival.base <= done} | {done}
