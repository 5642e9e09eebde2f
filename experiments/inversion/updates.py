"""Inversion attacks that reconstruct a silo's embeddings from its update, for tests and measurements.

The attacker has the round's model, the update, the run's settings, the silo's shuffles (they follow from the settings
and its name), the number of clips and, as a worst case, their labels. The target is the embeddings of the clips that
the silo trained on.

**Division** (Geiping et al. 2020, arXiv 2003.14053, appendix; Boenisch et al. 2023, arXiv 2112.02918): a first-layer
unit with the gradient s_i for clip i has dW = Σ s_i x_i^T and db = Σ s_i. Where a single clip activates a unit,
dW / db is exactly that clip, up to rounding.

**Optimisation** (Zhu et al. 2019, arXiv 1906.08935; Geiping et al. 2020): find rows whose training gives this update.
Adam's first step is nearly the sign of the gradient. So the rows' gradient is first aligned with the update's
direction; then the whole training is unrolled and its update compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...agent.training.adam import BETA1, BETA2, EPSILON
from ...agent.training.dataset import FeatureTable
from ...base.errors import MissingExtra
from ...fedproto.head import HeadSpec, Params
from ...fedproto.records import TrainSettings

Array = npt.NDArray[Any]
RECOVERED = 0.05  # relative error below which a clip counts as recovered


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Distance of an attack's nearest candidate to each of the n clips."""

    errors: Array  # float64 [n], |candidate - clip| / |clip| of the nearest candidate
    cosines: Array  # float64 [n], of the candidate with the most similar direction

    @property
    def recovered(self) -> int:
        """Number of recovered clips."""
        return int((self.errors < RECOVERED).sum())


def nearest(candidates: Array, clips: Array) -> Reconstruction:
    """Compare all ``candidates`` [m, D] with all ``clips`` [n, D]."""
    lengths = np.linalg.norm(clips.astype(np.float64), axis=1)
    if not len(candidates):
        return Reconstruction(np.full(len(clips), np.inf), np.zeros(len(clips)))
    vectors = candidates.astype(np.float64)
    products, sizes = vectors @ clips.T.astype(np.float64), np.linalg.norm(vectors, axis=1)
    squares = np.maximum(sizes[:, None] ** 2 - 2 * products + lengths**2, 0.0)
    cosines = products / np.maximum(sizes[:, None] * lengths, 1e-300)
    return Reconstruction(np.sqrt(squares).min(axis=0) / lengths, cosines.max(axis=0))


def divide(base: Params, params: Params) -> Array:
    """Candidates of the division attack, [units with a gradient, D]."""
    weight = params["0.weight"].astype(np.float64) - base["0.weight"]
    bias = params["0.bias"].astype(np.float64) - base["0.bias"]
    moved = np.abs(bias) > 0
    made = weight[moved] / bias[moved, None]
    return made[np.isfinite(made).all(axis=1)]


def shuffled_batches(rows: int, settings: TrainSettings, seed: int) -> list[npt.NDArray[np.int64]]:
    """Batches of a round's training, as the silo draws them without privacy."""
    random, size, made = np.random.Generator(np.random.PCG64(seed)), settings.batch_size, []
    for _ in range(settings.epochs):
        order = random.permutation(rows)
        made += [order[start : start + size] for start in range(0, rows, size)]
    return made


def sgd_update(spec: HeadSpec, params: Params, table: FeatureTable, settings: TrainSettings, seed: int) -> Params:
    """Model after a round of plain gradient descent in place of Adam (an mlp head, no weight decay), float32."""
    weights = {name: tensor.astype(np.float64) for name, tensor in params.items()}
    layers = range(len(spec.widths) - 1)
    for rows in shuffled_batches(len(table), settings, seed):
        outs = [table.x[rows].astype(np.float64)]
        for layer in layers:
            sums = outs[-1] @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"]
            outs.append(np.maximum(sums, 0) if layer < layers[-1] else sums)
        logits = outs.pop()
        output_gradient = np.exp(logits - logits.max(axis=1, keepdims=True))
        output_gradient /= output_gradient.sum(axis=1, keepdims=True)
        output_gradient[np.arange(len(rows)), table.y[rows]] -= 1
        output_gradient /= len(rows)
        for layer in reversed(layers):
            layer_inputs = outs[layer]
            input_gradient = (output_gradient @ weights[f"{layer}.weight"]) * (layer_inputs > 0)
            weights[f"{layer}.weight"] -= settings.learning_rate * output_gradient.T @ layer_inputs
            weights[f"{layer}.bias"] -= settings.learning_rate * output_gradient.sum(axis=0)
            output_gradient = input_gradient
    return {name: tensor.astype(np.float32) for name, tensor in weights.items()}


