"""The command ``profile`` on ONNX Runtime and OpenVINO, and what is computed from their profilers' answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from flamest.export.bench.inputs import usual_feeds, usual_sizes
from flamest.export.cli.main import app
from flamest.export.profiling.arithmetic import graph_gflop
from flamest.export.profiling.matmul_peak import CHAIN, matmul_chain, matmul_gflops
from flamest.export.profiling.onnxruntime_layers import LAUNCHES, read_trace
from flamest.export.profiling.records import LayerTime, by_layer, by_operator, median_run
from flamest.runtime.backends.onnxruntime_cpu import open_session
from flamest.runtime.bundle.graph_records import AxisRange, Graph, GraphUse, Tensor
from flamest.runtime.bundle.opening import open_bundle
from onnx import TensorProto, helper
from typer.testing import CliRunner


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def profiled(tiny_bundle, tmp_path_factory):
    out = tmp_path_factory.mktemp("profile") / "dumps"
    words = ("--backend", "onnxruntime", "--backend", "openvino", "--backend", "tensorrt")
    result = run("profile", tiny_bundle, *words, "--runs", 2, "--threads", 1, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1]), out


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_every_graph_has_layers_operators_and_memory(profiled, backend):
    found = profiled[0]["backends"][backend]
    assert set(found["graphs"]) == {"vision", "text", "cnn", "keyframes"}
    for row in found["graphs"].values():
        assert row["ms"] > 0
        assert row["gflop"] > 0
        assert row["memory_mb"]["file"] > 0
        assert sum(layer["share"] for layer in row["layers"]) == pytest.approx(1)
        assert [layer["ms"] for layer in row["layers"]] == sorted((each["ms"] for each in row["layers"]), reverse=True)
        assert {each["operator"] for each in row["operators"]} == {each["operator"] for each in row["layers"]}
        assert row["of_peak"] > 0
    assert found["matmul_gflops"]["fp32"] > 0
    assert set(found["stages"]) == {"decode", "keyframes", "prepare", "vision", "caption", "embed", "cnn"}


def test_the_arithmetic_of_a_graph_does_not_depend_on_the_backend(profiled):
    for graph in ("vision", "text", "cnn", "keyframes"):
        rows = [profiled[0]["backends"][backend]["graphs"][graph] for backend in ("onnxruntime", "openvino")]
        assert rows[0]["gflop"] == rows[1]["gflop"]


def test_dumps_are_where_they_were_asked_for(profiled):
    figures, out = profiled
    for found in figures["backends"].values():
        for row in found["graphs"].values():
            for file in row["files"]:
                assert json.loads((out / file).read_text())
    assert json.loads((out / "profile.json").read_text())["backends"].keys() == figures["backends"].keys()


def test_a_backend_that_is_not_here_is_named_with_the_reason(profiled):
    assert "tensorrt" not in profiled[0]["backends"]
    assert profiled[0]["refused"]["tensorrt"]["fix"]


def test_the_page_for_people_names_stages_operators_and_layers(tiny_bundle):
    result = run("profile", tiny_bundle, "--backend", "onnxruntime", "--graph", "cnn", "--runs", 2, "--threads", 1)
    assert result.exit_code == 0, result.output
    for words in ("a clip by stages", "graph 'cnn' (fp32)", "GFLOP in it", "operator", "longest layers", "memory, MB"):
        assert words in result.stdout


def test_a_profile_of_nothing_is_an_error(tiny_bundle):
    result = run("profile", tiny_bundle, "--backend", "tensorrt", "--json")
    assert result.exit_code == 65
    error = json.loads(result.stdout.splitlines()[-1])["error"]
    assert error["code"] == "nothing_measured"
    assert "tensorrt: " in error["message"]


def test_an_unknown_graph_is_a_usage_error(tiny_bundle):
    result = run("profile", tiny_bundle, "--graph", "sound", "--json")
    assert result.exit_code == 2


def test_the_first_run_is_not_counted():
    assert median_run([9.0, 1.0, 2.0, 3.0], 3, first=True) == 2.0
    assert median_run([9.0, 9.0, 1.0, 1.0, 2.0, 2.0], 2, first=True) == 3.0
    assert median_run([1.0, 2.0, 6.0], 3, first=False) == 2.0
    assert median_run([3.0], 2, first=True) == 1.0


def test_operators_are_sums_of_their_layers():
    layers = (LayerTime("a", "MatMul", 3.0), LayerTime("b", "Add", 1.0), LayerTime("c", "MatMul", 4.0))
    assert by_operator(layers)[0] == {"operator": "MatMul", "layers": 2, "ms": 7.0, "share": 7 / 8}
    assert [row["name"] for row in by_layer(layers)] == ["c", "a", "b"]


def event(name, us, ts, **about):
    return {"cat": about.pop("cat", "Node"), "name": name, "dur": us, "ts": ts, "args": about}


def test_on_a_gpu_kernels_count_and_launches_are_named_as_such(tmp_path):
    nodes = [event("mm_kernel_time", 5, ts, op_name="MatMul", provider="CUDA") for ts in (0, 10, 20)]
    kernels = [event("gemm", 900, ts, cat="Kernel") for ts in (1, 11, 21)]
    trace = tmp_path / "trace.json"
    trace.write_text(json.dumps(nodes))
    found = read_trace(trace, runs=2, on_gpu=True)
    assert (found.layers[0].name, found.note) == ("mm", LAUNCHES)
    trace.write_text(json.dumps(nodes + kernels))
    found = read_trace(trace, runs=2, on_gpu=True)
    assert (found.layers[0].name, found.layers[0].ms, found.note) == ("gemm", 0.9, "")


def test_arithmetic_counts_every_multiply_add_twice(tmp_path):
    weight = onnx.numpy_helper.from_array(np.ones((5, 3, 2, 2), np.float32), "w")
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"]), helper.make_node("MatMul", ["y", "y"], ["z"])]
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 4, 4])]
    ends.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 5, 3, 3]))
    model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight]), ir_version=9)
    path = tmp_path / "graph.onnx"
    onnx.save(model, str(path))
    batch = 2
    expected = 2 * batch * 5 * 9 * (3 * 2 * 2) + 2 * batch * 5 * 9 * 3
    assert graph_gflop(path, {"batch": batch}) == pytest.approx(expected / 1e9)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_matmul_peak_is_measured_on_the_backend(precision):
    assert matmul_gflops(lambda path: open_session(path, threads=1), precision, side=64) > 0


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_the_matmuls_compute_in_the_precision(precision):
    model = matmul_chain(precision, 8)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("MatMul") == CHAIN
    assert kinds.count("DequantizeLinear") == (CHAIN + 1 if precision == "int8" else 0)


def test_a_peak_that_the_backend_cannot_compute_is_none():
    assert matmul_gflops(lambda path: open_session(path, threads=1), "bf16", side=8) is None


def graph_of(*tensors, **axes):
    return Graph("g.onnx", 17, tensors, (), axes, "fp32", {})


def test_inputs_follow_the_types_of_the_graph():
    class Session:
        def rows(self, name, shape):
            class Rows:
                def first(self, count):
                    return name, shape, count

            return Rows()

    graph = graph_of(
        Tensor("pixels", "uint8", ("batch", 4, 4, 3)),
        Tensor("past", "float16", ("batch", 2)),
        Tensor("cross", "bfloat16", ("batch", 2)),
        Tensor("mask", "float32", ("batch", "past + 1")),
        batch=AxisRange(1, 16, 128),
        past=AxisRange(0, 10, 20),
    )
    feeds = usual_feeds(graph, usual_sizes(graph, 3, frames=32), Session())
    assert feeds["pixels"].dtype == np.uint8
    assert feeds["pixels"].shape == (3, 4, 4, 3)
    assert feeds["pixels"].max() > 200
    assert feeds["past"].dtype == np.float16
    assert feeds["cross"] == ("cross", (3, 2), 3)
    assert feeds["mask"].shape == (3, 11)
    assert not feeds["mask"].any()


def test_the_batch_stays_within_the_graphs_range():
    graph = graph_of(Tensor("frames", "float32", ("frames", 1)), frames=AxisRange(1, 32, 64))
    assert usual_sizes(graph, 1, frames=32) == {"frames": 32}
    assert usual_sizes(graph, 4, frames=32) == {"frames": 64}


def test_sizes_are_those_of_the_use_that_takes_the_batch():
    uses = (
        GraphUse("one", {"frames": AxisRange(1, 32, 32)}),
        GraphUse("several", {"frames": AxisRange(1, 64, 512)}),
    )
    frames = Tensor("frames", "uint8", ("frames", 1))
    graph = Graph("g.onnx", 17, (frames,), (), {"frames": AxisRange(1, 32, 512)}, "fp32", {}, uses=uses)
    assert [usual_sizes(graph, batch, frames=32) for batch in (1, 4, 99)] == [
        {"frames": 32}, {"frames": 128}, {"frames": 512},
    ]  # fmt: skip


def test_a_real_bundles_arithmetic_grows_with_the_batch(tiny_bundle: Path):
    manifest = open_bundle(tiny_bundle).manifest
    path = tiny_bundle / manifest.graphs["cnn"].file
    one, two = (graph_gflop(path, {"batch": batch}) for batch in (1, 2))
    assert one
    assert two == pytest.approx(2 * one)
