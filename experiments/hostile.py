"""Silos that want to spoil the model: what they send in place of their honest update.

Each attack is a function of the round, the round's model, and the honest contributions of the hostile silos; a
simulation shows what it costs with and without a defence (``bench/attacks.py``). All of them know the model and the
other hostile silos, as one attacker with several sites would; none knows what the honest ones send.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ..coordinator.strategies.contributions import HeldContribution, distance, float32
from ..fedproto.head import Params

Attack = Callable[[int, Params, HeldContribution], HeldContribution]


def _moved(base: Params, honest: HeldContribution, share: float) -> HeldContribution:
    """The honest update ``share`` times as far, in float32; a negative share turns it round."""
    params = {
        name: base[name] + share * (tensor.astype(np.float64) - base[name]) for name, tensor in honest.params.items()
    }
    return replace(honest, params=float32(params))


@dataclass(frozen=True)
class SignFlip:
    """Turn the update round and send it ``times`` as far (Li et al. 2019, https://arxiv.org/abs/1811.03761)."""

    times: float

    def __call__(self, _round: int, base: Params, honest: HeldContribution) -> HeldContribution:
        return _moved(base, honest, -self.times)


@dataclass(frozen=True)
class Noise:
    """Gaussian noise ``times`` as long as the honest update, in place of it (Li et al. 2019)."""

    times: float
    seed: int = 0

    def __call__(self, number: int, base: Params, honest: HeldContribution) -> HeldContribution:
        random = np.random.Generator(np.random.PCG64([self.seed, number, *honest.silo.encode()]))
        noise = {name: random.standard_normal(tensor.shape) for name, tensor in base.items()}
        length = np.sqrt(sum(float(np.square(tensor).sum()) for tensor in noise.values()))
        share = self.times * distance(honest.params, base) / length
        return replace(honest, params=float32({name: base[name] + share * noise[name] for name in base}))


@dataclass(frozen=True)
class Heavy:
    """Turn the update round and claim ``times`` as many examples: the length stays that of an honest one."""

    times: int

    def __call__(self, _round: int, base: Params, honest: HeldContribution) -> HeldContribution:
        return replace(_moved(base, honest, -1.0), examples=honest.examples * self.times)


def by(silos: frozenset[str], attack: Attack) -> Attack:
    """``attack`` by these silos, honesty by the others."""

    def sent(number: int, base: Params, honest: HeldContribution) -> HeldContribution:
        return attack(number, base, honest) if honest.silo in silos else honest

    return sent