@dataclass(frozen=True)
class Search:
    """Effort of the optimisation attack."""

    aligning: int = 300  # steps that align the gradient with the update's direction
    unrolled: int = 100  # steps that match the unrolled training
    rate: float = 0.05  # learning rate of the attack's own Adam
    seed: int = 0


def optimise(
    spec: HeadSpec, base: Params, params: Params, labels: Array, training: tuple[TrainSettings, int], search: Search
) -> Array:
    """Candidates [n, D] of the optimisation attack on an update of Adam, one for each label.

    ``training``: the round's settings and the seed of its shuffles. An mlp head without standardised blocks. Raises
    MissingExtra.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("torch", extra="export") from error
    torch.manual_seed(search.seed)
    start = {name: torch.tensor(tensor) for name, tensor in base.items()}
    moved = torch.tensor(params["0.weight"] - base["0.weight"]).flatten()
    y = torch.tensor(labels)
    x = torch.randn(len(labels), spec.inputs, requires_grad=True)
    optimiser = torch.optim.Adam([x], lr=search.rate)
    for step in range(search.aligning + search.unrolled):
        if step < search.aligning:
            made = -_gradient(spec, start, x, y)["0.weight"]
        else:
            made = _adam(spec, start, x, y, training)["0.weight"] - start["0.weight"]
        loss = 1 - torch.nn.functional.cosine_similarity(made.flatten(), moved, dim=0)
        (x.grad,) = torch.autograd.grad(loss, [x])
        optimiser.step()
    found: Array = x.detach().numpy()
    return found


def _gradient(spec: HeadSpec, weights: Mapping[str, Any], x: Any, y: Any) -> dict[str, Any]:
    """Gradient of the loss, itself differentiable."""
    import torch
    from torch.nn.functional import cross_entropy, linear, relu

    leaves = {
        name: tensor if tensor.requires_grad else tensor.detach().requires_grad_() for name, tensor in weights.items()
    }
    h = x
    for layer in range(len(spec.widths) - 1):
        h = linear(relu(h) if layer else h, leaves[f"{layer}.weight"], leaves[f"{layer}.bias"])
    made = torch.autograd.grad(cross_entropy(h, y), list(leaves.values()), create_graph=True)
    return dict(zip(leaves, made, strict=True))


def _adam(
    spec: HeadSpec, start: Mapping[str, Any], x: Any, y: Any, training: tuple[TrainSettings, int]
) -> dict[str, Any]:
    """Weights after a round of Adam, differentiable in ``x``."""
    import torch

    settings, seed = training
    weights = dict(start)
    m = {name: torch.zeros_like(tensor) for name, tensor in start.items()}
    v = {name: torch.zeros_like(tensor) for name, tensor in start.items()}
    for time, rows in enumerate(shuffled_batches(len(y), settings, seed), start=1):
        picked = torch.from_numpy(rows)
        for name, gradient in _gradient(spec, weights, x[picked], y[picked]).items():
            g = gradient + settings.weight_decay * weights[name]
            m[name] = BETA1 * m[name] + (1 - BETA1) * g
            v[name] = BETA2 * v[name] + (1 - BETA2) * g * g
            size = (v[name] / (1 - BETA2**time) + 1e-20).sqrt() + EPSILON  # the root of 0 has no derivative
            weights[name] = weights[name] - settings.learning_rate * m[name] / (1 - BETA1**time) / size
    return weights
