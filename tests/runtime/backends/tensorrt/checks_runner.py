"""Run per TensorRT version by test_runner.py: a session over strict stand-ins that do compute.

The stand-in engine is a caption step: present = past and the token one after the other, logits = the sum of
both. It runs on fake_cuda.py's memory, so what is read, written, kept and replayed is really checked.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import tensorrt as trt
from flamest.base.errors import FlamestError, InvariantError
from flamest.base.files import sha256_bytes
from flamest.runtime.backends.tensorrt.cuda_device import CudaDevice, DeviceValue
from flamest.runtime.backends.tensorrt.engine import EngineFile, LoadedEngine, load_engine
from flamest.runtime.backends.tensorrt.package import TensorRtLog
from flamest.runtime.backends.tensorrt.runner import TensorRtSession
from tensorrt_fakes import Fakes

sys.path.insert(0, str(Path(__file__).parent))
from fake_cuda import FakeCuda, cudaError_t

MODES = {"token_ids": "INPUT", "past": "INPUT", "logits": "OUTPUT", "present": "OUTPUT"}
TENSORRT_DTYPES = {"token_ids": "INT64", "past": "FLOAT", "logits": "FLOAT", "present": "FLOAT"}
RANGES = {"token_ids": [(1, 1), (1, 1), (4, 1)], "past": [(1, 0, 2), (1, 8, 2), (4, 16, 2)]}


class Step:
    """A context and an engine that compute as the module's docstring describes."""

    def __init__(self):
        self.fakes, self.cuda = Fakes(), FakeCuda()
        self.shapes, self.addresses, self.stale = {}, {}, True
        self.launched = 0
        self.context = self.fakes.make(
            "IExecutionContext",
            **{
                "set_input_shape.side_effect": self._set_shape,
                "infer_shapes.return_value": [],
                "get_tensor_shape.side_effect": self._shape,
                "set_tensor_address.side_effect": self._set_address,
                "execute_async_v3.side_effect": self._execute,
            },
        )
        names = list(MODES)
        self.engine = self.fakes.make(
            "ICudaEngine",
            **{
                "create_execution_context.return_value": self.context,
                "device_memory_size_v2": 64,
                "num_io_tensors": len(names),
                "get_tensor_name.side_effect": names.__getitem__,
                "get_tensor_mode.side_effect": lambda name: getattr(trt.TensorIOMode, MODES[name]),
                "get_tensor_dtype.side_effect": lambda name: getattr(trt.DataType, TENSORRT_DTYPES[name]),
                "get_tensor_profile_shape.side_effect": lambda name, index: RANGES[name],
            },
        )
        self.device = CudaDevice(self.cuda)

    def session(self, **options):
        opened = LoadedEngine(self.engine, TensorRtLog(), ())
        return TensorRtSession(trt, opened, self.device, name="text", where="TensorRT on a stand-in", **options)

    def _set_shape(self, name, shape):
        self.stale = self.stale or self.shapes.get(name) != tuple(shape)
        self.shapes[name] = tuple(shape)
        return True

    def _set_address(self, name, memory):
        assert memory, f"{name} has no address"
        self.addresses[name] = memory
        return True

    def _shape(self, name):
        (batch, _), (_, past, width) = self.shapes["token_ids"], self.shapes["past"]
        return {"logits": (batch,), "present": (batch, past + 1, width)}[name]

    def _execute(self, stream_handle):
        assert stream_handle == 7
        assert not (self.stale and self.cuda.recording is not None), "the first launch of a shape was captured"
        self.stale = False
        self.launched += 1
        addresses, (batch, past, width) = dict(self.addresses), self.shapes["past"]

        def kernel():
            def read(name, shape, dtype):
                size = int(np.prod(shape)) * np.dtype(dtype).itemsize
                return np.frombuffer(bytes(self.cuda.view(addresses[name], size)), dtype).reshape(shape)

            token = read("token_ids", (batch, 1), np.int64)
            before = read("past", (batch, past, width), np.float32)
            row = np.broadcast_to(token[:, :, None], (batch, 1, width)).astype(np.float32)
            present = np.concatenate([before, row], axis=1)
            self.cuda.view(addresses["present"], present.nbytes)[:] = present.tobytes()
            logits = present.sum(axis=(1, 2), dtype=np.float32)
            self.cuda.view(addresses["logits"], logits.nbytes)[:] = logits.tobytes()

        self.cuda.run(kernel)
        return True


@pytest.fixture
def step():
    made = Step()
    yield made
    made.fakes.check()


def caption(session, tokens):
    """Feed ``tokens`` one by one, each step's present being the next one's past; the logits and the last past."""
    past = session.value(np.empty((1, 0, 2), np.float32))
    logits = []
    for token in tokens:
        values = session.run_values({"token_ids": np.array([[token]]), "past": past}, ["logits", "present"])
        past = values["present"]
        logits.append(float(values["logits"].numpy()[0]))
    return logits, past


