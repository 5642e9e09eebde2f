"""What keeps single clips out of an update: its difference cut and blurred, or every step of training.

Noise is drawn from generators that the operating system seeds: nothing of it can be made again from the run's
settings, and two trainings of the same rows differ.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...fedproto.head import Params


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
