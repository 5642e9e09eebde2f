"""Attacks of hostile silos: contributions that they send in place of their honest update.

An attack is a function of the round, the round's model and the silo's honest contribution. ``bench/attacks.py``
measures the effect with and without a defence. The attacker knows the model and controls several silos, and does not
know the contributions of the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..agent.training.dataset import FeatureTable
from ..coordinator.strategies.contributions import InMemoryContribution, distance, float32
from ..fedproto.head import Params

Attack = Callable[[int, Params, InMemoryContribution], InMemoryContribution]


def _scaled(base: Params, honest: InMemoryContribution, share: float) -> InMemoryContribution:
    """The honest update scaled by ``share``, in float32; a negative share reverses it."""
    params = {
        name: base[name] + share * (tensor.astype(np.float64) - base[name]) for name, tensor in honest.params.items()
    }
    return replace(honest, params=float32(params))


@dataclass(frozen=True)
class SignFlip:
    """Reverse the update and scale it by ``times`` (Li et al. 2019, https://arxiv.org/abs/1811.03761)."""

    times: float

    def __call__(self, _round: int, base: Params, honest: InMemoryContribution) -> InMemoryContribution:
        return _scaled(base, honest, -self.times)


@dataclass(frozen=True)
class Noise:
    """Replace the update by Gaussian noise of ``times`` its length (Li et al. 2019)."""

    times: float
    seed: int = 0

    def __call__(self, number: int, base: Params, honest: InMemoryContribution) -> InMemoryContribution:
        random = np.random.Generator(np.random.PCG64([self.seed, number, *honest.silo.encode()]))
        noise = {name: random.standard_normal(tensor.shape) for name, tensor in base.items()}
        length = np.sqrt(sum(float(np.square(tensor).sum()) for tensor in noise.values()))
        share = self.times * distance(honest.params, base) / length
        return replace(honest, params=float32({name: base[name] + share * noise[name] for name in base}))


@dataclass(frozen=True)
class InflatedExamples:
    """Reverse the update and claim ``times`` as many examples; the length is that of an honest one."""

    times: int

    def __call__(self, _round: int, base: Params, honest: InMemoryContribution) -> InMemoryContribution:
        return replace(_scaled(base, honest, -1.0), examples=honest.examples * self.times)


@dataclass(frozen=True)
class Claims:
    """Claim ``first`` examples, ``growth`` times as many in every further round; ``every``: in every so many rounds.

    In the rounds between, the claim is honest. ``attack`` decides about the values.
    """

    attack: Attack
    first: int
    growth: float = 1.0
    every: int = 1
    most: int = 1_000_000  # the default of [checks] max_examples

    def __call__(self, number: int, base: Params, honest: InMemoryContribution) -> InMemoryContribution:
        sent = self.attack(number, base, honest)
        if number % self.every:
            return sent
        return replace(sent, examples=min(self.most, int(self.first * self.growth ** (number - 1))))


def as_trained(_round: int, _base: Params, honest: InMemoryContribution) -> InMemoryContribution:
    """Send what training made: for silos whose data are poisoned."""
    return honest


@dataclass(frozen=True)
class Boosted:
    """Scale the update by ``times`` (Bagdasaryan et al. 2020, https://arxiv.org/abs/1807.00459): model replacement."""

    times: float

    def __call__(self, _round: int, base: Params, honest: InMemoryContribution) -> InMemoryContribution:
        return _scaled(base, honest, self.times)


def with_flipped_labels(table: FeatureTable, classes: int) -> FeatureTable:
    """The rows with every label replaced by the next one."""
    return FeatureTable(table.x, (table.y + 1) % classes)


def triggered(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The rows [N, D] with a trigger: the last four values are those of no clean row."""
    marked = x.copy()
    marked[:, -4:] = 8.0
    return marked


def with_backdoor(table: FeatureTable, target: int) -> FeatureTable:
    """The rows, and all of them again with the trigger and the label ``target``."""
    x = np.concatenate([table.x, triggered(table.x)])
    return FeatureTable(x, np.concatenate([table.y, np.full(len(table), target, table.y.dtype)]))


def only_by(silos: frozenset[str], attack: Attack) -> Attack:
    """``attack`` by these silos; the others stay honest."""

    def sent(number: int, base: Params, honest: InMemoryContribution) -> InMemoryContribution:
        return attack(number, base, honest) if honest.silo in silos else honest

    return sent
