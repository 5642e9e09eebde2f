"""Adam with L2 weight decay on rows of a weight, in place (Kingma and Ba 2015, arXiv 1412.6980).

NumPy's operators, because they write where they are told to: the same eleven operators as ONNX nodes make a new
array each, and take a third longer (docs/training.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...fedproto.records import TrainSettings

Array = npt.NDArray[Any]

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # torch.optim.Adam's defaults


@dataclass(frozen=True, eq=False)
class AdamState:
    """Some numbers of a weight and what Adam keeps for each: flat arrays of one length, changed in place."""

    weight: Array
    m: Array  # M = m / (1 - BETA1): a moment is kept without its factor, which saves a pass over memory
    v: Array  # V = v / (1 - BETA2)
    anchor: Array | None = None  # FedProx's centre


@dataclass(frozen=True)
class AdamScalars:
    """One step's numbers, in the dtype of the training: NumPy would widen float32 arrays by a float64 scalar."""

    step_size: np.floating[Any]
    epsilon: np.floating[Any]
    weight_decay: np.floating[Any]
    mu: np.floating[Any]  # FedProx's strength
    beta1: np.floating[Any]
    beta2: np.floating[Any]


def adam_scalars(settings: TrainSettings, time: int, dtype: str, mu: float = 0.0) -> AdamScalars:
    """The numbers of step ``time`` (from 1).

    With M and V as in ``AdamState``, Adam's update
    learning_rate / (1 - beta1**t) · m / (sqrt(v / (1 - beta2**t)) + EPSILON)
    is ``step_size`` · M / (sqrt(V) + ``epsilon``).
    """
    scale = math.sqrt((1.0 - BETA2**time) / (1.0 - BETA2))
    step_size = settings.learning_rate * (1.0 - BETA1) / (1.0 - BETA1**time) * scale
    numbers = (step_size, EPSILON * scale, settings.weight_decay, mu, BETA1, BETA2)
    return AdamScalars(*(np.dtype(dtype).type(number) for number in numbers))


@np.errstate(all="ignore")  # training that diverges is told by what it ends with
def adam_step(moving: AdamState, gradient: Array, scratch: Array, scalars: AdamScalars) -> None:
    """One step of ``moving`` along ``gradient``, which is overwritten, as is ``scratch`` (both of its length).

    With an anchor the gradient of (mu/2)·‖w - anchor‖² is added first (FedProx, Li et al. 2020, arXiv 1812.06127).
    """
    weight, m, v = moving.weight, moving.m, moving.v
    np.multiply(weight, scalars.weight_decay, out=scratch)
    np.add(gradient, scratch, out=gradient)
    if moving.anchor is not None:
        np.subtract(weight, moving.anchor, out=scratch)
        np.multiply(scratch, scalars.mu, out=scratch)
        np.add(gradient, scratch, out=gradient)
    np.multiply(m, scalars.beta1, out=m)
    np.add(m, gradient, out=m)
    np.multiply(gradient, gradient, out=gradient)
    np.multiply(v, scalars.beta2, out=v)
    np.add(v, gradient, out=v)
    np.sqrt(v, out=scratch)
    np.add(scratch, scalars.epsilon, out=scratch)
    np.divide(m, scratch, out=scratch)
    np.multiply(scratch, scalars.step_size, out=scratch)
    np.subtract(weight, scratch, out=weight)
