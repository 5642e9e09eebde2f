"""The ONNX training step against PyTorch, which a silo does not need."""

from __future__ import annotations

import numpy as np
import pytest
from flamest.agent.training.dataset import FeatureTable, feature_table
from flamest.agent.training.trainer import Anchor, HeadTrainer, evaluate, shuffle_seed
from flamest.base.errors import DataError
from flamest.fedproto.head import HeadSpec, initial_params, params_sha256
from flamest.fedproto.records import TrainSettings

SPEC = HeadSpec(inputs=48, outputs=7, hidden=(32, 16))


def random_table(rows: int, *, seed: int = 1) -> FeatureTable:
    random = np.random.default_rng(seed)
    return FeatureTable(random.normal(size=(rows, SPEC.inputs)).astype(np.float32), random.integers(0, 7, rows))


def torch_adam(params, table, settings, *, seed, mu=0.0, dtype):
    """The same training with torch.optim.Adam and autograd, on the same shuffles."""
    import torch

    weights = {name: torch.tensor(value, dtype=dtype, requires_grad=True) for name, value in params.items()}
    anchors = {name: value.detach().clone() for name, value in weights.items()}
    adam = torch.optim.Adam(weights.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    random = np.random.Generator(np.random.PCG64(seed))
    x, y = torch.tensor(table.x, dtype=dtype), torch.tensor(table.y)
    for _ in range(settings.epochs):
        order = random.permutation(len(table))
        for start in range(0, len(order), settings.batch_size):
            rows = torch.tensor(order[start : start + settings.batch_size])
            h = x[rows]
            for layer in range(3):
                h = torch.nn.functional.linear(h, weights[f"{layer}.weight"], weights[f"{layer}.bias"])
                h = h if layer == 2 else torch.relu(h)
            loss = torch.nn.functional.cross_entropy(h, y[rows])
            if mu:
                loss = loss + mu / 2 * sum(((weights[n] - anchors[n]) ** 2).sum() for n in weights)
            adam.zero_grad()
            loss.backward()
            adam.step()
    return {name: value.detach().numpy() for name, value in weights.items()}


@pytest.mark.parametrize("mu", [0.0, 0.3], ids=["fedavg", "fedprox"])
def test_a_hundred_float64_steps_equal_torch_adam(mu):
    import torch

    table = random_table(130)  # 17 batches of 8, the last of 2: a hundred and two steps
    settings = TrainSettings(epochs=6, batch_size=8, learning_rate=0.01, weight_decay=1e-3)
    params = initial_params(SPEC, 5)
    ours = HeadTrainer(SPEC, dtype="float64").train(
        params, table, settings, seed=11, anchor=Anchor(mu, params) if mu else None
    )
    theirs = torch_adam(params, table, settings, seed=11, mu=mu, dtype=torch.float64)
    assert ours.steps == 102
    for name in params:
        np.testing.assert_allclose(ours.params[name], theirs[name], rtol=0, atol=1e-9)


def test_one_float32_step_equals_torch_adam():
    import torch

    table = random_table(64)
    settings = TrainSettings(epochs=1, batch_size=64)
    params = initial_params(SPEC, 5)
    ours = HeadTrainer(SPEC).train(params, table, settings, seed=0)
    theirs = torch_adam(params, table, settings, seed=0, dtype=torch.float32)
    for name in params:
        # Adam's first step is ±learning rate wherever the gradient is clearly not zero.
        apart = np.abs(ours.params[name] - theirs[name])
        assert np.quantile(apart, 0.99) < 1e-6


def test_the_proximal_term_keeps_the_model_near_its_start():
    table, params = random_table(200), initial_params(SPEC, 5)
    settings = TrainSettings(epochs=5, batch_size=32)

    def distance(mu: float) -> float:
        trained = HeadTrainer(SPEC).train(params, table, settings, seed=3, anchor=Anchor(mu, params)).params
        return sum(float(((trained[name] - params[name]) ** 2).sum()) for name in params)

    assert distance(10.0) < 0.5 * distance(0.0)


def test_training_learns_and_evaluation_counts():
    random = np.random.default_rng(0)
    centres = random.normal(size=(7, SPEC.inputs)) * 2
    y = random.integers(0, 7, 700)
    x = (centres[y] + random.normal(size=(700, SPEC.inputs))).astype(np.float32)
    train, test = FeatureTable(x[:500], y[:500]), FeatureTable(x[500:], y[500:])
    trainer = HeadTrainer(SPEC)
    params = initial_params(SPEC, 0)
    before = evaluate(trainer, params, test)
    trained = trainer.train(params, train, TrainSettings(), seed=0)
    after = evaluate(trainer, trained.params, test)
    assert before.count == after.count == 200
    assert after.correct > 190 > before.correct
    assert after.loss < 0.2 < before.loss


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not():
    table, params = random_table(300), initial_params(SPEC, 5)

    def run(seed: int) -> str:
        return params_sha256(HeadTrainer(SPEC).train(params, table, TrainSettings(), seed=seed).params)

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_the_starting_parameters_are_not_changed():
    table, params = random_table(50), initial_params(SPEC, 5)
    before = params_sha256(params)
    HeadTrainer(SPEC).train(params, table, TrainSettings(), seed=1)
    assert params_sha256(params) == before


def test_an_empty_table_evaluates_to_zero_of_zero():
    evaluation = evaluate(HeadTrainer(SPEC), initial_params(SPEC, 0), random_table(0))
    assert (evaluation.correct, evaluation.count) == (0, 0)


def test_shuffles_differ_by_round_and_by_silo():
    seeds = {shuffle_seed(0, 1, "a"), shuffle_seed(0, 2, "a"), shuffle_seed(0, 1, "b"), shuffle_seed(1, 1, "a")}
    assert len(seeds) == 4


def test_a_label_outside_the_vocabulary_is_an_error():
    with pytest.raises(DataError, match="'cartwheel'"):
        feature_table(np.zeros((1, 3), np.float32), ["cartwheel"], ["run", "jump"])
