"""Run per TensorRT version by test_tensorrt_layers.py: genuine classes, an engine that reports layers when it runs."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import pytest
import tensorrt as trt
from flamest.base.errors import FlamestError
from flamest.export.profiling import tensorrt_layers
from flamest.export.profiling.tensorrt_layers import ProfiledRun, engine_layers, find_profile, parse_layers
from flamest.runtime.backends.tensorrt.engine import LoadedEngine
from flamest.runtime.backends.tensorrt.package import TensorRtLog
from tensorrt_fakes import Fakes

NAMES = ("frames", "past", "embedding")
RANGES = {
    "frames": [((1, 4), (1, 4), (4, 4)), ((1, 4), (16, 4), (16, 4))],
    "past": [((0, 2), (0, 2), (8, 2)), ((0, 2), (8, 2), (8, 2))],
}
DESCRIBED = {"Layers": [{"Name": "conv + relu", "LayerType": "CaskConvolution", "TacticName": "sm90_xmma"}]}


class Cuda:
    """The calls that the profile makes; ``freed``: all memory that was given back."""

    cudaError_t = SimpleNamespace(cudaSuccess=0)  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1)  # noqa: N815

    def __init__(self, *, fails=None):
        self.taken, self.freed, self._next, self.fails = [], [], itertools.count(1), fails

    def cudaStreamCreate(self):  # noqa: N802
        return 0, 7

    def cudaMalloc(self, size):  # noqa: N802
        if self.fails:
            return (SimpleNamespace(name=self.fails),)
        assert size > 0
        self.taken.append(next(self._next) << 20)
        return 0, self.taken[-1]

    def cudaMemcpyAsync(self, to, source, size, kind, stream):  # noqa: N802
        assert (to in self.taken, size > 0, kind, stream) == (True, True, 1, 7)
        return (0,)

    def cudaStreamSynchronize(self, stream):  # noqa: N802
        assert stream == 7
        return (0,)

    def cudaGetErrorString(self, error):  # noqa: N802
        return 0, b"what CUDA says"

    def cudaFree(self, pointer):  # noqa: N802
        self.freed.append(pointer)
        return (0,)


class Profiled:
    """An engine whose launches report two layers to the profiler that is set on its context."""

    def __init__(self, monkeypatch, *, described=DESCRIBED, cuda=None):
        self.fakes, self.cuda, self.shapes, self.addresses = Fakes(), cuda or Cuda(), {}, {}
        monkeypatch.setattr(tensorrt_layers, "import_cuda_runtime", lambda: self.cuda)
        self.context = self.fakes.make(
            "IExecutionContext",
            **{
                "set_optimization_profile_async.return_value": True,
                "set_input_shape.side_effect": self._set_shape,
                "get_tensor_shape.side_effect": lambda name: self.shapes.get(name, (1, 6)),
                "set_tensor_address.side_effect": self._set_address,
                "execute_async_v3.side_effect": self._execute,
            },
        )
        self.inspector = self.fakes.make(
            "EngineInspector", **{"get_engine_information.return_value": json.dumps(described)}
        )
        self.engine = self.fakes.make(
            "ICudaEngine",
            **{
                "create_execution_context.return_value": self.context,
                "create_engine_inspector.return_value": self.inspector,
                "num_io_tensors": len(NAMES),
                "num_optimization_profiles": 2,
                "device_memory_size_v2": 64,
                "get_tensor_name.side_effect": NAMES.__getitem__,
                "get_tensor_dtype.side_effect": lambda name: trt.DataType.HALF,
                "get_tensor_profile_shape.side_effect": lambda name, index: list(RANGES[name][index]),
            },
        )
        self.loaded = LoadedEngine(self.engine, TensorRtLog(), ())

    def open(self, **shapes):
        return ProfiledRun.open(trt, self.loaded, "cnn", shapes or {"frames": (1, 4), "past": (0, 2)})

    def _set_shape(self, name, shape):
        self.shapes[name] = shape
        return True

    def _set_address(self, name, address):
        self.addresses[name] = address
        return True

    def _execute(self, stream_handle):
        assert isinstance(self.context.profiler, trt.IProfiler)
        for layer, ms in (("conv + relu", 2.0), ("pool", 0.5)):
            self.context.profiler.report_layer_time(layer, ms)
        return True


def test_every_layer_has_its_time_type_and_kernel(monkeypatch):
    engine = Profiled(monkeypatch)
    with engine.open() as run:
        for _ in range(3):
            run.launch()
        layers = engine_layers(run.profiler.taken, run.describe(trt), 3)
    assert [(layer.name, layer.operator, layer.ms, layer.detail) for layer in layers] == [
        ("conv + relu", "CaskConvolution", 2.0, "sm90_xmma"),
        ("pool", "layer", 0.5, ""),
    ]
    assert run.memory_mb == {"inputs": 8 / 1e6, "outputs": 12 / 1e6}
    engine.inspector.get_engine_information.assert_called_once_with(trt.LayerInformationFormat.JSON)
    assert engine.cuda.freed == engine.cuda.taken
    engine.fakes.check()


def test_an_input_without_elements_has_an_address_of_its_own(monkeypatch):
    engine = Profiled(monkeypatch)
    with engine.open():
        assert len(set(engine.addresses.values())) == len(NAMES)


def test_the_profile_that_is_tuned_for_the_shapes_is_chosen(monkeypatch):
    engine = Profiled(monkeypatch)
    assert find_profile(engine.engine, {"frames": (1, 4), "past": (0, 2)}) == 0
    assert find_profile(engine.engine, {"frames": (4, 4), "past": (8, 2)}) == 1
    assert find_profile(engine.engine, {"frames": (16, 4), "past": (0, 2)}) == 1
    assert find_profile(engine.engine, {"frames": (17, 4), "past": (0, 2)}) is None


def test_shapes_that_no_profile_has_are_an_error(monkeypatch):
    engine = Profiled(monkeypatch)
    with pytest.raises(FlamestError) as caught, engine.open(frames=(17, 4), past=(0, 2)):
        pass
    assert caught.value.code == "PROFILE_RANGE"


def test_too_little_memory_is_named(monkeypatch):
    engine = Profiled(monkeypatch, cuda=Cuda(fails="cudaErrorMemoryAllocation"))
    with pytest.raises(FlamestError, match="what CUDA says") as caught, engine.open():
        pass
    assert caught.value.code == "GPU_MEMORY"


def test_layers_of_an_engine_without_details_are_names():
    assert parse_layers('{"Layers": ["conv + relu", "pool"]}') == ["conv + relu", "pool"]
    assert parse_layers("no JSON") == parse_layers("[]") == []
    (layer,) = engine_layers({"pool": [1.0]}, ["pool"], 1)
    assert (layer.operator, layer.detail) == ("layer", "")
