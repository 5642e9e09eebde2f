"""ONNX Runtime CUDA as far as it goes without a GPU: what it refuses, and IO binding on the genuine runtime."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnxruntime
import pytest
from flamest.base.errors import FlamestError
from flamest.runtime.backends import onnxruntime_cuda
from flamest.runtime.backends.onnxruntime_cpu import open_session
from flamest.runtime.backends.onnxruntime_cuda import CUDA_PROVIDER, OrtCudaSession, cpu_operators

# What onnxruntime-gpu lists where there is no driver too.
LISTED = ["TensorrtExecutionProvider", CUDA_PROVIDER, "CPUExecutionProvider"]


@pytest.fixture
def text(toys, tmp_path):
    path = tmp_path / "text.onnx"
    path.write_bytes(toys.text_graph(toys.weights(3)).SerializeToString())
    return path


def refused(graph):
    with pytest.raises(FlamestError) as caught:
        OrtCudaSession.open(graph, gpu="GPU")
    return caught.value


def test_a_build_without_cuda_is_named(text):
    error = refused(text)
    assert error.code == "ORT_NO_CUDA"
    assert "CPUExecutionProvider" in error.message
    assert "flamest[agent-gpu]" in error.fix


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
def test_a_cuda_session_that_became_a_cpu_session_is_an_error(text, monkeypatch, capfd):
    # The genuine runtime does so here: it is asked for CUDA, has none, and opens the graph on the CPU.
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: LISTED)
    error = refused(text)
    assert (error.code, error.exit_code) == ("CPU_FALLBACK", 78)
    assert "the opened session has CPUExecutionProvider" in error.message
    capfd.readouterr()


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
def test_the_library_that_cuda_lacks_is_named(text, monkeypatch, tmp_path):
    library = tmp_path / "capi" / "libonnxruntime_providers_cuda.so"
    library.parent.mkdir()
    library.write_text("no library")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: LISTED)
    monkeypatch.setattr(onnxruntime, "__file__", str(tmp_path / "__init__.py"))
    error = refused(text)
    assert error.code == "ORT_CUDA_LIBS"
    assert "libonnxruntime_providers_cuda.so" in error.message
    monkeypatch.setattr(onnxruntime_cuda, "missing_library", lambda: "libcuda.so.1: cannot open shared object file")
    assert refused(text).code == "NO_DRIVER_OR_GPU"


@dataclass
class Node:
    op_type: str
    domain: str = ""


@dataclass
class Part:
    ep_name: str
    nodes: list

    def get_nodes(self):
        return self.nodes


def test_arithmetic_on_shapes_may_be_on_the_cpu_and_nothing_else():
    shapes = Part("CPUExecutionProvider", [Node("Shape"), Node("Gather"), Node("Concat")])
    on_gpu = Part(CUDA_PROVIDER, [Node("MatMul"), Node("QLinearConv"), Node("FusedMatMul", "com.microsoft")])
    assert cpu_operators([shapes, on_gpu]) == {}
    strays = Part("CPUExecutionProvider", [Node("QLinearConv"), Node("MatMul"), Node("Gather", "com.microsoft")])
    assert cpu_operators([shapes, on_gpu, strays]) == Counter({"QLinearConv": 1, "MatMul": 1, "Gather": 1})


class Opened:
    """Fake of an onnxruntime-gpu version: opening with the strict flag fails, without it works."""

    def __init__(self, assignment, strict_error="… nodes that are assigned to the default CPU EP, but …"):
        self.assignment, self.strict_error, self.asked = assignment, strict_error, []

    def __call__(self, path, options, providers):
        strict = options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1" if not self.asked else False
        self.asked.append((strict, providers))
        if strict:
            raise RuntimeError(self.strict_error)
        return self

    def get_providers(self):
        return [CUDA_PROVIDER, "CPUExecutionProvider"]

    def get_inputs(self):
        return []

    get_outputs = get_inputs

    def get_provider_graph_assignment_info(self):
        return self.assignment


def open_with(monkeypatch, text, opened):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: LISTED)
    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    return OrtCudaSession.open(text, gpu="NVIDIA H100")


def test_arithmetic_on_shapes_alone_passes_the_strict_flag(monkeypatch, text):
    opened = Opened([Part("CPUExecutionProvider", [Node("Shape")]), Part(CUDA_PROVIDER, [Node("MatMul")])])
    session = open_with(monkeypatch, text, opened)
    assert session.where == f"ONNX Runtime {onnxruntime.__version__} CUDA on NVIDIA H100"
    assert [strict for strict, _ in opened.asked] == [True, False]
    assert opened.asked[0][1] == [(CUDA_PROVIDER, {"device_id": "0", "use_tf32": "0"})]


def test_matmuls_on_the_cpu_are_named(monkeypatch, text):
    opened = Opened([Part("CPUExecutionProvider", [Node("Shape"), Node("QLinearConv"), Node("QLinearConv")])])
    with pytest.raises(FlamestError, match="put 2 QLinearConv on the CPU") as caught:
        open_with(monkeypatch, text, opened)
    assert caught.value.code == "CPU_FALLBACK"


@pytest.mark.parametrize(
    ("evidence", "code"),
    [
        ("Failed to load library libonnxruntime_providers_cuda.so with error: libcudnn.so.9", "ORT_CUDA_LIBS"),
        ("libcublasLt.so.13: cannot open shared object file", "ORT_CUDA_LIBS"),
        ("CUDA failure 2: out of memory", "GPU_MEMORY"),
        ("something new", "BACKEND_FAILED"),
    ],
)
def test_errors_of_opening_have_their_codes(monkeypatch, text, evidence, code):
    with pytest.raises(FlamestError) as caught:
        open_with(monkeypatch, text, Opened([], evidence))
    assert caught.value.code == code
    assert evidence in caught.value.message


def test_io_binding_gives_the_same_bits_and_moves_no_values(monkeypatch, toys, text):
    """The genuine IO binding, its device being the CPU: the same calls, the same lives of values."""
    monkeypatch.setattr(OrtCudaSession, "kind", "cpu")
    plain = open_session(text, threads=1)
    bound = OrtCudaSession(onnxruntime.InferenceSession(str(text), providers=["CPUExecutionProvider"]), 0, "here")
    rng = np.random.default_rng(0)
    cross = {"cross_key_00": rng.standard_normal((2, 1, toys.D, 4), dtype=np.float32)}
    cross["cross_value_00"] = rng.standard_normal((2, 1, 4, toys.D), dtype=np.float32)

    def caption(session):
        memory = {name: session.value(array) for name, array in cross.items()}
        empty = session.value(np.empty((2, 1, 0, toys.D), np.float32))
        past, results = {"past_key_00": empty, "past_value_00": empty}, []
        for step in range(5):
            feeds = {"token_ids": np.full((2, 1), step), "positions": np.full((2, 1), step)}
            feeds["mask"] = np.zeros((2, 1, 1, step + 1), np.float32)
            values = session.run_values({**feeds, **past, **memory})
            past = {f"past_{part}_00": values[f"present_{part}_00"] for part in ("key", "value")}
            results.append(values["logits"].numpy().tobytes())
        return results

    assert caption(bound) == caption(plain)
    value = bound.value(cross["cross_key_00"])
    assert bound.value(value) is value
    assert onnxruntime_cuda.SHAPE_OPERATORS.isdisjoint({"MatMul", "Gemm", "Conv", "Softmax", "LayerNormalization"})
