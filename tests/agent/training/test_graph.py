"""The training step's graphs: correct gradients, independent of blocks and threads."""

from __future__ import annotations

import numpy as np
import pytest
from flamest.agent.training import steps
from flamest.agent.training.dataset import FeatureTable
from flamest.agent.training.graph import gradient_graph, linear_maps, weight_gradient_graph
from flamest.agent.training.trainer import Anchor, HeadTrainer
from flamest.fedproto.head import HeadSpec, initial_params
from flamest.fedproto.records import TrainSettings
from flamest.runtime.backends.onnxruntime_cpu import open_session

HEADS = {
    "mlp": HeadSpec(64, 7, (48, 32)),
    "rgcf": HeadSpec(64, 7, (16,), kind="rgcf", blocks=(24, 40), standardise=True, common=12),
}


def torch_gradients(spec, params, x, y):
    """By autograd, in float64."""
    import torch
    from torch.nn.functional import cross_entropy, linear

    weights = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in params.items()}

    def layer(name, value):
        return linear(value, weights[f"{name}.weight"], weights[f"{name}.bias"])

    blocks = list(torch.split(torch.tensor(x, dtype=torch.float64), list(spec.blocks or (spec.inputs,)), dim=1))
    if spec.standardise:
        blocks = [(b - b.mean(1, keepdim=True)) / b.std(1, keepdim=True, unbiased=False) for b in blocks]
    if spec.kind == "rgcf":
        v, t = layer("v", blocks[0]), layer("t", blocks[1])
        v_next = v + torch.sigmoid(layer("v.gate", torch.cat([v, t], 1))) * layer("v.carry", t)
        blocks = [v_next, t + torch.sigmoid(layer("t.gate", torch.cat([t, v], 1))) * layer("t.carry", v)]
    h = torch.cat(blocks, 1)
    for number in range(len(spec.hidden) + 1):
        h = layer(str(number), torch.relu(h) if number else h)
    cross_entropy(h, torch.tensor(y)).backward()
    return {name: value.grad.numpy() for name, value in weights.items()}


@pytest.mark.parametrize("head", HEADS)
def test_float32_gradients_are_those_of_autograd_to_1e_5(head):
    spec, random = HEADS[head], np.random.default_rng(3)
    x, y = random.normal(size=(128, spec.inputs)).astype(np.float32), random.integers(0, 7, 128)
    params = initial_params(spec, 5)
    graph = gradient_graph(spec)
    made = open_session(graph.model, threads=2).run({"x": x, "y": y, **params})
    product, expected, start = open_session(weight_gradient_graph(), threads=1), torch_gradients(spec, params, x, y), 0
    for name, (outputs, _) in linear_maps(spec).items():
        feeds = {
            "output_gradients": made["output_gradients"][start : start + outputs],
            "layer_inputs": {"x": x, **made}[graph.layer_inputs[name]],
        }
        found = {
            f"{name}.weight": product.run(feeds)["gradient"],
            f"{name}.bias": feeds["output_gradients"].sum(axis=1),
        }
        for tensor, gradient in found.items():
            apart = np.linalg.norm(gradient - expected[tensor]) / np.linalg.norm(expected[tensor])
            assert apart < 1e-5, tensor
        start += outputs


@pytest.mark.parametrize("threads", [1, 3])
def test_many_small_blocks_train_as_whole_weights_do(monkeypatch, threads):
    """Whichever thread takes which block."""
    spec, random = HEADS["mlp"], np.random.default_rng(4)
    table = FeatureTable(random.normal(size=(90, 64)).astype(np.float32), random.integers(0, 7, 90))
    settings = TrainSettings(epochs=3, batch_size=32)
    start = initial_params(spec, 5)
    anchor = Anchor(0.2, initial_params(spec, 6))

    def trained(block: int) -> dict[str, np.ndarray]:
        monkeypatch.setattr(steps, "BLOCK", block)
        monkeypatch.setattr(steps, "PIECE", block // 2)
        trainer = HeadTrainer(spec, threads=threads, dtype="float64")
        return trainer.train(start, table, settings, seed=1, anchor=anchor).params

    whole, small = trained(1 << 30), trained(100)
    for name in whole:
        np.testing.assert_allclose(small[name], whole[name], rtol=0, atol=1e-12, err_msg=name)


def test_one_trainer_serves_batches_of_any_size():
    spec, random = HEADS["mlp"], np.random.default_rng(4)
    trainer, params = HeadTrainer(spec, threads=2), initial_params(spec, 5)
    for rows in (1, 2, 33, 70):
        table = FeatureTable(random.normal(size=(rows, 64)).astype(np.float32), random.integers(0, 7, rows))
        trained = trainer.train(params, table, TrainSettings(epochs=1, batch_size=32), seed=1)
        assert trained.steps == -(-rows // 32)
        assert np.isfinite(trained.loss)
