"""Protection of single clips: training with differential privacy, or clipped and noised updates.

**Training with differential privacy for every clip** (``record-dp``) is DP-SGD (Abadi et al. 2016, arXiv 1607.00133).
A step draws a new batch: every row is in it with probability q, independently of all others (Poisson sampling, which
the accountant counts). Each row's gradient is clipped to the norm C, the clipped gradients are added up, Gaussian noise
of standard deviation z·C is added to every parameter of the sum, and the sum is divided by the EXPECTED batch size: the
actual one would reveal whether a row was there. Nothing that the optimiser computes from the noisy gradient reveals
more.

*The norm of one row's gradient, without computing the gradient.* A linear map o = W a + b, used once per row, has for
row i the gradients

    dL_i/dW = s_i a_i^T        dL_i/db = s_i        with s_i = dL_i/do_i  (a column of ``output_gradients``)

An outer product has the norm |s_i|·|a_i|, so over all maps m of the head

    |g_i|² = Σ_m |s_i,m|² · (|a_i,m|² + 1)

exactly. A row whose gradient is not finite, which a model can be made for, is left out. And a factor c_i on row i's
gradient is a factor on its column of ``output_gradients``, since Σ_i c_i s_i a_i^T is the same product as before with
c_i s_i in place of s_i. So the step's products stay as they are, and no gradient of a single row is ever computed.

**Clipped and noised updates** (``clip``): ``protected`` bounds an update's difference and adds noise to it.

Noise comes from generators that the operating system seeds: none of it can be reproduced from the run's settings, and
two trainings on the same rows differ.
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
FILL_MULTIPLE = 32  # batches are filled up to a multiple of it, so that few sizes of buffers are needed
FILLED_SHARE = 8  # or of about this part of the mean batch, when that is more
LARGEST_NORM = 1e30  # of a row's gradient, in clip norms: a row beyond, or one that overflows, adds nothing


@dataclass(frozen=True)
class Sampling:
    """Sampling of the rows in a round of record-dp training: the accountant's input."""

    rate: float  # q: the chance of a row to be in a step's batch
    steps: int
    expected: float  # rows of a batch, on average

    @classmethod
    def of(cls, rows: int, settings: TrainSettings) -> Sampling:
        """Return as many steps, with batches as large on average, as training without privacy has."""
        expected = min(settings.batch_size, rows)
        return cls(expected / rows, settings.epochs * math.ceil(rows / settings.batch_size), expected)


@dataclass(frozen=True)
class SampleNoise:
    """Clipping of the rows' gradients, and noise on their sum."""

    clip_norm: float  # C
    multiplier: float  # z
    sampling: Sampling

    @property
    def standard_deviation(self) -> float:
        """Standard deviation of the noise on every parameter of the mean gradient."""
        return self.multiplier * self.clip_norm / self.sampling.expected


def poisson_batch(random: np.random.Generator, rows: int, rate: float) -> tuple[Rows, int]:
    """Return a batch's rows, and how many of them are drawn: the others only fill it up and must not count."""
    drawn = np.flatnonzero(random.random(rows) < rate)
    multiple = max(FILL_MULTIPLE, 1 << int(rows * rate / FILLED_SHARE).bit_length())
    missing = -len(drawn) % multiple if len(drawn) else multiple
    return np.concatenate([drawn, random.integers(0, rows, missing)]), len(drawn)


def sample_factors(
    output_gradients: Array,
    layer_inputs: Mapping[str, Array],
    maps: Mapping[str, tuple[int, ...]],
    drawn: int,
    noise: SampleNoise,
) -> Array:
    """Return the factors [batch] on the columns of ``output_gradients`` that clip every row's gradient.

    With them the products add up to the mean of the clipped gradients. ``output_gradients`` [all outputs, batch] are
    gradients of the batch's MEAN loss: row i's own are batch times as large. ``layer_inputs``: of each map, [batch,
    inputs]. ``maps``: name -> (outputs, inputs), in the same order as ``output_gradients``. The first ``drawn`` rows
    count, the others get 0; so does a row whose gradient overflows, or is so large that its factor would be
    rounded to 0 (``LARGEST_NORM``).
    """
    batch = output_gradients.shape[1]
    squares, start = np.zeros(batch), 0
    with np.errstate(invalid="ignore"):
        for name, shape in maps.items():
            of_outputs, inputs = output_gradients[start : start + shape[0]], layer_inputs[name]
            squares += np.einsum("ob,ob->b", of_outputs, of_outputs, dtype=np.float64) * (
                1.0 + np.einsum("bi,bi->b", inputs, inputs, dtype=np.float64)
            )
            start += shape[0]
        norms = batch * np.sqrt(squares)
        factors = noise.clip_norm / np.maximum(norms, noise.clip_norm) * (batch / noise.sampling.expected)
    factors[~(norms <= LARGEST_NORM * noise.clip_norm)] = 0.0  # also NaN
    factors[drawn:] = 0.0
    typed: Array = factors.astype(output_gradients.dtype)
    return typed


def scale_samples(output_gradients: Array, layer_inputs: Mapping[str, Array], factors: Array) -> None:
    """Scale every row's gradient by its factor, in place; with 0 nothing of the row is left, not even an infinity."""
    with np.errstate(invalid="ignore"):
        output_gradients *= factors
    without = factors == 0.0
    if without.any():
        output_gradients[:, without] = 0.0
        for inputs in layer_inputs.values():
            inputs[without] = 0.0


@dataclass(frozen=True)
class Protection:
    """One of the two protections, with its strength."""

    mode: Literal["off", "clip", "record-dp"] = "off"
    clip_norm: float = 0.0  # clip: norm of an update's difference; record-dp: of one sample's gradient
    noise: float = 0.0  # standard deviation of the Gaussian noise, in units of ``clip_norm``


UNPROTECTED = Protection()


def fresh_generator() -> np.random.Generator:
    """Return a generator whose seed nobody knows."""
    return np.random.Generator(np.random.PCG64(int.from_bytes(os.urandom(32), "little")))


def protected(base: Params, params: Params, protection: Protection, random: np.random.Generator) -> Params:
    """Clip the difference of ``params`` from ``base`` to the norm ``clip_norm``, and add noise to every parameter.

    The distance is the Euclidean norm over all tensors in float64; the result is float32. With mode ``off`` or
    ``record-dp`` (whose noise is in the training) ``params`` are returned as they are.
    """
    if protection.mode != "clip":
        return params
    moved = {name: tensor.astype(np.float64) - base[name] for name, tensor in params.items()}
    norm = float(np.sqrt(sum(float(np.square(tensor).sum()) for tensor in moved.values())))
    share = min(1.0, protection.clip_norm / norm) if norm > 0 else 1.0
    standard_deviation = protection.noise * protection.clip_norm
    return {
        name: (base[name] + share * tensor + standard_deviation * random.standard_normal(tensor.shape)).astype(
            np.float32
        )
        for name, tensor in moved.items()
    }
