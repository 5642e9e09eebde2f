"""Run once per TensorRT version by test_rig.py: the fakes refuse what the genuine classes would refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import tensorrt
from tensorrt_fakes import Fakes, check_call, signatures


def test_a_name_that_the_genuine_class_lacks_is_refused():
    config = Fakes().make("IBuilderConfig")
    with pytest.raises(AttributeError):
        config.set_precision_of_everything(1)
    with pytest.raises(AttributeError):
        config.optimisation_level = 3
    config.builder_optimization_level = 3


def test_a_call_that_the_genuine_method_refuses_is_refused():
    def refused(name: str, method: str, *args, **kwargs) -> None:
        fakes = Fakes()
        getattr(fakes.make(name), method)(*args, **kwargs)
        with pytest.raises(AssertionError, match="is no call that TensorRT"):
            fakes.check()

    refused("OnnxParser", "parse_from_file", Path("graph.onnx"))
    refused("OnnxParser", "parse_from_file")
    refused("IBuilderConfig", "set_flag", 3)
    refused("IBuilderConfig", "set_flag", tensorrt.BuilderFlag.TF32, tensorrt.BuilderFlag.REFIT)
    refused("IBuilderConfig", "set_timing_cache", None, ignore=True)
    refused("IOptimizationProfile", "set_shape", "frames", 1, 2, 3)
    refused("Runtime", "deserialize_cuda_engine", "plan")


def test_a_valid_call_passes_and_calls_keep_their_order():
    fakes = Fakes()
    builder, config = fakes.make("Builder"), fakes.make("IBuilderConfig")
    builder.create_network(1)
    config.set_flag(tensorrt.BuilderFlag.TF32)
    config.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, 1 << 30)
    builder.build_serialized_network(fakes.make("INetworkDefinition"), config)
    fakes.make("IOptimizationProfile").set_shape("frames", (1, 3), (2, 3), (4, 3))
    fakes.check()
    assert fakes.calls[:2] == ["Builder.create_network", "IBuilderConfig.set_flag"]


def test_constructors_are_checked_too():
    fakes = Fakes()
    parser = fakes.make("OnnxParser")
    construct = fakes.constructor("OnnxParser", parser)
    assert construct(fakes.make("INetworkDefinition"), tensorrt.Logger()) is parser
    with pytest.raises(AssertionError):
        construct(tensorrt.Logger())


def test_every_method_of_the_classes_in_use_states_a_signature():
    classes = ("Builder", "IBuilderConfig", "INetworkDefinition", "OnnxParser", "IOptimizationProfile", "Runtime")
    for name in (*classes, "ICudaEngine", "IExecutionContext", "Refitter", "OnnxParserRefitter"):
        genuine = getattr(tensorrt, name)
        for word in dir(genuine):
            if not word.startswith("_") and callable(getattr(genuine, word)):
                assert signatures(getattr(genuine, word)), f"{name}.{word}"


def test_a_builder_cannot_be_made_on_the_stub_libraries():
    with pytest.raises(TypeError, match="factory function returned nullptr"):
        tensorrt.Builder(tensorrt.Logger())
    check_call(tensorrt.Builder.__init__, (tensorrt.Logger(),), {}, "Builder")
