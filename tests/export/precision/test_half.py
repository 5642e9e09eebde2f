"""Half precision cast at the level of PyTorch: the operators that compute in it, and the runtimes that open it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from flamest.base.errors import DataError, InvariantError
from flamest.export.graphs.export import write_graph
from flamest.export.graphs.spec import GraphSpec
from flamest.export.parity.written_graphs import WrittenGraphs
from flamest.export.precision.dtypes import check_precision
from flamest.export.precision.half import half_module
from flamest.runtime.backends.onnxruntime_cpu import open_session
from flamest.runtime.backends.openvino_cpu import OpenVinoSession
from flamest.runtime.bundle.graph_records import AxisRange, Tensor
from flamest.runtime.bundle.limits import COSINES
from flamest.runtime.similarity import row_cosines
from torch import nn

WIDTH = 32
DTYPES = {"fp16": "float16", "bf16": "bfloat16"}
X = np.random.default_rng(0).normal(size=(6, WIDTH)).astype(np.float32)


class Block(nn.Module):
    """A norm, a matmul, a softmax and a matmul, as in a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first, self.last = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.softmax(self.first(self.norm(x)), dim=-1)) + x


@pytest.fixture(scope="module")
def block():
    torch.manual_seed(0)
    return Block().eval()


def spec_of(module, precision):
    tensors = [Tensor(name, "float32", ("batch", WIDTH)) for name in ("x", "y")]
    return GraphSpec("half", module, tensors[:1], tensors[1:], {"batch": AxisRange(1, 1, 8)}, precision)


@pytest.fixture(scope="module", params=DTYPES)
def written(request, block, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    graph = write_graph(spec_of(half_module(block, request.param, ["float32"]), request.param), folder)
    return WrittenGraphs(folder, {"half": graph}, threads=1)


def test_matmuls_are_half_and_norms_and_softmaxes_are_fp32(written):
    import onnx

    graph = written.graphs["half"]
    matmuls = graph.dtype_histogram[DTYPES[graph.precision]]
    assert sum(matmuls.values()) == 2
    assert graph.dtype_histogram["float32"] == {"LayerNormalization": 1, "Softmax": 1}
    check_precision("half", graph.precision, graph.dtype_histogram)
    file = onnx.load(str(written.folder / graph.file)).graph
    ends = {value.type.tensor_type.elem_type for value in (*file.input, *file.output)}
    assert ends == {onnx.TensorProto.FLOAT}


def test_the_module_that_was_copied_stays_fp32(block):
    half_module(block, "bf16", ["float32"])
    assert {parameter.dtype for parameter in block.parameters()} == {torch.float32}


def test_a_softmax_can_be_left_in_half_precision_for_a_measurement(block, tmp_path):
    half = half_module(block, "fp16", ["float32"], softmax_in_fp32=False)
    histogram = write_graph(spec_of(half, "fp16"), tmp_path).dtype_histogram
    assert histogram["float16"]["Softmax"] == 1
    assert histogram["float32"] == {"LayerNormalization": 1}


def test_the_written_graph_equals_the_half_module(written, block):
    precision = written.precision("half")
    got = written.open("half").run({"x": X})["y"]
    with torch.no_grad():
        same = half_module(block, precision, ["float32"])(torch.from_numpy(X)).numpy()
        exact = block(torch.from_numpy(X)).numpy()
    assert row_cosines(got, exact).min() >= COSINES[precision]
    step = 2.0**-7 if precision == "bf16" else 2.0**-10
    assert np.abs(got - same).max() <= step * np.abs(same).max()
    assert not np.array_equal(got, exact)


def test_a_row_does_not_depend_on_its_neighbours(written):
    session = written.open("half")
    loud = np.concatenate([X[:1], 50 * X[1:]])
    np.testing.assert_allclose(session.run({"x": loud})["y"][:1], session.run({"x": X[:1]})["y"], rtol=0, atol=2e-6)


def test_openvino_opens_bf16_graphs_and_onnx_runtime_does_not(written, block):
    if written.precision("half") != "bf16":
        pytest.skip("of bf16 alone")
    path = written.folder / written.graphs["half"].file
    with pytest.raises(DataError, match="cannot be opened by ONNX Runtime"):
        open_session(path)
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("OpenVINO is not installed")
    session = OpenVinoSession.open(path, computed="f32", threads=1)
    with torch.no_grad():
        exact = block(torch.from_numpy(X)).numpy()
    assert row_cosines(session.run({"x": X})["y"], exact).min() >= COSINES["bf16"]
    assert "rounded to bf16" in written.ran_on("half")


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_a_precision_that_the_file_lost_is_an_error(block, tmp_path: Path, precision):
    """A graph that should be half precision and is fp32."""
    graph = write_graph(spec_of(block, "fp32"), tmp_path)
    with pytest.raises(InvariantError, match="in its file they compute in float32"):
        check_precision("half", precision, graph.dtype_histogram)
