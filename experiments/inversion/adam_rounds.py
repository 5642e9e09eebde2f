"""Attack on many rounds of softmax regression trained by Adam in shuffled batches, for measurements.

Adam divides each coordinate of the gradient by its own size, so that a round is no linear equation in the clips, as
with plain gradients (``gradients.py``); but it is an equation. Given the probabilities of all steps, a weight's
movement depends on its own feature of the clips alone. ``unrolled`` looks for the clips whose training moves the
weights of all rounds as they were seen to move, in the attacker's favour: labels, shuffles and probabilities are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...agent.training.adam import BETA1, BETA2, EPSILON
from ...agent.training.private import Protection, protected
from ...base.errors import MissingExtra
from ...fedproto.records import TrainSettings
from .gradients import Array, softmax, with_ones
from .updates import shuffled_batches

SEARCH_RATE = 0.03  # of the attack's own Adam; a feature's standard deviation is 1
SMALLEST = 1e-20  # below it the root of a second moment has no derivative


@dataclass(frozen=True, eq=False)
class Step:
    """A batch of the first silo's training."""

    rows: Array  # int64 [B]
    shares: Array  # float32 [K, B], probabilities less labels, over B


@dataclass(frozen=True, eq=False)
class AdamRound:
    """The first silo's round: its model, its movement (float32 [K, D + 1]), and what its steps saw."""

    model: Array
    moved: Array
    steps: tuple[Step, ...]
    settings: TrainSettings  # with the round's learning rate


def federated_adam(
    silos: Sequence[tuple[Array, Array]],
    classes: int,
    rounds: int,
    settings: TrainSettings,
    protection: Protection,
    random: np.random.Generator,
) -> tuple[list[AdamRound], Array]:
    """Run a federation of ``silos`` (standardised rows, labels) from zeros; returns rounds and the last model.

    ``protection``: of every silo's updates, ``off`` or ``clip``.
    """
    given = [(with_ones(z), np.eye(classes, dtype=np.float32)[y]) for z, y in silos]
    total = sum(len(z) for z, _ in given)
    model, seen = np.zeros((classes, given[0][0].shape[1]), np.float32), []
    for number in range(rounds):
        rate = settings.learning_rate * settings.learning_rate_decay**number
        of_round = TrainSettings(settings.epochs, settings.batch_size, rate, settings.weight_decay)
        mean = np.zeros(model.shape)
        for silo, (z, y) in enumerate(given):
            trained, steps = _train(model, z, y, of_round, seed=number * len(given) + silo)
            trained = protected({"0.weight": model}, {"0.weight": trained}, protection, random)["0.weight"]
            mean += len(z) / total * trained
            if silo == 0:
                seen.append(AdamRound(model, trained - model, steps, of_round))
        model = mean.astype(np.float32)
    return seen, model


def _train(model: Array, z: Array, y: Array, settings: TrainSettings, seed: int) -> tuple[Array, tuple[Step, ...]]:
    weights, steps = model.copy(), []
    first, second = np.zeros_like(weights), np.zeros_like(weights)
    for time, rows in enumerate(shuffled_batches(len(z), settings, seed), start=1):
        shares = ((softmax(z[rows] @ weights.T) - y[rows]) / len(rows)).T.astype(np.float32)
        steps.append(Step(rows, shares))
        gradient = shares @ z[rows] + np.float32(settings.weight_decay) * weights
        first = BETA1 * first + (1 - BETA1) * gradient
        second = BETA2 * second + (1 - BETA2) * gradient**2
        size = np.sqrt(second / (1 - BETA2**time)) + EPSILON
        weights = (weights - settings.learning_rate / (1 - BETA1**time) * first / size).astype(np.float32)
    return weights, tuple(steps)


def unrolled(seen: Sequence[AdamRound], start: Array, features: Array, iterations: int, unknown: Array) -> Array:
    """Estimate some ``features`` (numbers) of the first silo's clips, [N, features], from ``start`` [N, D].

    The rows ``unknown`` are searched for, the others are as they are in ``start``. The search is Adam's own, over the
    directions of the unrolled training in all rounds: of a clipped update the length is not known. Raises MissingExtra.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("torch", extra="export") from error
    given, rows = torch.tensor(start[:, features], dtype=torch.float32), torch.from_numpy(unknown)
    x = given[rows].clone().requires_grad_()
    wanted = [torch.tensor(each.moved[:, features]) for each in seen]
    weights = [1 / each.norm() for each in wanted]
    steps = [[(torch.from_numpy(one.rows), torch.tensor(one.shares)) for one in each.steps] for each in seen]
    models = [torch.tensor(each.model[:, features]) for each in seen]
    optimiser = torch.optim.Adam([x], lr=SEARCH_RATE)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations)
    for _ in range(iterations):
        optimiser.zero_grad()
        for number, each in enumerate(seen):
            clips = given.index_copy(0, rows, x)
            made = _movement(models[number], steps[number], clips, each.settings)
            ((made / made.norm() - wanted[number] * weights[number]) ** 2).sum().backward()
        optimiser.step()
        falling.step()
    found: Array = given.index_copy(0, rows, x.detach()).numpy()
    return found


def _movement(model: Any, steps: Sequence[tuple[Any, Any]], x: Any, settings: TrainSettings) -> Any:
    """Movement of the weights [K, D] by a round of Adam on the rows ``x``, its probabilities being given."""
    weights, first, second = model, 0.0, 0.0
    for time, (rows, shares) in enumerate(steps, start=1):
        gradient = shares @ x[rows] + settings.weight_decay * weights
        first = BETA1 * first + (1 - BETA1) * gradient
        second = BETA2 * second + (1 - BETA2) * gradient * gradient
        size = (second / (1 - BETA2**time) + SMALLEST).sqrt() + EPSILON
        weights = weights - settings.learning_rate / (1 - BETA1**time) * first / size
    return weights - model
