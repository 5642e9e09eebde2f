"""Training with record-dp, against autograd sample by sample; and the clipping of whole updates."""

from __future__ import annotations

import numpy as np
import pytest
from flamest.agent.training import private, steps, trainer
from flamest.agent.training.dataset import FeatureTable
from flamest.agent.training.private import (
    FILL_MULTIPLE,
    UNPROTECTED,
    Protection,
    Sampling,
    fresh_generator,
    poisson_batch,
    protected,
)
from flamest.agent.training.trainer import HeadTrainer, evaluate
from flamest.base.errors import DataError
from flamest.fedproto.head import HeadSpec, initial_params
from flamest.fedproto.records import TrainSettings

BLOCKS = (11, 21)
HEADS = {
    "mlp": HeadSpec(32, 5, (16, 8)),
    "regression": HeadSpec(32, 5, ()),
    "standardised": HeadSpec(32, 5, (16,), blocks=BLOCKS, standardise=True),
    "rgcf": HeadSpec(32, 5, (16, 8), kind="rgcf", blocks=BLOCKS, common=6, standardise=True),
}
ROWS, DRAWN = 40, 25
ONE_STEP = TrainSettings(epochs=1, batch_size=ROWS)


def random_table(rows: int = ROWS) -> FeatureTable:
    random = np.random.default_rng(1)
    x = random.normal(size=(rows, 32)) * random.lognormal(size=(rows, 1))  # some rows are far out
    return FeatureTable(x.astype(np.float32), random.integers(0, 5, rows))


