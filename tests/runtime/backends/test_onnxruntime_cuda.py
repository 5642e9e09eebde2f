"""ONNX Runtime CUDA as far as it goes without a GPU: what it refuses, and IO binding on the genuine runtime."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnxruntime
import pytest
from flamest.base.errors import FlamestError, InvariantError
from flamest.runtime.backends import onnxruntime_cuda
from flamest.runtime.backends.element_types import ElementType
from flamest.runtime.backends.onnxruntime_cpu import open_session
from flamest.runtime.backends.onnxruntime_cuda import CUDA_PROVIDER, OrtCudaSession, cpu_operators
from flamest.runtime.backends.output_shapes import output_shapes
from flamest.runtime.backends.tensorrt.cuda_device import CudaDevice
from flamest.runtime.backends.tensorrt.session_memory import SessionMemory
from flamest.runtime.bundle.graph_records import Tensor

# What onnxruntime-gpu lists where there is no driver too.
LISTED = ["TensorrtExecutionProvider", CUDA_PROVIDER, "CPUExecutionProvider"]


@pytest.fixture
def text(toys, tmp_path):
    path = tmp_path / "text.onnx"
    path.write_bytes(toys.text_graph(toys.weights(3)).SerializeToString())
    return path


@pytest.fixture(autouse=True)
def opened_device(monkeypatch, fake_cuda):
    """The GPU that ``open`` finds, of Python."""
    device = CudaDevice(fake_cuda.FakeCuda(devices=3))
    monkeypatch.setattr(CudaDevice, "open", classmethod(lambda cls, *, number=0: device))
    return device


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


def open_with(monkeypatch, text, opened, **options):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: LISTED)
    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    return OrtCudaSession.open(text, gpu="NVIDIA H100", **options)


def test_arithmetic_on_shapes_alone_passes_the_strict_flag(monkeypatch, text):
    opened = Opened([Part("CPUExecutionProvider", [Node("Shape")]), Part(CUDA_PROVIDER, [Node("MatMul")])])
    session = open_with(monkeypatch, text, opened)
    assert session.where == f"ONNX Runtime {onnxruntime.__version__} CUDA on NVIDIA H100"
    assert [strict for strict, _ in opened.asked] == [True, False]
    ((provider, options),) = opened.asked[0][1]
    assert (provider, options["device_id"], options["use_tf32"]) == (CUDA_PROVIDER, "0", "0")
    assert int(options["user_compute_stream"]) == session._memory.stream.handle
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"
    assert options["arena_extend_strategy"] == "kSameAsRequested"


def test_gpu_and_tf32_are_options_of_the_session(monkeypatch, text, opened_device):
    opened = Opened([Part(CUDA_PROVIDER, [Node("MatMul")])])
    asked = {}
    monkeypatch.setattr(
        CudaDevice, "open", classmethod(lambda cls, *, number=0: asked.update(number=number) or opened_device)
    )
    open_with(monkeypatch, text, opened, device=2, tf32=True)
    options = opened.asked[0][1][0][1]
    assert (asked["number"], options["device_id"], options["use_tf32"]) == (2, "2", "1")


def test_without_cuda_bindings_the_reason_is_named(monkeypatch, text):
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(FlamestError) as caught:
        open_with(monkeypatch, text, Opened([]))
    assert caught.value.code == "CUDA_BINDINGS"


def test_a_session_that_does_not_open_gives_its_stream_back(monkeypatch, text, opened_device):
    for _ in range(3):
        with pytest.raises(FlamestError):
            open_with(monkeypatch, text, Opened([], "something new"))
    assert opened_device.calls.runtime.calls.count("cudaStreamCreateWithFlags") == 3  # up, down, and one for all


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


@pytest.fixture
def bound(monkeypatch, text, fake_cuda):
    """The genuine IO binding, its device being the CPU and its memory that of a CUDA runtime of Python."""
    monkeypatch.setattr(OrtCudaSession, "kind", "cpu")
    device = CudaDevice(fake_cuda.HostCuda(devices=2))
    session = onnxruntime.InferenceSession(str(text), providers=["CPUExecutionProvider"])
    tensors = [onnxruntime_cuda._tensors(side) for side in (session.get_inputs(), session.get_outputs())]
    types = [{one.name: ElementType.of(one.dtype) for one in side} for side in tensors]
    return OrtCudaSession(session, tuple(tensors), SessionMemory(device, "text", *types), "here")


def test_io_binding_gives_the_same_bits_and_moves_no_values(bound, toys, text):
    """The genuine IO binding by address: the same calls, the same lives of values."""
    plain = open_session(text, threads=1)
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
    assert bound._memory.device.calls.runtime.problems == []
    assert onnxruntime_cuda.SHAPE_OPERATORS.isdisjoint({"MatMul", "Gemm", "Conv", "Softmax", "LayerNormalization"})


def step_feeds(session, toys, past):
    feeds = {"token_ids": np.ones((2, 1), np.int64), "positions": np.ones((2, 1), np.int64)}
    feeds["mask"] = np.zeros((2, 1, 1, 4), np.float32)
    cross = {
        "cross_key_00": np.ones((2, 1, toys.D, 4), np.float32),
        "cross_value_00": np.ones((2, 1, 4, toys.D), np.float32),
    }
    return {**feeds, **cross, **past}


def test_outputs_go_into_rows_and_rows_are_inputs(bound, toys, text):
    rows = {name: bound.rows(name, (3, 1, 3, toys.D)) for name in ("past_key_00", "past_value_00")}
    target = bound.rows("past_key_00", (5, 1, 4, toys.D))
    rows["past_key_00"].put(1, np.full((1, 1, 3, toys.D), 2, np.float32), 0)
    feeds = step_feeds(bound, toys, {name: one.first(2) for name, one in rows.items()})
    values = bound.run_values(feeds, ["present_key_00", "logits"], into={"present_key_00": target})
    expected = open_session(text, threads=1).run(feeds)
    assert values["present_key_00"].pointer == target.first(2).pointer
    np.testing.assert_array_equal(target.first(2).numpy(), expected["present_key_00"])
    np.testing.assert_array_equal(values["logits"].numpy(), expected["logits"])
    assert not target.first(5).numpy()[2:].any()


def test_outputs_that_nobody_wants_have_no_memory(bound, toys):
    past = {name: np.zeros((2, 1, 3, toys.D), np.float32) for name in ("past_key_00", "past_value_00")}
    taken = []
    bound._memory._take, take = lambda use, size: taken.append(use) or take(use, size), bound._memory._take
    assert set(bound.run(step_feeds(bound, toys, past), ["logits"])) == {"logits"}
    assert "logits" in taken
    assert not {"hidden", "present_key_00"} & set(taken)


def test_values_of_one_device_pass_between_runtimes_without_a_copy(bound):
    # Another session of the device, as TensorRT's: its values come with the mark of their stream.
    device = bound._memory.device
    other = SessionMemory(device, "vision", {"past_key_00": ElementType.of("float32")}, {})
    value = other.value(np.ones((2, 1, 3, 4), np.float32), None, "a value")
    device.calls.runtime.calls.clear()
    assert bound.value(value) is value
    assert "cudaMemcpyAsync" not in device.calls.runtime.calls


def test_a_closed_session_is_an_invariant_error(bound, toys):
    past = {name: np.zeros((2, 1, 3, toys.D), np.float32) for name in ("past_key_00", "past_value_00")}
    feeds = step_feeds(bound, toys, past)
    kept = bound.run_values(feeds, ["logits"])["logits"]
    bound.close()
    assert np.isfinite(kept.numpy()).all()
    with pytest.raises(InvariantError, match="was closed"):
        bound.run(feeds)


def test_a_full_gpu_in_a_run_names_the_batch(bound, toys, monkeypatch):
    class Full:
        def io_binding(self):
            return self

        def bind_input(self, name, device_type, device_id, element_type, shape, buffer_ptr):
            assert buffer_ptr % 256 == 0

        bind_output = bind_input

        def run_with_iobinding(self, binding, options):
            raise RuntimeError("Failed to allocate memory for requested buffer of size 1")

    monkeypatch.setattr(bound, "_session", Full())
    past = {name: np.zeros((2, 1, 3, toys.D), np.float32) for name in ("past_key_00", "past_value_00")}
    with pytest.raises(FlamestError) as caught:
        bound.run(step_feeds(bound, toys, past))
    assert caught.value.code == "GPU_MEMORY"
    assert "--batch" in caught.value.fix


def test_a_full_gpu_gets_free_blocks_back_and_runs_again(bound, toys, monkeypatch):
    past = {name: np.zeros((2, 1, 3, toys.D), np.float32) for name in ("past_key_00", "past_value_00")}
    feeds = step_feeds(bound, toys, past)
    expected = bound.run(feeds, ["logits"])["logits"]
    genuine, device, runs = bound._session, bound._memory.device, []
    bound.value(np.ones(1 << 20, np.float32))  # its block is free at once

    class FullOnce:
        io_binding = genuine.io_binding

        def run_with_iobinding(self, binding, options):
            runs.append(device.calls.runtime.calls.count("cudaFree"))
            if len(runs) == 1:
                raise RuntimeError("CUDA failure 2: out of memory")
            genuine.run_with_iobinding(binding, options)

    monkeypatch.setattr(bound, "_session", FullOnce())
    np.testing.assert_array_equal(bound.run(feeds, ["logits"])["logits"], expected)
    assert len(runs) == 2
    assert runs[1] > runs[0]


def test_bfloat16_is_bound_by_onnxs_number(bound):
    bound._types["hidden"] = ElementType.of("bfloat16")
    bound._types["logits"] = ElementType.of("float16")
    assert bound._place("hidden") == ("hidden", "cpu", 0, 16)
    assert bound._place("logits") == ("logits", "cpu", 0, np.float16)


INPUTS = [
    Tensor("a", "float32", ("batch", 2)),
    Tensor("b", "float32", ("batch", "past + tokens")),
    Tensor("c", "int64", ("tokens", "past")),
]
OUTPUTS = [
    Tensor("x", "float32", ("batch", "past + tokens", 7)),
    Tensor("window", "float32", ("batch", "past")),
]
TENSORS = (INPUTS, OUTPUTS)


def test_shapes_of_outputs_follow_from_the_inputs_axes():
    shapes = {"a": (3, 2), "b": (3, 9), "c": (4, 5)}
    assert output_shapes("text", *TENSORS, shapes) == {"x": (3, 9, 7), "window": (3, 5)}
    for wrong in ({"a": (3, 1)}, {"b": (2, 9)}, {"b": (3, 8)}, {"c": (4, 5, 1)}):
        with pytest.raises(InvariantError, match="graph 'text': input"):
            output_shapes("text", *TENSORS, shapes | wrong)
    with pytest.raises(InvariantError, match="no input has the axis 'width'"):
        output_shapes("text", TENSORS[0], [Tensor("y", "float32", ("width",))], shapes)
