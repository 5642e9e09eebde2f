"""Attacks on softmax regression over several rounds find clips where few are, so that their figures mean something."""

from __future__ import annotations

import numpy as np
import pytest
from flamest.agent.training.dataset import FeatureTable
from flamest.agent.training.private import UNPROTECTED
from flamest.agent.training.trainer import HeadTrainer
from flamest.experiments.inversion.adam_rounds import federated_adam, unrolled
from flamest.experiments.inversion.gradients import federated_gradients, solve, standardised
from flamest.fedproto.head import HeadSpec
from flamest.fedproto.records import TrainSettings

CLASSES, WIDTH = 4, 40


def clips(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    y = np.arange(count) % CLASSES
    centres = np.random.default_rng(0).normal(size=(CLASSES, WIDTH))
    return standardised(centres[y] + random.normal(size=(count, WIDTH))), y


def errors(found: np.ndarray, z: np.ndarray) -> np.ndarray:
    return np.linalg.norm(found - z, axis=1) / np.linalg.norm(z, axis=1)


def test_exact_gradients_of_many_rounds_give_every_clip() -> None:
    """16 clips, four of each class: no class has a single one."""
    (z, y), other = clips(16, 1), clips(40, 2)
    prior = np.zeros(z.shape)
    for noise, most in ((0.0, 0.05), (1.0, np.inf)):
        seen = federated_gradients([(z, y), other], CLASSES, 120, noise, np.random.default_rng(3))
        least = min(errors(found, z).max() for found in solve(seen, z, y, prior))
        assert least < most
        assert noise == 0.0 or least > 0.2


def test_the_first_gradient_holds_the_only_clip_of_a_class() -> None:
    z, y = clips(16, 1)
    y = np.where(y == 3, 2, y)
    y[0] = 3
    seen = federated_gradients([(z, y)], CLASSES, 1, 0.0, np.random.default_rng(3))
    held = z.mean(axis=0) * len(z) / CLASSES - len(z) * seen.gradients[0, 3, :-1]
    assert errors(held[None], z[:1])[0] < 1e-4


def test_the_simulated_adam_is_the_products() -> None:
    (z, y), settings = clips(20, 1), TrainSettings(epochs=2, batch_size=8, learning_rate=1e-3)
    [first], _ = federated_adam([(z, y)], CLASSES, 1, settings, UNPROTECTED, np.random.default_rng(3))
    spec = HeadSpec(WIDTH, CLASSES, ())
    zeros = {name: np.zeros(shape, np.float32) for name, shape in spec.shapes.items()}
    trained = HeadTrainer(spec, threads=1).train(zeros, FeatureTable(z, y.astype(np.int64)), settings, seed=0).params
    np.testing.assert_allclose(first.moved[:, :-1], trained["0.weight"], atol=2e-5)
    np.testing.assert_allclose(first.moved[:, -1], trained["0.bias"], atol=2e-5)


def test_unrolled_training_gives_the_only_clip_of_a_class() -> None:
    """The attacker knows all other clips; a class of eight is not recovered."""
    pytest.importorskip("torch")
    found = {}
    for count in (1, 8):
        z, y = clips(40, 1)
        y = np.where(y == 3, 2, y)
        y[:count] = 3
        settings = TrainSettings(epochs=2, batch_size=20, learning_rate=1e-3)
        seen, _ = federated_adam([(z, y), clips(40, 2)], CLASSES, 4, settings, UNPROTECTED, np.random.default_rng(3))
        start = z.copy()
        start[:count] = z[count:].mean(axis=0)
        features = np.arange(0, WIDTH, 2)
        estimate = unrolled(seen, start, features, 150, np.arange(count))
        assert estimate[count:].tobytes() == z[count:, features].tobytes()
        found[count] = float(np.median(errors(estimate[:count], z[:count, features])))
    assert found[1] < 0.3
    assert found[8] > 0.5
