"""Run per TensorRT version by test_tensorrt_layers.py: genuine classes, an engine that reports layers when it runs."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import tensorrt as trt
from flamest.base.errors import FlamestError
from flamest.export.profiling import tensorrt_layers
from flamest.export.profiling.tensorrt_layers import ProfiledRun, engine_layers, parse_layers
from flamest.runtime.backends.tensorrt.engine import LoadedEngine
from flamest.runtime.backends.tensorrt.package import TensorRtLog
from tensorrt_fakes import Fakes

sys.path.insert(0, str(Path(__file__).parents[2] / "runtime" / "backends" / "tensorrt"))
from fake_cuda import FakeCuda
from fake_engine import LAYER_MS, EngineSpec, FakeEngine

RANGES = {
    "frames": [((1, 4), (1, 4), (4, 4)), ((1, 4), (16, 4), (16, 4))],
    "past": [((0, 2), (0, 2), (8, 2)), ((0, 2), (8, 2), (8, 2))],
}
DESCRIBED = {
    "Layers": [{"Name": "conv + relu", "LayerType": "CaskConvolution", "TacticName": "sm90_xmma"}, "pool"]
}  # fmt: skip


class Profiled:
    """An engine of fake_engine.py: an embedding of frames, and a past that may be empty."""

    def __init__(self, monkeypatch, *, described=DESCRIBED):
        self.fakes, self.cuda = Fakes(), FakeCuda()
        monkeypatch.setattr(tensorrt_layers, "import_cuda_runtime", lambda: self.cuda)
        spec = EngineSpec(
            inputs={"frames": "HALF", "past": "HALF"},
            outputs={"embedding": "HALF"},
            profiles=[{name: RANGES[name][number] for name in RANGES} for number in (0, 1)],
            shapes=lambda shapes: {"embedding": (shapes["frames"][0], 6)},
            compute=lambda arrays: {"embedding": np.zeros((len(arrays["frames"]), 6), np.float16)},
            layers=described["Layers"],
        )
        self.fake = FakeEngine(trt, self.fakes, self.cuda, spec)
        self.loaded = LoadedEngine(self.fake.engine, TensorRtLog(), ())

    def open(self, **shapes):
        return ProfiledRun.open(trt, self.loaded, "cnn", shapes or {"frames": (1, 4), "past": (0, 2)})


def test_every_layer_has_its_time_type_and_kernel(monkeypatch):
    engine = Profiled(monkeypatch)
    with engine.open() as run:
        for _ in range(3):
            run.launch()
        layers = engine_layers(run.profiler.taken, run.describe(trt), 3)
    assert [(layer.name, layer.operator, layer.ms, layer.detail) for layer in layers] == [
        ("conv + relu", "CaskConvolution", LAYER_MS, "sm90_xmma"),
        ("pool", "layer", LAYER_MS, ""),
    ]
    assert run.memory_mb == {"inputs": 8 / 1e6, "outputs": 12 / 1e6}
    assert engine.fake.launched == 3
    assert not engine.cuda.memory
    assert not engine.cuda.problems
    engine.fakes.check()


def test_an_input_without_elements_has_an_address_of_its_own(monkeypatch):
    engine = Profiled(monkeypatch)
    with engine.open():
        (context,) = engine.fake.contexts
        assert len(set(context.addresses.values())) == 3


def test_shapes_that_no_profile_has_are_an_error(monkeypatch):
    engine = Profiled(monkeypatch)
    with pytest.raises(FlamestError) as caught, engine.open(frames=(17, 4), past=(0, 2)):
        pass
    assert caught.value.code == "PROFILE_RANGE"


def test_too_little_memory_is_named(monkeypatch):
    engine = Profiled(monkeypatch)
    engine.cuda.limit = 10
    with pytest.raises(FlamestError) as caught, engine.open():
        pass
    assert caught.value.code == "GPU_MEMORY"


def test_layers_of_an_engine_without_details_are_names():
    assert parse_layers('{"Layers": ["conv + relu", "pool"]}') == ["conv + relu", "pool"]
    assert parse_layers("no JSON") == parse_layers("[]") == []
    (layer,) = engine_layers({"pool": [1.0]}, ["pool"], 1)
    assert (layer.operator, layer.detail) == ("layer", "")