def test_the_names_and_the_usual_sizes_are_the_engines(step):
    session = step.session()
    assert (session.inputs, session.outputs) == (("token_ids", "past"), ("logits", "present"))
    assert session.usual == {"token_ids": ((1, 1), np.int64), "past": ((1, 8, 2), np.float32)}
    assert session.where == "TensorRT on a stand-in"


def test_the_cache_stays_on_the_device_from_step_to_step(step):
    session = step.session()
    step.cuda.calls.clear()
    logits, past = caption(session, [3, 4, 5])
    assert logits == [6.0, 14.0, 24.0]
    np.testing.assert_array_equal(past.numpy(), [[[3, 3], [4, 4], [5, 5]]])
    # Up: a token a step (the empty past is nothing to copy). Down: the logits of each step, and the past once.
    assert step.cuda.calls.count("cudaMemcpyAsync") == 3 + 3 + 1


def test_only_a_second_cache_block_is_allocated_after_opening(step):
    session = step.session()
    caption(session, range(16))
    step.cuda.calls.clear()
    for _ in range(3):
        caption(session, range(16))
    assert "cudaMalloc" not in step.cuda.calls


def test_buffers_are_as_large_as_the_profile_allows(step):
    session = step.session()
    values = session.run({"token_ids": np.array([[1], [2], [3], [4]]), "past": np.ones((4, 16, 2), np.float32)})
    np.testing.assert_array_equal(values["logits"], [34, 36, 38, 40])
    assert values["present"].shape == (4, 17, 2)


def test_a_result_is_not_changed_by_later_runs(step):
    session = step.session()
    feeds = {"token_ids": np.array([[1]]), "past": np.zeros((1, 1, 2), np.float32)}
    first = session.run_values(feeds)
    for token in range(2, 9):
        session.run_values({**feeds, "token_ids": np.array([[token]])})
    np.testing.assert_array_equal(first["present"].numpy(), [[[0, 0], [1, 1]]])


def test_repeated_runs_are_replayed_with_the_same_result(step):
    session, plain = step.session(), Step().session(cuda_graphs=False)
    results = [caption(session, tokens)[0] for tokens in ([1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 5, 9], [2, 2, 2])]
    launched = step.launched
    again = [caption(session, tokens)[0] for tokens in ([1, 2, 3], [9, 9, 9])]
    assert step.launched == launched  # replayed: TensorRT was not asked
    assert "cudaGraphLaunch" in step.cuda.calls
    expected = [caption(plain, tokens)[0] for tokens in ([1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 5, 9], [2, 2, 2])]
    assert results == expected
    assert again == [expected[0], caption(plain, [9, 9, 9])[0]]


def test_what_cannot_be_captured_is_launched(step):
    session = step.session()
    step.cuda.fails["cudaStreamEndCapture"] = cudaError_t.cudaErrorStreamCaptureInvalidated
    results = {tuple(caption(session, [1, 2, 3])[0]) for _ in range(6)}
    assert results == {(2.0, 6.0, 12.0)}
    assert "cudaGraphLaunch" not in step.cuda.calls
    assert step.cuda.calls.count("cudaStreamBeginCapture") == 1  # it is not tried again


@pytest.mark.parametrize(
    ("tokens", "past"), [((5, 1), (5, 1, 2)), ((1, 1), (1, 17, 2)), ((1, 1), (1, 1, 3)), ((1, 1), (1, 2))]
)
def test_a_shape_outside_the_profile_launches_nothing(step, tokens, past):
    session = step.session()
    with pytest.raises(FlamestError, match="graph 'text': input") as caught:
        session.run({"token_ids": np.ones(tokens, np.int64), "past": np.ones(past, np.float32)})
    assert (caught.value.code, caught.value.exit_code) == ("PROFILE_RANGE", 65)
    assert step.launched == 0


def test_a_value_of_another_device_goes_through_the_host(step):
    other = CudaDevice(FakeCuda()).value(np.full((1, 1, 2), 5, np.float32))
    session = step.session()
    moved = session.value(other)
    assert isinstance(moved, DeviceValue)
    assert moved.device is step.device
    assert session.value(moved) is moved
    got = session.run({"token_ids": np.array([[1]]), "past": other}, ["logits"])
    np.testing.assert_array_equal(got["logits"], [12])


def test_an_input_of_another_type_or_none_is_an_invariant_error(step):
    session = step.session()
    with pytest.raises(InvariantError, match="token_ids is float32, expected int64"):
        session.run({"token_ids": np.ones((1, 1), np.float32), "past": np.ones((1, 1, 2), np.float32)})
    with pytest.raises(InvariantError, match="past is not given"):
        session.run({"token_ids": np.ones((1, 1), np.int64)})


