"""Hand-made graphs for int8: as drafts, with their feeds."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from flamest.export.graphs.export import check_and_save
from flamest.export.precision.draft import Calibrated, Int8Settings, draft_int8
from flamest.export.precision.dtypes import read_dtype_histogram
from flamest.export.precision.int8 import ONNX_FORM
from flamest.runtime.backends.onnxruntime_cpu import open_session
from flamest.runtime.bundle.graph_records import AxisRange, Graph, Tensor
from onnx import TensorProto, helper, numpy_helper

WIDTH, LAYERS, BAD = 64, 16, 7
LOUD = 3000.0  # of one channel, before the layer that int8 is bad for


def outlier_model(*, loud: float = LOUD) -> onnx.ModelProto:
    """Sixteen dense layers with tanh; before one of them a channel is amplified, which its weight takes back."""
    random = np.random.default_rng(0)
    constants, nodes, last = {}, [], "x"
    for layer in range(LAYERS):
        weight = random.normal(0, 1.15 / np.sqrt(WIDTH), (WIDTH, WIDTH)).astype(np.float32)
        if layer == BAD:
            factors = np.ones(WIDTH, np.float32)
            factors[3] = loud
            constants["factors"] = factors
            weight[3] /= loud
            nodes.append(helper.make_node("Mul", [last, "factors"], ["amplified"]))
            last = "amplified"
        constants[f"w{layer}"] = weight
        constants[f"b{layer}"] = random.normal(0, 0.15, WIDTH).astype(np.float32)
        nodes += [
            helper.make_node("MatMul", [last, f"w{layer}"], [f"product{layer}"]),
            helper.make_node("Add", [f"product{layer}", f"b{layer}"], [f"sum{layer}"]),
        ]
        last = "y" if layer == LAYERS - 1 else f"tanh{layer}"
        nodes.append(helper.make_node("Tanh", [f"sum{layer}"], [last]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", WIDTH]) for name in ("x", "y")]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def rows(seed: int, count: int = 12) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(seed)
    return [{"x": random.normal(size=(4, WIDTH)).astype(np.float32)} for _ in range(count)]


@pytest.fixture
def draft_of(tmp_path):
    """A draft of a model with one float input and output, and the folder it is in."""

    def make(model, *, form=ONNX_FORM, static=True, tell=lambda share: None, **settings):
        path = tmp_path / "g.onnx"
        check_and_save(model, path)
        session = open_session(path, threads=1)
        held_out = rows(2, 4)
        calibrated = Calibrated(rows(1), held_out, [session.run(feed) for feed in held_out], 4)
        ends = [Tensor(name, "float32", ("batch", WIDTH)) for name in ("x", "y")]
        graph = Graph(
            file="out.onnx",
            opset=18,
            inputs=ends[:1],
            outputs=ends[1:],
            axes={"batch": AxisRange(1, 1, 8)},
            precision="fp32",
            dtype_histogram=read_dtype_histogram(path),
        )
        return draft_int8(graph, path, calibrated, Int8Settings(form, static, 1), tell=tell, **settings)

    return make


@pytest.fixture
def outlier(draft_of):
    return lambda **settings: draft_of(outlier_model(), **settings)
