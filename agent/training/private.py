"""Training with differential privacy for every single clip: DP-SGD (Abadi et al. 2016, arXiv 1607.00133).

A step draws its batch anew: every row is in it with probability q, independently of all others (Poisson sampling,
which is what the accountant counts). Each row's gradient is cut to the norm C, the cut gradients are added up, Gaussian
noise of deviation z·C falls on every parameter of the sum, and the sum is divided by the EXPECTED batch size: the real
one would tell whether a row was there. What the optimiser makes of the noisy gradient gives nothing more away.

**The norm of one row's gradient, without making it.** A linear map o = W a + b, used once per row, has for row i the
gradients

    dL_i/dW = s_i a_i^T        dL_i/db = s_i        with s_i = dL_i/do_i  (a column of ``slopes``)

An outer product has the norm |s_i|·|a_i|, so over all maps m of the head

    |g_i|² = Σ_m |s_i,m|² · (|a_i,m|² + 1)

exactly. And a factor c_i on row i's gradient is a factor on its column of ``slopes``, since Σ_i c_i s_i a_i^T is the
same product as before with c_i s_i in place of s_i. So the step's products stay what they are, and no gradient of a
single row is ever made.

What keeps single clips out of an update: its difference cut and blurred, or every step of training.

Noise is drawn from generators that the operating system seeds: nothing of it can be made again from the run's
settings, and two trainings of the same rows differ.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ...fedproto.head import Params
from ...fedproto.records import TrainSettings

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]
FILL = 32  # batches are filled up to a multiple of it, so that few sizes of buffers are needed


@dataclass(frozen=True)
class Sampling:
    """How often a round of record-dp training looks at the rows: what the accountant is told."""

    rate: float  # q: the chance of a row to be in a step's batch
    steps: int
    expected: float  # rows of a batch, on average

    @classmethod
    def of(cls, rows: int, settings: TrainSettings) -> Sampling:
        """As many steps, and as large on average, as the training without privacy has."""
        expected = min(settings.batch_size, rows)
        return cls(expected / rows, settings.epochs * math.ceil(rows / settings.batch_size), expected)


@dataclass(frozen=True)
class SampleNoise:
    """What a step does to the rows' gradients."""

    clip: float  # C
    multiplier: float  # z
    sampling: Sampling

    @property
    def deviation(self) -> float:
        """Of the noise on every parameter of the mean gradient."""
        return self.multiplier * self.clip / self.sampling.expected


def poisson_batch(random: np.random.Generator, rows: int, rate: float) -> tuple[Rows, int]:
    """A batch's rows, and how many of them are drawn: those behind only fill it up and must count for nothing."""
    drawn = np.flatnonzero(random.random(rows) < rate)
    missing = -len(drawn) % FILL if len(drawn) else FILL
    return np.concatenate([drawn, random.integers(0, rows, missing)]), len(drawn)


def sample_factors(
    slopes: Array, below: Mapping[str, Array], maps: Mapping[str, tuple[int, ...]], drawn: int, noise: SampleNoise
) -> Array:
    """What to multiply the columns of ``slopes`` with: [batch], so that their products add up to the cut mean gradient.

    ``slopes`` [all outputs, batch] are gradients of the batch's MEAN loss: row i's own are batch times as large.
    ``below``: what enters each map, [batch, inputs]. ``maps``: name -> (outputs, inputs), in the order of ``slopes``.
    The first ``drawn`` rows count, the others get 0.
    """
    batch = slopes.shape[1]
    squares, start = np.zeros(batch), 0
    for name, shape in maps.items():
        slope, entered = slopes[start : start + shape[0]], below[name]
        squares += np.einsum("ob,ob->b", slope, slope, dtype=np.float64) * (
            1.0 + np.einsum("bi,bi->b", entered, entered, dtype=np.float64)
        )
        start += shape[0]
    norms = batch * np.sqrt(squares)
    factors = noise.clip / np.maximum(norms, noise.clip) * (batch / noise.sampling.expected)
    factors[drawn:] = 0.0
    typed: Array = factors.astype(slopes.dtype)
    return typed


@dataclass(frozen=True)
class Protection:
    """Which of the two, and how strongly."""

    mode: Literal["off", "clip", "record-dp"] = "off"
    clip: float = 0.0  # clip: norm of an update's difference; record-dp: of one sample's gradient
    noise: float = 0.0  # deviation of the Gaussian noise, in units of ``clip``


OPEN = Protection()


def fresh_generator() -> np.random.Generator:
    """A generator that nobody can seed again."""
    return np.random.Generator(np.random.PCG64(int.from_bytes(os.urandom(32), "little")))


def protected(base: Params, params: Params, protection: Protection, random: np.random.Generator) -> Params:
    """``params`` drawn towards ``base`` until their distance is at most ``clip``, with noise on every parameter.

    The distance is the Euclidean norm over all tensors in float64; the result is float32. With mode ``off`` or
    ``record-dp`` (whose noise is in the training) ``params`` come back as they are.
    """
    if protection.mode != "clip":
        return params
    moved = {name: tensor.astype(np.float64) - base[name] for name, tensor in params.items()}
    norm = float(np.sqrt(sum(float(np.square(tensor).sum()) for tensor in moved.values())))
    share = min(1.0, protection.clip / norm) if norm > 0 else 1.0
    deviation = protection.noise * protection.clip
    return {
        name: (base[name] + share * tensor + deviation * random.standard_normal(tensor.shape)).astype(np.float32)
        for name, tensor in moved.items()
    }
