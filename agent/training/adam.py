"""Adam with L2 weight decay on rows of a weight, in place (Kingma and Ba 2015, arXiv 1412.6980).

It uses NumPy's operators, because they can write into given arrays: the same eleven operators as ONNX nodes allocate
a new array each, and take a third longer (docs/explanation/training.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...fedproto.records import ADAM_BETAS, TrainSettings

Array = npt.NDArray[Any]

BETA1, BETA2 = ADAM_BETAS
EPSILON = 1e-8  # torch.optim.Adam's default


@dataclass(frozen=True, eq=False)
class AdamState:
    """Some values of a weight and their moments: flat arrays of one length, changed in place."""

    weight: Array
    m: Array  # M = m / (1 - BETA1): a moment is kept without its factor, which saves a pass over memory
    v: Array  # V = v / (1 - BETA2)
    anchor: Array | None = None  # centre of the proximal term (FedProx, FedDyn)


@dataclass(frozen=True)
class AdamScalars:
    """One step's scalars, in the dtype of the training: NumPy would widen float32 arrays by a float64 scalar."""

    step_size: np.floating[Any]
    epsilon: np.floating[Any]
    weight_decay: np.floating[Any]
    mu: np.floating[Any]  # strength of the proximal term
    beta1: np.floating[Any]
    beta2: np.floating[Any]


def adam_scalars(settings: TrainSettings, time: int, dtype: str, mu: float = 0.0) -> AdamScalars:
    """Return the scalars of step ``time`` (from 1).

    With M and V as in ``AdamState``, Adam's update
    learning_rate / (1 - beta1**t) · m / (sqrt(v / (1 - beta2**t)) + EPSILON)
    is ``step_size`` · M / (sqrt(V) + ``epsilon``).
    """
    scale = math.sqrt((1.0 - BETA2**time) / (1.0 - BETA2))
    step_size = settings.learning_rate * (1.0 - BETA1) / (1.0 - BETA1**time) * scale
    values = (step_size, EPSILON * scale, settings.weight_decay, mu, BETA1, BETA2)
    return AdamScalars(*(np.dtype(dtype).type(value) for value in values))


@np.errstate(all="ignore")  # the trainer checks the final parameters
def adam_step(state: AdamState, gradient: Array, scratch: Array, scalars: AdamScalars) -> None:
    """Make one step of ``state`` along ``gradient``. ``gradient`` and ``scratch``, of its length, are overwritten.

    With an anchor the gradient of (mu/2)·‖w - anchor‖² is added first (FedProx).
    """
    weight, m, v = state.weight, state.m, state.v
    np.multiply(weight, scalars.weight_decay, out=scratch)
    np.add(gradient, scratch, out=gradient)
    if state.anchor is not None:
        np.subtract(weight, state.anchor, out=scratch)
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