def test_too_little_memory_and_a_launch_that_fails_have_their_codes(step):
    step.cuda.limit = 100
    with pytest.raises(FlamestError) as caught:
        step.session()
    assert caught.value.code == "GPU_MEMORY"
    step.cuda.limit = 1 << 30
    session = step.session()
    step.context.execute_async_v3.side_effect = lambda stream: False
    with pytest.raises(FlamestError, match="did not launch") as caught:
        caption(session, [1])
    assert caught.value.code == "BACKEND_FAILED"


PLAN, ONNX = b"native code", b"an ONNX graph"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """An engine's file, and TensorRT's objects that open it."""
    (tmp_path / "text.plan").write_bytes(PLAN)
    (tmp_path / "text.onnx").write_bytes(ONNX)
    fakes = Fakes()
    engine = fakes.make("ICudaEngine")
    runtime = fakes.make("Runtime", **{"deserialize_cuda_engine.return_value": engine})
    refitter = fakes.make(
        "Refitter", **{"get_missing_weights.return_value": [], "refit_cuda_engine.return_value": True}
    )
    parser = fakes.make("OnnxParserRefitter", **{"refit_from_bytes.return_value": True, "num_errors": 0})
    for name, fake in (("Runtime", runtime), ("Refitter", refitter), ("OnnxParserRefitter", parser)):
        monkeypatch.setattr(trt, name, fakes.constructor(name, fake))
    file = EngineFile("text", tmp_path / "text.plan", sha256_bytes(PLAN))
    stripped = EngineFile("text", file.path, file.sha256, tmp_path / "text.onnx", sha256_bytes(ONNX))
    yield fakes, file, stripped, runtime, refitter, parser
    fakes.check()


def refused(file):
    with pytest.raises(FlamestError) as caught:
        load_engine(trt, file)
    return caught.value


def test_a_stripped_engine_gets_the_weights_of_its_graph(files):
    fakes, file, stripped, runtime, *_ = files
    load_engine(trt, file)
    assert not any(call.startswith(("Refitter", "OnnxParserRefitter")) for call in fakes.calls)
    runtime.deserialize_cuda_engine.assert_called_once_with(PLAN)
    load_engine(trt, stripped)
    assert [call for call in fakes.calls if "efitter." in call] == [
        "OnnxParserRefitter.refit_from_bytes",
        "Refitter.get_missing_weights",
        "Refitter.refit_cuda_engine",
    ]


def test_host_code_is_allowed_for_version_compatible_engines_only(files):
    _, file, _, runtime, *_ = files
    runtime.engine_host_code_allowed = False
    load_engine(trt, file)
    assert runtime.engine_host_code_allowed is False
    load_engine(trt, EngineFile("text", file.path, file.sha256, host_code=True))
    assert runtime.engine_host_code_allowed is True


def test_no_engine_and_an_exception_are_rejections(files):
    _, file, _, runtime, *_ = files
    runtime.deserialize_cuda_engine.return_value = None
    assert refused(file).code == "PLAN_REJECTED"
    runtime.deserialize_cuda_engine.side_effect = RuntimeError("bad magic")
    error = refused(file)
    assert error.code == "PLAN_REJECTED"
    assert "RuntimeError: bad magic" in error.message


def test_a_file_with_another_hash_never_reaches_tensorrt(files):
    fakes, file, stripped, *_ = files
    file.path.write_bytes(PLAN + b"!")
    error = refused(file)
    assert (error.code, error.exit_code) == ("UNTRUSTED", 65)
    assert fakes.calls == []
    file.path.write_bytes(PLAN)
    stripped.onnx.write_bytes(b"another graph")
    assert refused(stripped).code == "UNTRUSTED"
    assert not any("refit" in call for call in fakes.calls)


@pytest.mark.parametrize("breaks", ["parse", "missing", "refit"])
def test_weights_that_do_not_fit_are_an_error(files, breaks):
    fakes, _, stripped, _, refitter, parser = files
    if breaks == "parse":
        problem = fakes.make("IParserError" if hasattr(trt, "IParserError") else "ParserError")
        problem.desc.return_value = "no such weight"
        parser.configure_mock(**{"refit_from_bytes.return_value": False, "num_errors": 1})
        parser.get_error.return_value = problem
    elif breaks == "missing":
        refitter.get_missing_weights.return_value = ["encoder.weight"]
    else:
        refitter.refit_cuda_engine.return_value = False
    error = refused(stripped)
    assert error.code == "PLAN_REFIT"
    assert "without --strip-weights" in error.fix
    if breaks != "refit":
        assert ("no such weight" if breaks == "parse" else "encoder.weight") in error.message
