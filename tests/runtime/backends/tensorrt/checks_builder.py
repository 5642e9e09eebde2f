"""Run per TensorRT version by test_builder.py: the builder's calls to TensorRT, and its use of the answers."""

from __future__ import annotations

import msgspec
import pytest
import tensorrt as trt
from flamest.base.errors import FlamestError
from flamest.base.files import sha256_bytes
from flamest.runtime.backends.tensorrt.builder import EngineRequest, build_engine
from flamest.runtime.backends.tensorrt.progress import BUILD_STEPS, BuildProgress, make_monitor
from flamest.runtime.bundle.graph_records import AxisRange, EngineOptions, Graph, GraphUse, Tensor
from tensorrt_fakes import Fakes

VERSION = tuple(int(part) for part in trt.__version__.split(".")[:3])
PLAN = b"ftrt" + bytes(20) + bytes((*VERSION, 7)) + b"native code"
MODEL = b"an ONNX graph"
GRAPH = Graph(
    file="cnn.onnx",
    opset=18,
    inputs=(Tensor("frames", "float32", ("batch", 3, 8, 64, 64)),),
    outputs=(Tensor("embedding", "float32", ("batch", 16)),),
    axes={"batch": AxisRange(1, 1, 16)},
    precision="fp32",
    dtype_histogram={"float32": {"Conv": 2, "Gemm": 1}},
)
FLAGS = [getattr(trt.BuilderFlag, word) for word in ("TF32", "VERSION_COMPATIBLE", "STRIP_PLAN", "REFIT_IDENTICAL")]


class Counted:
    def __init__(self):
        self.steps = 0

    def advance(self, steps=1):
        self.steps += steps

    def describe(self, text):
        pass


class Workbench:
    """TensorRT's objects as stand-ins that build PLAN; a test changes what one of them answers."""

    def __init__(self, monkeypatch, folder):
        self.fakes, self.folder, self.progress = Fakes(), folder, Counted()
        self.onnx = folder / "cnn.onnx"
        self.onnx.write_bytes(MODEL)
        self.network = self.fakes.make("INetworkDefinition", **{"get_flag.return_value": True})
        self.parsed(inputs=[("frames", "FLOAT")], outputs=[("embedding", "FLOAT")])
        self.layers(("CONVOLUTION", "FLOAT"), ("CONVOLUTION", "FLOAT"), ("MATRIX_MULTIPLY", "FLOAT"))
        self.profile = self.fakes.make("IOptimizationProfile")
        self.cache = self.fakes.make("ITimingCache", **{"serialize.return_value": b"timings"})
        self.config = self.fakes.make(
            "IBuilderConfig",
            **{
                "add_optimization_profile.return_value": 0,
                "create_timing_cache.return_value": self.cache,
                "set_timing_cache.return_value": True,
                "get_timing_cache.return_value": self.cache,
            },
        )
        self.builder = self.fakes.make(
            "Builder",
            **{
                "create_network.return_value": self.network,
                "create_builder_config.return_value": self.config,
                "create_optimization_profile.return_value": self.profile,
                "build_serialized_network.return_value": PLAN,
            },
        )
        self.parser = self.fakes.make("OnnxParser", **{"parse.return_value": True, "num_errors": 0})
        monkeypatch.setattr(trt, "Builder", self.fakes.constructor("Builder", self.builder))
        monkeypatch.setattr(trt, "OnnxParser", self.fakes.constructor("OnnxParser", self.parser))

    def parsed(self, inputs, outputs):
        for side, tensors in (("input", inputs), ("output", outputs)):
            made = [self.fakes.make("ITensor", dtype=getattr(trt.DataType, dtype)) for _, dtype in tensors]
            for fake, (name, _) in zip(made, tensors, strict=True):
                fake.name = name
            self.network.configure_mock(**{f"num_{side}s": len(made), f"get_{side}.side_effect": made.__getitem__})

    def layers(self, *kinds):
        made = []
        for kind, dtype in kinds:
            layer = self.fakes.make("ILayer", type=getattr(trt.LayerType, kind))
            source = "INT8" if kind == "DEQUANTIZE" else dtype
            layer.get_input.return_value = self.fakes.make("ITensor", dtype=getattr(trt.DataType, source))
            layer.get_output.return_value = self.fakes.make("ITensor", dtype=getattr(trt.DataType, dtype))
            made.append(layer)
        self.network.configure_mock(**{"num_layers": len(made), "get_layer.side_effect": made.__getitem__})

    def build(self, graph=GRAPH, cache=None, **options):
        request = EngineRequest("cnn", self.onnx, sha256_bytes(MODEL), graph, EngineOptions(**options), cache)
        try:
            return build_engine(request, self.progress)
        finally:
            self.fakes.check()

    def flags(self):
        """Every flag that was switched, and to what."""
        sides = ((self.config.set_flag, True), (self.config.clear_flag, False))
        return {call.args[0]: on for method, on in sides for call in method.call_args_list}


