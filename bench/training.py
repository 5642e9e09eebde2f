"""Five local epochs of the paper's head: our step graphs, PyTorch, and the arithmetic lower bound.

2,655 clips (a quarter of UCF101's training split) with 2816-d embeddings, batch 128, head 512-256-101.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from flamest.agent.training.dataset import FeatureTable
from flamest.agent.training.trainer import HeadTrainer
from flamest.fedproto.head import HeadSpec, initial_params
from flamest.fedproto.records import TrainSettings

from .record import interleaved_ms

ROWS, SPEC, SETTINGS = 2655, HeadSpec(inputs=2816, outputs=101), TrainSettings()
GEMM = 2048  # side of the square matmul whose speed is the peak


def measure(repeats: int = 5) -> dict[str, Any]:
    random = np.random.default_rng(0)
    table = FeatureTable(random.normal(size=(ROWS, SPEC.inputs)).astype(np.float32), random.integers(0, 101, ROWS))
    params = initial_params(SPEC, 0)
    trainer = HeadTrainer(SPEC)
    candidates = {
        "flamest": lambda: trainer.train(params, table, SETTINGS, seed=0),
        "torch_fused_adam": lambda: torch_training(params, table, fused=True),
        "torch_fused_adam_medium": lambda: torch_training(params, table, fused=True, precision="medium"),
        "torch_adam": lambda: torch_training(params, table, fused=False),
    }
    times = interleaved_ms(candidates, repeats=repeats)
    first, *others = (a * b for a, b in zip(SPEC.widths, SPEC.widths[1:], strict=False))
    # Forward, weight gradient and input gradient are one matmul each; the features need no gradient.
    flop = 2 * ROWS * SETTINGS.epochs * (2 * first + 3 * sum(others))
    peak = gemm_peak()
    floor_ms = flop / peak * 1e3
    return {
        "what": f"{SETTINGS.epochs} epochs of {ROWS} x {SPEC.inputs}, batch {SETTINGS.batch_size}, fp32",
        "times": times,
        "times_faster_than": {
            name: time["median_ms"] / times["flamest"]["median_ms"] for name, time in times.items() if name != "flamest"
        },
        "gflop": flop / 1e9,
        "gemm_peak_gflops": peak / 1e9,
        "floor_ms": floor_ms,
        "percent_of_floor": 100 * floor_ms / times["flamest"]["median_ms"],
    }


def torch_training(
    params: dict[str, np.ndarray], table: FeatureTable, *, fused: bool, precision: str = "highest"
) -> None:
    """Train once. ``precision`` of torch's matmuls: "medium" keeps float32 on this CPU, with other kernels."""
    import torch

    torch.set_float32_matmul_precision(precision)
    weights = {name: torch.tensor(value, requires_grad=True) for name, value in params.items()}
    adam = torch.optim.Adam(
        weights.values(), lr=SETTINGS.learning_rate, weight_decay=SETTINGS.weight_decay, fused=fused
    )
    x, y = torch.from_numpy(table.x), torch.from_numpy(table.y)
    for _ in range(SETTINGS.epochs):
        order = torch.randperm(len(table))
        for start in range(0, len(table), SETTINGS.batch_size):
            rows = order[start : start + SETTINGS.batch_size]
            h = x[rows]
            for layer in range(3):
                h = torch.nn.functional.linear(h, weights[f"{layer}.weight"], weights[f"{layer}.bias"])
                h = h if layer == 2 else torch.relu(h)
            adam.zero_grad()
            torch.nn.functional.cross_entropy(h, y[rows]).backward()
            adam.step()


def gemm_peak() -> float:
    """Floating-point operations per second of a square fp32 matmul in ONNX Runtime, best of ten."""
    import onnx
    from flamest.runtime.backends.onnxruntime_cpu import open_session
    from onnx import helper

    side = [GEMM, GEMM]
    names = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, side) for name in ("a", "b", "c")]
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", names[:2], names[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = open_session(model.SerializeToString())
    matrix = np.random.default_rng(0).normal(size=side).astype(np.float32)
    times = interleaved_ms({"product": lambda: session.run({"a": matrix, "b": matrix})}, repeats=10)
    return 2 * GEMM**3 / (times["product"]["least_ms"] / 1e3)
