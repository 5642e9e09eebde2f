"""Asynchronous federated optimisation, the second half of KD: who reports when, and what the centre does then.

Xie et al. 2019 (FedAsync, https://arxiv.org/abs/1903.03934), on which Jain et al. build: nobody waits.
A silo takes the model of the day, trains, and reports whenever it is done; the centre mixes what
arrives into its model at once, the less the older the model was that the silo began with. Here time is
simulated: how long a silo takes follows from its speed and its clips, so that runs can be repeated.
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
    """One report of a silo. The centre's model is version n after n arrivals."""

    silo: int
    base: int  # version of the model that the silo began with
    time: float  # simulated, in units of one clip trained once on the fastest device

    def staleness(self, version: int) -> int:
        """Versions that were made since the silo began; ``version`` is the one it meets on arrival."""
        return version - self.base


def schedule_arrivals(clips: Sequence[int], *, arrivals: int, epochs: int, slowest: float, seed: int) -> list[Arrival]:
    """The first ``arrivals`` reports of silos that train ``epochs`` epochs on their ``clips`` and begin again.

    Every silo's device takes 1 to ``slowest`` times as long as the fastest thinkable, drawn uniformly from
    ``seed``; each turn differs from it by up to a tenth. Raises UsageError on ``slowest`` below 1.
    """
    if slowest < 1:
        raise UsageError(f"the slowest device takes {slowest} times as long as the fastest, expected 1 or more")
    random = np.random.Generator(np.random.PCG64(seed))
    pace = random.uniform(1, slowest, size=len(clips))

    def turn(silo: int) -> float:
        return float(clips[silo] * epochs * pace[silo] * random.uniform(0.9, 1.1))

    under_way = [(turn(silo), silo, 0) for silo in range(len(clips))]
    heapq.heapify(under_way)
    found: list[Arrival] = []
    while len(found) < arrivals:
        now, silo, base = heapq.heappop(under_way)
        found.append(Arrival(silo, base, now))
        heapq.heappush(under_way, (now + turn(silo), silo, len(found)))
    return found


def mixing_share(beta: float, staleness: int, power: float) -> float:
    """beta · (1 + staleness) ** -power: FedAsync's polynomial rule; power 0 gives every report the same share."""
    return float(beta * (1 + staleness) ** -power)


def mix(current: Mapping[str, Tensor], arrived: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """w ← (1 - share) w + share w_i, tensor by tensor; counters (integers) are the greater of both.

    Batch normalisation's running means are mixed as the weights are. Raises InvariantError when the two
    models do not have the same tensors.
    """
    import torch

    if {n: t.shape for n, t in current.items()} != {n: t.shape for n, t in arrived.items()}:
        raise InvariantError("a silo reported a model with other tensors than the centre's")
    return {
        name: ((1 - share) * tensor + share * arrived[name])
        if tensor.is_floating_point()
        else torch.maximum(tensor, arrived[name])
        for name, tensor in current.items()
    }


def versions_needed(arrivals: Sequence[Arrival], done: int) -> set[int]:
    """Models that silos under way began with, once ``done`` reports are in: what a checkpoint must keep."""
    return {arrival.base for arrival in arrivals[done:] if arrival.base <= done} | {done}