def sample_gradients(spec, params, table) -> list[dict[str, np.ndarray]]:
    """Every row's own, by autograd in float64."""
    import torch
    from torch.nn.functional import cross_entropy, linear

    weights = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in params.items()}

    def layer(name, value):
        return linear(value, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def logits(x):
        blocks = list(torch.split(x, list(spec.blocks or (spec.inputs,)), dim=1))
        if spec.standardise:
            blocks = [(b - b.mean(1, keepdim=True)) / b.std(1, keepdim=True, unbiased=False) for b in blocks]
        if spec.kind == "rgcf":
            v, t = layer("v", blocks[0]), layer("t", blocks[1])
            v_next = v + torch.sigmoid(layer("v.gate", torch.cat([v, t], 1))) * layer("v.carry", t)
            blocks = [v_next, t + torch.sigmoid(layer("t.gate", torch.cat([t, v], 1))) * layer("t.carry", v)]
        h = torch.cat(blocks, 1)
        for number in range(len(spec.hidden) + 1):
            h = layer(str(number), torch.relu(h) if number else h)
        return h

    made = []
    for row in range(len(table)):
        loss = cross_entropy(
            logits(torch.tensor(table.x[row : row + 1], dtype=torch.float64)), torch.tensor([table.y[row]])
        )
        found = torch.autograd.grad(loss, list(weights.values()))
        made.append({name: each.numpy() for name, each in zip(weights, found, strict=True)})
    return made


def norm(gradient) -> float:
    return float(np.sqrt(sum(np.square(tensor).sum() for tensor in gradient.values())))


@pytest.fixture
def one_step(monkeypatch):
    """The gradient that the optimiser is given in one step on the first DRAWN rows, by the head's tensors."""

    def descend(moving, gradient, scratch, scalars):
        moving.weight[...] -= gradient

    filled = np.r_[np.arange(DRAWN), np.zeros(-DRAWN % FILL_MULTIPLE, np.int64)]
    monkeypatch.setattr(steps, "adam_step", descend)
    monkeypatch.setattr(trainer, "poisson_batch", lambda random, rows, rate: (filled, DRAWN))

    def run(spec, params, clip: float, noise: float, dtype="float64", threads: int = 1):
        start = {name: tensor.astype(dtype) for name, tensor in params.items()}
        made = HeadTrainer(spec, threads=threads, dtype=dtype).train(
            start, random_table(), ONE_STEP, seed=0, protection=Protection("record-dp", clip, noise)
        )
        return {name: start[name] - tensor for name, tensor in made.params.items()}

    return run


@pytest.mark.parametrize("head", HEADS)
def test_the_mean_gradient_is_that_of_clipped_samples(one_step, head):
    spec = HEADS[head]
    params = initial_params(spec, 5)
    samples = sample_gradients(spec, params, random_table())[:DRAWN]
    clip = float(np.median([norm(sample) for sample in samples]))
    found = one_step(spec, params, clip, 0.0)
    for name in params:
        clipped = [sample[name] * min(1.0, clip / norm(sample)) for sample in samples]
        np.testing.assert_allclose(found[name], sum(clipped) / ROWS, rtol=0, atol=1e-10, err_msg=name)


def test_a_large_bound_leaves_the_plain_sum_over_the_expected_size(one_step):
    spec = HEADS["mlp"]
    params = initial_params(spec, 5)
    found = one_step(spec, params, 1e9, 0.0, threads=2)
    samples = sample_gradients(spec, params, random_table())[:DRAWN]
    for name in params:
        np.testing.assert_allclose(found[name], sum(sample[name] for sample in samples) / ROWS, rtol=0, atol=1e-12)


def test_no_sample_moves_the_sum_beyond_the_bound_in_float32(one_step):
    spec = HEADS["mlp"]
    params = initial_params(spec, 5)
    found = one_step(spec, params, 0.01, 0.0, dtype="float32")
    assert norm(found) <= DRAWN * 0.01 / ROWS * (1 + 1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_noise_has_the_standard_deviation_that_the_accountant_assumes(one_step, monkeypatch, threads):
    monkeypatch.setattr(steps, "BLOCK", 100)  # several blocks and pieces
    monkeypatch.setattr(steps, "PIECE", 50)
    spec = HeadSpec(32, 5, (160, 80))
    params = initial_params(spec, 5)
    clip, multiplier = 0.5, 2.0
    quiet = one_step(spec, params, clip, 0.0)
    noisy = one_step(spec, params, clip, multiplier, threads=threads)
    noise = np.concatenate([(noisy[name] - quiet[name]).ravel() for name in params]) / (multiplier * clip / ROWS)
    count = len(noise)
    assert abs(noise.mean()) < 5 / np.sqrt(count)
    assert abs(noise.std() - 1) < 5 / np.sqrt(2 * count)
    assert len(np.unique(noise)) == count  # no two parameters share a draw


def test_two_private_trainings_differ_despite_the_same_seed():
    """Noise and batches come from the operating system."""
    spec, table, params = HEADS["mlp"], random_table(), initial_params(HEADS["mlp"], 5)
    private = Protection("record-dp", 1.0, 1.0)
    settings = TrainSettings(epochs=1, batch_size=16)
    one, other = (
        HeadTrainer(spec, threads=1).train(params, table, settings, seed=0, protection=private).params for _ in "ab"
    )
    assert all((one[name] != other[name]).any() for name in params)


def test_generators_are_seeded_by_the_operating_system(monkeypatch):
    asked = []

    def urandom(size):
        asked.append(size)
        return bytes(range(size))

    monkeypatch.setattr(private.os, "urandom", urandom)
    assert fresh_generator().random() == fresh_generator().random()
    assert asked == [32, 32]


def test_batches_are_drawn_row_by_row():
    random, rows, rate, draws = np.random.default_rng(3), 200, 0.3, 2000
    seen, sizes = np.zeros(rows), []
    for _ in range(draws):
        batch, drawn = poisson_batch(random, rows, rate)
        assert len(batch) % FILL_MULTIPLE == 0
        assert len(set(batch[:drawn])) == drawn
        seen[batch[:drawn]] += 1
        sizes.append(drawn)
    assert np.abs(seen / draws - rate).max() < 5 * np.sqrt(rate * (1 - rate) / draws)
    assert np.std(sizes) == pytest.approx(np.sqrt(rows * rate * (1 - rate)), rel=0.1)  # of a fixed size it would be 0


def test_an_empty_batch_is_a_step_of_noise_alone():
    batch, drawn = poisson_batch(np.random.default_rng(0), 50, 0.0)
    assert (len(batch), drawn) == (FILL_MULTIPLE, 0)


@pytest.mark.parametrize("rows", [200, 5_000, 100_000])
def test_batches_of_few_sizes_are_drawn(rows):
    """Each size has buffers of its own, and a coordinator chooses the mean."""
    random = np.random.default_rng(1)
    sizes = {len(poisson_batch(random, rows, 0.5)[0]) for _ in range(200)}
    assert len(sizes) <= 3
    assert max(sizes) <= 0.5 * rows * 1.25 + 5 * np.sqrt(rows) + FILL_MULTIPLE


def large_weights(spec, value):
    params = initial_params(spec, 0)
    return {name: tensor * np.float32(value) for name, tensor in params.items()}


DP = Protection("record-dp", clip_norm=1.0, noise=1.0)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("value", [1e3, 1e9, 1e15, 1e25, 1e37])
def test_training_with_privacy_answers_a_model_that_overflows_on_some_clips(name, value):
    """An error would tell, outside epsilon, whether a clip makes it overflow."""
    spec = HEADS[name]
    table = random_table()
    table.x[3] *= np.float32(1e5)
    params = large_weights(spec, value)
    trained = trainer.HeadTrainer(spec, threads=1).train(
        params, table, TrainSettings(epochs=3, batch_size=16, learning_rate=1000.0), seed=0, protection=DP
    )
    assert all(np.isfinite(tensor).all() for tensor in trained.params.values())


@pytest.mark.parametrize("gradient", [np.inf, np.nan, 1e38, 1e30])
def test_a_row_adds_at_most_the_clip_norm_however_large_its_gradient(gradient):
    outputs = np.array([[1.0, gradient], [2.0, -1.0]], np.float32)
    inputs = {"0": np.array([[1.0, 2.0, 3.0], [1e8, 1.0, 1.0]], np.float32)}
    noise = private.SampleNoise(1.0, 1.0, Sampling(0.5, 1, 2.0))
    factors = private.sample_factors(outputs, inputs, {"0": (2, 3)}, 2, noise)
    private.scale_samples(outputs, inputs, factors)
    of_second = np.outer(outputs[:, 1].astype(float), np.append(inputs["0"][1], 1.0).astype(float))
    assert np.linalg.norm(of_second) <= 1.0 + 1e-6
    assert outputs[:, 0].all()  # the other row's is as it was


def test_a_round_takes_as_many_steps_as_without_privacy():
    assert Sampling.of(1000, TrainSettings(epochs=5, batch_size=128)) == Sampling(0.128, 40, 128)
    assert Sampling.of(100, TrainSettings(epochs=5, batch_size=128)) == Sampling(1.0, 5, 100)


def test_training_with_little_noise_learns():
    random = np.random.default_rng(0)
    centres = random.normal(size=(5, 32)) * 2
    y = random.integers(0, 5, 600)
    table = FeatureTable((centres[y] + random.normal(size=(600, 32))).astype(np.float32), y)
    head = HeadTrainer(HEADS["mlp"], threads=1)
    params = initial_params(HEADS["mlp"], 0)
    private = Protection("record-dp", 1.0, 0.2)
    made = head.train(params, table, TrainSettings(epochs=5, batch_size=64), seed=0, protection=private)
    assert made.steps == 50
    assert evaluate(head, made.params, table).correct > 300 > evaluate(head, params, table).correct  # chance: 120


def test_class_weights_are_refused_with_record_dp():
    with pytest.raises(DataError) as error:
        HeadTrainer(HEADS["mlp"], threads=1).train(
            initial_params(HEADS["mlp"], 0),
            random_table(),
            TrainSettings(class_balanced=True),
            seed=0,
            protection=Protection("record-dp", 1.0, 1.0),
        )
    assert error.value.code == "class_balanced"


# --- whole updates ---


def params_pair() -> tuple[dict, dict]:
    spec = HeadSpec(64, 5, (100,))
    return initial_params(spec, 1), initial_params(spec, 2)


def distance(one, other) -> float:
    return float(np.sqrt(sum(np.square(one[name].astype(np.float64) - other[name]).sum() for name in one)))


def test_an_update_is_clipped_to_the_norm_and_keeps_its_direction():
    base, params = params_pair()
    clipped = protected(base, params, Protection("clip", 1.0, 0.0), fresh_generator())
    assert distance(clipped, base) == pytest.approx(1.0, rel=1e-4)
    share = 1.0 / distance(params, base)
    for name in base:
        np.testing.assert_allclose(clipped[name], base[name] + share * (params[name] - base[name]), rtol=0, atol=1e-6)


def test_an_update_within_the_norm_is_not_changed():
    base, params = params_pair()
    left = protected(base, params, Protection("clip", 1e3, 0.0), fresh_generator())
    for name in base:
        np.testing.assert_allclose(left[name], params[name], rtol=0, atol=1e-7)
    assert protected(base, params, UNPROTECTED, fresh_generator()) is params


def test_an_updates_noise_scales_with_the_norm():
    base, params = params_pair()
    quiet = protected(base, params, Protection("clip", 2.0, 0.0), fresh_generator())
    noisy = protected(base, params, Protection("clip", 2.0, 0.05), fresh_generator())
    noise = np.concatenate([(noisy[name] - quiet[name]).ravel() for name in base])
    assert noise.std() == pytest.approx(0.1, rel=0.05)
