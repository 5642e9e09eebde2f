"""The options of the training step against PyTorch's autograd, in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from flamest.agent.training.dataset import FeatureTable
from flamest.agent.training.federated import round_settings, train_silo
from flamest.agent.training.trainer import Anchor, HeadTrainer, class_weights, shuffle_seed
from flamest.base.errors import DataError
from flamest.fedproto.head import HeadSpec, initial_params
from flamest.fedproto.records import RunSettings, Strategy, TrainSettings

BLOCKS = (11, 21)
HEADS = {
    "mlp": HeadSpec(32, 5, (16, 8)),
    "regression": HeadSpec(32, 5, ()),
    "standardised": HeadSpec(32, 5, (16,), blocks=BLOCKS, standardise=True),
    "standardised as one": HeadSpec(32, 5, (16,), standardise=True),
    "rgcf": HeadSpec(32, 5, (16, 8), kind="rgcf", blocks=BLOCKS, common=6),
    "rgcf standardised": HeadSpec(32, 5, (), kind="rgcf", blocks=BLOCKS, standardise=True, common=7),
}


def random_table(rows: int, *, seed: int = 1) -> FeatureTable:
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 32)) * 3 + 1
    return FeatureTable(x.astype(np.float32), random.choice(5, rows, p=[0.5, 0.2, 0.15, 0.1, 0.05]))


def torch_logits(spec, weights, x):
    """The head as a reader of the paper would write it in PyTorch."""
    import torch
    from torch.nn.functional import linear

    def layer(name, value):
        return linear(value, weights[f"{name}.weight"], weights[f"{name}.bias"])

    blocks = list(torch.split(x, list(spec.blocks or (spec.inputs,)), dim=1))
    if spec.standardise:
        blocks = [(b - b.mean(1, keepdim=True)) / b.std(1, keepdim=True, unbiased=False) for b in blocks]
    if spec.kind == "rgcf":
        v, t = layer("v", blocks[0]), layer("t", blocks[1])
        v_next = v + torch.sigmoid(layer("v.gate", torch.cat([v, t], 1))) * layer("v.carry", t)
        t_next = t + torch.sigmoid(layer("t.gate", torch.cat([t, v], 1))) * layer("t.carry", v)
        blocks = [v_next, t_next]
    h = torch.cat(blocks, 1)
    for number in range(len(spec.hidden) + 1):
        h = layer(str(number), torch.relu(h) if number else h)
    return h


def torch_training(spec, params, table, settings, *, seed, extra=lambda weights: 0.0):
    """torch.optim.Adam on the same shuffles; ``extra`` is added to the loss."""
    import torch

    weights = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in params.items()}
    adam = torch.optim.Adam(weights.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    class_weight = None
    if settings.class_balanced:
        counts = np.bincount(table.y, minlength=spec.outputs)
        share = [len(table) / ((counts > 0).sum() * n) if n else 0.0 for n in counts]
        class_weight = torch.tensor(share, dtype=torch.float64)
    loss_of = torch.nn.CrossEntropyLoss(weight=class_weight)
    random = np.random.Generator(np.random.PCG64(seed))
    x, y = torch.tensor(table.x, dtype=torch.float64), torch.tensor(table.y)
    losses = []
    for _ in range(settings.epochs):
        order = random.permutation(len(table))
        for start in range(0, len(order), settings.batch_size):
            rows = torch.tensor(order[start : start + settings.batch_size])
            loss = loss_of(torch_logits(spec, weights, x[rows]), y[rows])
            losses.append((len(rows), loss.item()))
            adam.zero_grad()
            (loss + extra(weights)).backward()
            adam.step()
    return {name: value.detach().numpy() for name, value in weights.items()}, losses


def assert_equal(ours, theirs):
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        np.testing.assert_allclose(tensor, theirs[name], rtol=0, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("balanced", [False, True], ids=["plain", "balanced"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("epochs", "batch", "steps"), [(1, 90, 1), (5, 8, 60)], ids=["one step", "many steps"])
def test_every_head_trains_as_torch_does(head, balanced, epochs, batch, steps):
    spec, table = HEADS[head], random_table(90)
    settings = TrainSettings(epochs=epochs, batch_size=batch, weight_decay=1e-3, class_balanced=balanced)
    params = initial_params(spec, 5)
    ours = HeadTrainer(spec, threads=1, dtype="float64").train(params, table, settings, seed=11)
    theirs, losses = torch_training(spec, params, table, settings, seed=11)
    assert ours.steps == steps == len(losses)
    assert_equal(ours.params, theirs)
    last_epoch = losses[-(steps // epochs) :]
    assert ours.loss == pytest.approx(sum(n * loss for n, loss in last_epoch) / len(table), abs=1e-9)


@pytest.mark.parametrize("head", HEADS)
def test_every_head_scores_as_torch_does(head):
    import torch

    spec, table = HEADS[head], random_table(17)
    params = initial_params(spec, 3)
    ours = HeadTrainer(spec, threads=1, dtype="float64").logits(params, table.x)
    weights = {name: torch.tensor(value, dtype=torch.float64) for name, value in params.items()}
    theirs = torch_logits(spec, weights, torch.tensor(table.x, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("value", [0.0, 0.1, 7.7, 123.4, 1e5])
def test_a_constant_block_becomes_small_values_and_not_nan(value):
    """Zeros but for the mean's rounding: with weights that sum a row up, each number adds 1 at most."""
    spec = HeadSpec(2048, 1, (), standardise=True)
    params = {"0.weight": np.ones((1, 2048), np.float32), "0.bias": np.zeros(1, np.float32)}
    found = {
        dtype: HeadTrainer(spec, threads=1, dtype=dtype).logits(params, np.full((3, 2048), value, np.float32))
        for dtype in ("float32", "float64")
    }
    assert np.abs(found["float32"]).max() <= 2048  # NaN is not
    assert np.abs(found["float64"]).max() <= 2.0


