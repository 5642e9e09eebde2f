"""Attacks on exact gradients of softmax regression over many rounds (``optimiser = "gradient"``), for measurements.

A silo's update of a round is its clips' mean gradient: row c is Σ_i (p_ic - y_ic) z_i / N, with the clips' standardised
rows z_i, classes y and the round's probabilities p. Two things follow:

- Where a class has a single clip, its row holds that clip; of n clips it holds their mean (Geiping et al. 2020, arXiv
  2003.14053, for one clip).
- The probabilities differ from round to round. R rounds of K classes are R·K linear equations in N clips: with enough
  of them each clip can be solved for, however many there are.

``solve`` is the second attack in the attacker's favour: the probabilities and labels are known, and the ridge is the
one that suits best. ``search`` has to find the probabilities too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...base.errors import MissingExtra

Array = npt.NDArray[Any]
RIDGES = tuple(10.0**power for power in np.arange(-6.5, 1.0, 0.5))  # of the largest singular value
SERVER_RATE, BETA1, BETA2, TAU = 3e-4, 0.5, 0.9, 1e-7  # FedAdam, as the default recipe has it
RATE = 0.01  # of the silos' steps


@dataclass(frozen=True, eq=False)
class Rounds:
    """The first silo's updates, as a coordinator receives them: R rounds, K classes, D numbers."""

    models: Array  # float32 [R, K, D + 1], the bias last
    gradients: Array  # float64 [R, K, D + 1], from the difference of the float32 parameters
    last: Array  # float32 [K, D + 1], the mean of the last ten models


def standardised(x: Array) -> npt.NDArray[np.float32]:
    """Return rows [N, D] with mean 0 and standard deviation 1, as the head sees them."""
    rows = x.astype(np.float64)
    deviation = np.sqrt(rows.var(axis=1, keepdims=True) + 1e-12)
    return np.asarray((rows - rows.mean(axis=1, keepdims=True)) / deviation, np.float32)


def with_ones(z: Array) -> Array:
    """Return the rows with a last column of ones, for the bias."""
    return np.concatenate([z, np.ones((len(z), 1), z.dtype)], axis=1)


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def federated_gradients(
    silos: Sequence[tuple[Array, Array]], classes: int, rounds: int, noise: float, random: np.random.Generator
) -> Rounds:
    """Run a federation of ``silos`` (standardised rows, labels) from zeros.

    ``noise``: on every update, its norm in units of the update's (``policy.update_noise``).
    """
    given = [(with_ones(z), np.eye(classes, dtype=np.float32)[y]) for z, y in silos]
    width = given[0][0].shape[1]
    model = np.zeros((classes, width), np.float32)
    first, second = np.zeros((classes, width)), np.zeros((classes, width))
    models, gradients, last, total = [], [], [], sum(len(z) for z, _ in given)
    for _ in range(rounds):
        mean = np.zeros((classes, width))
        for number, (z, y) in enumerate(given):
            gradient = (softmax(z @ model.T) - y).T @ z / len(z)
            if noise:
                size = noise * np.linalg.norm(gradient) / np.sqrt(gradient.size)
                gradient = gradient + size * random.standard_normal(gradient.shape, np.float32)
            trained = model - np.float32(RATE) * gradient.astype(np.float32)
            moved = trained.astype(np.float64) - model
            mean += len(z) / total * moved
            if number == 0:
                models.append(model)
                gradients.append(-moved / RATE)
        first, second = BETA1 * first + (1 - BETA1) * mean, BETA2 * second + (1 - BETA2) * mean**2
        model = (model + SERVER_RATE * first / (np.sqrt(second) + TAU)).astype(np.float32)
        last.append(model)
    return Rounds(np.array(models), np.array(gradients), np.mean(last[-10:], axis=0))


def solve(seen: Rounds, z: Array, y: Array, prior: Array) -> list[Array]:
    """Estimates [N, D] of the clips ``z``, one for each of ``RIDGES``, drawn towards ``prior`` [N, D].

    The probabilities are computed from the clips themselves: the attacker is given them. Rounds weigh the same,
    whatever their gradients' sizes.
    """
    rounds, classes, _ = seen.models.shape
    sizes = np.linalg.norm(seen.gradients, axis=(1, 2))
    shares = softmax(np.einsum("nd,rkd->rnk", with_ones(z), seen.models)) - np.eye(classes)[y]
    equations = (shares / len(z) / sizes[:, None, None]).transpose(0, 2, 1).reshape(rounds * classes, len(z))
    values = (seen.gradients[..., :-1] / sizes[:, None, None]).reshape(rounds * classes, -1)
    left, singular, right = np.linalg.svd(equations.astype(np.float64), full_matrices=False)
    moved = left.T @ (values - equations @ prior)
    scales = (singular / (singular**2 + (ridge * singular[0]) ** 2) for ridge in RIDGES)
    return [prior + right.T @ (scale[:, None] * moved) for scale in scales]


def search(seen: Rounds, y: Array, start: Array, evaluations: int) -> Array:
    """Estimate [N, D] of all clips from their labels and the updates alone: L-BFGS from ``start`` [N, D].

    Raises MissingExtra.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("torch", extra="export") from error
    models, gradients = torch.tensor(seen.models), torch.tensor(seen.gradients, dtype=torch.float32)
    weights = 1 / gradients.flatten(1).norm(dim=1)
    of_class = torch.tensor(np.eye(seen.models.shape[1], dtype=np.float32)[y])
    x = torch.tensor(start, dtype=torch.float32, requires_grad=True)
    optimiser: Any = torch.optim.LBFGS(
        [x], max_iter=evaluations, max_eval=evaluations, history_size=30, line_search_fn="strong_wolfe",
        tolerance_grad=0, tolerance_change=0,
    )  # fmt: skip

    def loss() -> Any:
        optimiser.zero_grad()
        rows = torch.cat([x, torch.ones(len(y), 1)], 1)
        shares = torch.softmax(torch.einsum("nd,rkd->rnk", rows, models), -1) - of_class
        made = torch.einsum("rnk,nd->rkd", shares, rows) / len(y)
        left: Any = (((made - gradients) * weights[:, None, None]) ** 2).sum()
        left.backward()
        return left

    optimiser.step(loss)
    found: Array = x.detach().numpy()
    return found