@pytest.fixture
def bench(monkeypatch, tmp_path):
    return Workbench(monkeypatch, tmp_path)


def refused(bench, code, **words):
    with pytest.raises(FlamestError) as caught:
        bench.build(**words)
    assert caught.value.code == code, caught.value.message
    return caught.value


def test_an_engine_is_built_in_this_order_of_calls(bench):
    built = bench.build(workspace_mb=512)
    assert built.data == PLAN
    assert built.version[:3] == VERSION
    assert bench.progress.steps == BUILD_STEPS
    order = ["Builder.create_network", "OnnxParser.parse", "Builder.create_builder_config"]
    order += ["IBuilderConfig.add_optimization_profile", "Builder.build_serialized_network"]
    assert [call for call in bench.fakes.calls if call in order] == order
    bench.builder.create_network.assert_called_once_with(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    bench.parser.parse.assert_called_once_with(MODEL)
    bench.profile.set_shape.assert_called_once_with("frames", (1, 3, 8, 64, 64), (1, 3, 8, 64, 64), (16, 3, 8, 64, 64))
    bench.config.set_memory_pool_limit.assert_called_once_with(trt.MemoryPoolType.WORKSPACE, 512 << 20)


def test_every_option_is_set_whatever_the_versions_default_is(bench):
    bench.build()
    assert bench.flags() == dict.fromkeys(FLAGS, False)
    assert bench.config.builder_optimization_level == 3
    assert bench.config.hardware_compatibility_level == trt.HardwareCompatibilityLevel.NONE
    bench.config.set_memory_pool_limit.assert_not_called()
    assert bench.config.profiling_verbosity == trt.ProfilingVerbosity.LAYER_NAMES_ONLY
    assert isinstance(bench.config.progress_monitor, trt.IProgressMonitor)


def test_an_engine_for_profiles_describes_every_layer(bench):
    bench.build(detailed=True)
    assert bench.config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED


def test_options_reach_the_builder_and_no_precision_flag_does(bench):
    bench.build(tf32=True, version_compatible=True, strip_weights=True, opt_level=5, hardware_compat="ampere+")
    assert bench.flags() == dict.fromkeys(FLAGS, True)
    assert bench.config.builder_optimization_level == 5
    assert bench.config.hardware_compatibility_level == trt.HardwareCompatibilityLevel.AMPERE_PLUS


def test_same_cc_needs_a_version_that_has_it(bench):
    if VERSION < (10, 9):
        error = refused(bench, "PLAN_BUILD", hardware_compat="same-cc")
        assert f"needs TensorRT 10.9 or newer, here is {trt.__version__}" in error.message
        assert "leave --hardware-compat out" in error.fix
    else:
        bench.build(hardware_compat="same-cc")
        same = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
        assert bench.config.hardware_compatibility_level == same


def test_every_error_of_the_parser_is_in_one_message(bench):
    def error(node, operator, text):
        return bench.fakes.make(
            "ParserError",
            **{
                "node.return_value": node,
                "node_name.return_value": f"n{node}",
                "node_operator.return_value": operator,
                "desc.return_value": text,
                "code.return_value": trt.ErrorCode.UNSUPPORTED_NODE,
            },
        )

    errors = [error(3, "Einsum", "no importer"), error(9, "MatMulNBits", "plugin not found")]
    bench.parser.parse.return_value = False
    bench.parser.num_errors = 2
    bench.parser.get_error.side_effect = errors.__getitem__
    evidence = refused(bench, "PLAN_BUILD").message
    assert "node 3 'n3' (Einsum): no importer [UNSUPPORTED_NODE]" in evidence
    assert "node 9 'n9' (MatMulNBits): plugin not found [UNSUPPORTED_NODE]" in evidence
    bench.builder.build_serialized_network.assert_not_called()


def test_a_builder_without_a_result_is_an_error_with_tensorrts_log(bench, monkeypatch):
    def construct(logger):
        bench.logger = logger
        return bench.builder

    def fail(network, config):
        bench.logger.log(trt.ILogger.Severity.INFO, "building")
        bench.logger.log(trt.ILogger.Severity.ERROR, "Could not find any implementation for node {conv}")

    monkeypatch.setattr(trt, "Builder", construct)
    bench.builder.build_serialized_network.side_effect = fail
    evidence = refused(bench, "PLAN_BUILD").message
    assert "Could not find any implementation for node {conv}" in evidence
    assert "building" not in evidence
    assert bench.progress.steps < BUILD_STEPS


def test_a_file_that_is_not_the_manifests_is_never_parsed(bench):
    bench.onnx.write_bytes(MODEL + b"!")
    refused(bench, "UNTRUSTED")
    bench.parser.parse.assert_not_called()


def test_a_profile_that_tensorrt_rejects_is_an_error(bench):
    bench.config.add_optimization_profile.return_value = -1
    refused(bench, "PLAN_BUILD")
    bench.profile.set_shape.side_effect = ValueError("inconsistent")
    assert "input frames: inconsistent" in refused(bench, "PLAN_BUILD").message


def test_every_use_of_a_graph_becomes_a_profile_in_order(bench):
    batch = AxisRange(1, 4, 16)
    uses = (GraphUse("step", {"batch": batch}), GraphUse("one", {"batch": AxisRange(1, 1, 16)}))
    graph = Graph(**{name: getattr(GRAPH, name) for name in GRAPH.__struct_fields__ if name != "uses"}, uses=uses)
    bench.build(graph=graph, max_batch=8)
    frames = (3, 8, 64, 64)
    assert [call.args for call in bench.profile.set_shape.call_args_list] == [
        ("frames", (1, *frames), (4, *frames), (8, *frames)),
        ("frames", (1, *frames), (1, *frames), (8, *frames)),
    ]
    assert bench.config.add_optimization_profile.call_count == 2
    bench.config.add_optimization_profile.side_effect = [0, -1]
    assert "profile 'one': TensorRT rejected it" in refused(bench, "PLAN_BUILD", graph=graph).message


def test_other_inputs_or_outputs_than_the_manifests_are_an_error(bench):
    bench.parsed(inputs=[("frames", "FLOAT"), ("extra", "INT64")], outputs=[("embedding", "FLOAT")])
    assert "'extra': 'int64'" in refused(bench, "PLAN_BUILD").message
    bench.parsed(inputs=[("frames", "FLOAT")], outputs=[("embedding", "HALF")])
    assert "outputs are {'embedding': 'float16'}" in refused(bench, "PLAN_BUILD").message


def with_ledger(dtype_histogram):
    return Graph(
        **{name: getattr(GRAPH, name) for name in GRAPH.__struct_fields__ if name != "dtype_histogram"},
        dtype_histogram=dtype_histogram,
    )


def test_lost_half_precision_is_an_error_and_nothing_is_built(bench):
    half = with_ledger({"float16": {"Conv": 2, "Gemm": 1}, "float32": {"Softmax": 4}})
    assert "3 matmuls of the ONNX graph are float16" in refused(bench, "PRECISION", graph=half).message
    bench.layers(("CONVOLUTION", "HALF"), ("CONVOLUTION", "FLOAT"), ("MATRIX_MULTIPLY", "HALF"))
    assert "0 matmuls in float32, the network more" in refused(bench, "PRECISION", graph=half).message
    bench.builder.build_serialized_network.assert_not_called()
    bench.layers(("CONVOLUTION", "HALF"), ("CONVOLUTION", "HALF"), ("CAST", "FLOAT"), ("MATRIX_MULTIPLY", "HALF"))
    bench.build(graph=half)


def test_lost_bfloat16_and_int8_are_errors(bench):
    refused(bench, "PRECISION", graph=with_ledger({"bfloat16": {"MatMul": 1}}))
    bench.layers(("CONVOLUTION", "HALF"))
    refused(bench, "PRECISION", graph=with_ledger({"bfloat16": {"MatMul": 1}}))
    bench.layers(("MATRIX_MULTIPLY", "BF16"))
    bench.build(graph=with_ledger({"bfloat16": {"MatMul": 1}}))
    bench.layers(("CONVOLUTION", "FLOAT"))
    for dtype_histogram in ({"int8": {"Conv": 1}}, {"float32 with int8 weights": {"Conv": 1}}):
        error = refused(bench, "PRECISION", graph=with_ledger(dtype_histogram))
        assert "1 matmuls of the ONNX graph have int8 operands, the network dequantises nothing" in error.message
    bench.layers(("QUANTIZE", "INT8"), ("DEQUANTIZE", "FLOAT"), ("CONVOLUTION", "FLOAT"))
    bench.build(graph=with_ledger({"int8": {"Conv": 1}}))


def test_int8_with_half_around_is_dequantised_into_half(bench):
    graph = with_ledger({"int8": {"Conv": 1}, "float16": {"MatMul": 1, "Gelu": 2}})
    bench.layers(("DEQUANTIZE", "HALF"), ("CONVOLUTION", "HALF"), ("MATRIX_MULTIPLY", "HALF"))
    bench.build(graph=graph)
    bench.layers(("DEQUANTIZE", "FLOAT"), ("CONVOLUTION", "FLOAT"), ("MATRIX_MULTIPLY", "HALF"))
    assert "0 matmuls in float32, the network more" in refused(bench, "PRECISION", graph=graph).message
    # Only where the graph itself has float32 may an int8 matmul be dequantised into it.
    bench.build(graph=with_ledger({"int8": {"Conv": 1}, "float16": {"MatMul": 1}, "float32": {"Softmax": 1}}))
    no_matmuls = with_ledger({"int8": {"Conv": 1}, "bfloat16": {"Gelu": 1}})
    bench.layers(("DEQUANTIZE", "FLOAT"), ("CONVOLUTION", "FLOAT"))
    refused(bench, "PRECISION", graph=no_matmuls)
    bench.layers(("DEQUANTIZE", "BF16"), ("CONVOLUTION", "BF16"))
    bench.build(graph=no_matmuls)


def test_bytes_tokens_and_half_caches_are_the_manifests_types(bench):
    inputs = (Tensor("frames", "uint8", ("batch", 8)), Tensor("past", "bfloat16", ("batch", 8)))
    outputs = (Tensor("next_token", "int64", ("batch",)), Tensor("present", "bfloat16", ("batch", 8)))
    graph = msgspec.structs.replace(GRAPH, inputs=inputs, outputs=outputs)
    bench.parsed(inputs=[("frames", "UINT8"), ("past", "BF16")], outputs=[("next_token", "INT64"), ("present", "BF16")])
    bench.build(graph=graph)
    # TensorRT's own type of indices, where the cast behind them was lost.
    bench.parsed(inputs=[("frames", "UINT8"), ("past", "BF16")], outputs=[("next_token", "INT32"), ("present", "BF16")])
    assert "'next_token': 'int32'" in refused(bench, "PLAN_BUILD", graph=graph).message


def test_a_network_that_is_not_strongly_typed_is_an_error(bench):
    bench.network.get_flag.return_value = False
    if VERSION < (11,):
        assert "strongly typed" in refused(bench, "PRECISION").message
    else:
        bench.build()


def test_the_timing_cache_is_read_attached_and_written(bench, tmp_path):
    file = tmp_path / "timing.cache"
    assert bench.build(cache=file).remarks == ()
    bench.config.create_timing_cache.assert_called_once_with(b"")
    assert file.read_bytes() == b"timings"
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_bytes(b"older timings")
    bench.build(cache=file)
    assert bench.config.create_timing_cache.call_args.args == (b"older timings",)
    assert bench.config.set_timing_cache.call_args.args == (bench.cache, False)


def test_a_timing_cache_of_another_machine_is_replaced(bench, tmp_path):
    file = tmp_path / "timing.cache"
    file.write_bytes(b"of another GPU")
    bench.config.set_timing_cache.side_effect = [False, True, True]
    built = bench.build(cache=file)
    assert "is of another GPU or TensorRT" in built.remarks[0]
    assert bench.config.create_timing_cache.call_args.args == (b"",)
    unwritable = bench.build(cache=tmp_path / "no folder" / "timing.cache")
    assert "the timing cache was not saved" in unwritable.remarks[0]


def test_progress_follows_nested_phases_and_ctrl_c_stops_the_build(bench):
    def build(network, config):
        monitor = config.progress_monitor
        monitor.phase_start("Building LoadedEngine", None, 2)
        monitor.phase_start("Tactics", "Building LoadedEngine", 4)
        assert monitor.step_complete("Tactics", 0)
        seen.append(bench.progress.steps)
        assert monitor.step_complete("Tactics", 3)
        monitor.phase_finish("Tactics")
        assert monitor.step_complete("Building LoadedEngine", 0)
        seen.append(bench.progress.steps)
        bench.progress.advance = interrupt
        assert not monitor.step_complete("Building LoadedEngine", 1)

    def interrupt(steps):
        raise KeyboardInterrupt

    seen = []
    bench.builder.build_serialized_network.side_effect = build
    with pytest.raises(KeyboardInterrupt):
        bench.build()
    assert seen == [12, 50]


def test_progress_never_decreases():
    counted = Counted()
    monitor = make_monitor(trt, BuildProgress(counted))
    monitor.phase_start("a", None, 1)
    monitor.step_complete("a", 0)
    monitor.phase_start("b", None, 10)
    monitor.step_complete("b", 0)
    monitor.step_complete("unknown", 0)
    monitor.phase_finish("unknown")
    assert counted.steps == BUILD_STEPS