def test_class_weights_balance_the_classes_of_a_silo():
    y = np.array([0] * 6 + [2] * 3 + [3])
    weights = class_weights(y, 5)
    np.testing.assert_allclose(weights, [10 / 18, 0, 10 / 9, 10 / 3, 0])
    assert weights[y].sum() == pytest.approx(len(y))


def test_the_rate_of_a_round_decays_from_the_first_on():
    settings = TrainSettings(learning_rate=0.1, learning_rate_decay=0.5)
    assert [round_settings(settings, number).learning_rate for number in (1, 2, 4)] == [0.1, 0.05, 0.0125]


def run_of(strategy: Strategy, spec: HeadSpec, **train) -> RunSettings:
    return RunSettings("r", tuple("abcde"), spec, 9, 1, 1.0, "f", strategy=strategy, train=TrainSettings(**train))


def test_feddyn_trains_on_the_papers_local_loss_and_moves_its_correction():
    spec, table, alpha = HEADS["mlp"], random_table(60), 0.3
    params = initial_params(spec, 5)
    random = np.random.default_rng(8)
    h = {name: random.normal(size=shape) * 0.01 for name, shape in spec.shapes.items()}
    run = run_of(Strategy("feddyn", alpha=alpha), spec, epochs=3, batch_size=16, learning_rate_decay=0.5)
    trainer = HeadTrainer(spec, threads=1, dtype="float64")
    trained, after = train_silo(trainer, run, "anna", 2, params, table, h)

    def papers_terms(weights):
        import torch

        start = {name: torch.tensor(value, dtype=torch.float64) for name, value in params.items()}
        linear = sum((torch.tensor(h[name]) * weights[name]).sum() for name in weights)
        return -linear + alpha / 2 * sum(((weights[name] - start[name]) ** 2).sum() for name in weights)

    seed = shuffle_seed(run.seed, 2, "anna")
    expected, _ = torch_training(spec, params, table, round_settings(run.train, 2), seed=seed, extra=papers_terms)
    assert_equal(trained.params, expected)
    for name in params:
        np.testing.assert_allclose(after[name], h[name] - alpha * (expected[name] - params[name]), rtol=0, atol=1e-9)


@pytest.mark.parametrize("strategy", [Strategy(), Strategy("fedprox", mu=0.1)], ids=["fedavg", "fedprox"])
def test_only_feddyn_returns_a_correction(strategy):
    spec, table = HEADS["regression"], random_table(20)
    trainer = HeadTrainer(spec, threads=1)
    params = initial_params(spec, 5)
    trained, after = train_silo(trainer, run_of(strategy, spec), "anna", 1, params, table, {})
    assert after == {}
    anchored = HeadTrainer(spec, threads=1)
    seed, pull = shuffle_seed(0, 1, "anna"), Anchor(strategy.mu, params) if strategy.mu else None
    again = anchored.train(params, table, TrainSettings(), seed=seed, anchor=pull)
    assert all((again.params[name] == trained.params[name]).all() for name in params)


def test_training_that_diverges_with_a_gated_head_is_an_error():
    spec = HEADS["rgcf"]
    table = replace(random_table(40), x=random_table(40).x * np.float32(1e30))
    with pytest.raises(DataError) as refused:
        HeadTrainer(spec, threads=1).train(initial_params(spec, 1), table, TrainSettings(learning_rate=1e30), seed=0)
    assert refused.value.code == "diverged"
