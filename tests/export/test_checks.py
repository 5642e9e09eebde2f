"""Checks without a GPU: each finds its own kind of problem, and an exported bundle passes them all."""

from __future__ import annotations

import json
import shutil

import msgspec
import numpy as np
import pytest
from flamest.base.errors import DataError
from flamest.export.checks import CHECKS, check_bundle, check_graphs, raise_for_failures
from flamest.export.cli.main import app
from flamest.export.graphs.tensorrt_operators import NEWER, OPERATORS, parser_problems
from flamest.export.graphs.views import view_graph
from flamest.export.weights.source import parse_source
from flamest.runtime.bundle.graph_records import AxisRange
from flamest.runtime.bundle.manifest_reading import read_manifest
from onnx import TensorProto, helper, numpy_helper, save_model
from typer.testing import CliRunner


def write_graph(path, nodes, inputs, outputs, constants=(), opset=18, domains=()):
    values = [helper.make_tensor_value_info(*value) for value in inputs]
    results = [helper.make_tensor_value_info(*value) for value in outputs]
    weights = [numpy_helper.from_array(array, name) for name, array in constants]
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    graph = helper.make_graph(nodes, "g", values, results, weights)
    save_model(helper.make_model(graph, opset_imports=opsets, ir_version=9), str(path))
    return path


def problems(path):
    return [problem for node in view_graph(path).nodes for problem in parser_problems(node)]


X = ("x", TensorProto.FLOAT, ["batch", 3, 8, 8])
Y = ("y", TensorProto.FLOAT, None)


def test_an_exported_bundle_passes_every_check_of_every_graph(tiny_bundle):
    results = check_bundle(tiny_bundle)
    assert {(result.graph, result.check) for result in results} == {
        (graph, check) for graph in read_manifest(tiny_bundle).graphs for check in CHECKS
    }
    assert [result for result in results if result.problems] == []
    raise_for_failures(results, tiny_bundle)


def test_the_command_prints_each_check_and_ends_in_65_when_one_fails(tiny_bundle, monkeypatch):
    from flamest.export.graphs import tensorrt_operators

    run = CliRunner().invoke
    passed = run(app, ["check", str(tiny_bundle), "--json"])
    assert (passed.exit_code, len(json.loads(passed.stdout.splitlines()[-1])["checks"])) == (0, 4 * len(CHECKS))
    monkeypatch.delitem(tensorrt_operators.OPERATORS, "Erf")
    failed = run(app, ["check", str(tiny_bundle), "--json"])
    assert failed.exit_code == 65
    error = json.loads(failed.stdout.splitlines()[-1])["error"]
    assert error["code"] == "check_failed"
    assert "Erf: not in the list of operators that TensorRT 10.3 to 11 all accept" in error["message"]


@pytest.mark.parametrize(
    ("node", "constants", "said"),
    [
        (helper.make_node("MatMulNBits", ["x"], ["y"], domain="com.microsoft"), (), "not an operator of ONNX itself"),
        (helper.make_node("Det", ["x"], ["y"]), (), "Det: not in the list"),
        (
            helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], dilations=[2, 2]),
            (),
            "has dilations, expected none",
        ),
        (helper.make_node("MaxPool", ["x"], ["y", "where"], kernel_shape=[2, 2]), (), "gives indices"),
        (
            helper.make_node("LayerNormalization", ["x", "s"], ["y", "mean"], axis=-1),
            (("s", np.ones(8, np.float32)),),
            "gives mean too, expected its first output alone",
        ),
        (helper.make_node("ReduceMean", ["x", "axes"], ["y"]), (), "computes its axes, expected a constant"),
    ],
)
def test_operators_that_tensorrt_does_not_parse_are_named(tmp_path, node, constants, said):
    inputs = [X, ("axes", TensorProto.INT64, [1])]
    path = write_graph(tmp_path / "g.onnx", [node], inputs, [Y], constants, domains=("com.microsoft",))
    assert any(said in problem for problem in problems(path)), problems(path)


def quantised(tmp_path, zero_point):
    constants = (("scale", np.float32(0.1)), ("zero", zero_point))
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    return write_graph(tmp_path / "g.onnx", nodes, [X], [Y], constants)


def test_symmetric_int8_passes_and_other_zero_points_and_uint8_do_not(tmp_path):
    assert problems(quantised(tmp_path, np.int8(0))) == []
    assert "has a zero point other than zero" in problems(quantised(tmp_path, np.int8(3)))[0]
    assert "on uint8, expected int8" in problems(quantised(tmp_path, np.uint8(0)))[0]


def test_int8_outside_of_a_quantising_pair_is_named(tmp_path):
    """Rows of an int8 table, looked up and cast: ONNX Runtime runs it, TensorRT has no such type."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], axis=0),
        helper.make_node("Cast", ["rows"], ["y"], to=TensorProto.FLOAT),
    ]
    constants = (("table", np.ones((4, 2), np.int8)),)
    path = write_graph(tmp_path / "g.onnx", nodes, [("ids", TensorProto.INT64, ["n"])], [Y], constants)
    assert [problem.split(",")[0] for problem in problems(path)] == ["Gather '' on int8", "Cast '' on int8"]


def test_operators_of_newer_tensorrt_only_are_a_remark(tmp_path):
    """bf16 graphs: ONNX has convolutions in bf16 from opset 22 on."""
    from flamest.export.checks import _newer, _operators

    path = write_graph(tmp_path / "g.onnx", [helper.make_node("Gelu", ["x"], ["y"])], [X], [Y], opset=22)
    view = view_graph(path)
    assert list(_operators(view)) == []
    assert [said.split(":")[0] for said in _newer(view)] == ["opset 22", "Gelu"]
    path = write_graph(tmp_path / "h.onnx", [helper.make_node("Relu", ["x"], ["y"])], [X], [Y], opset=8)
    assert list(_operators(view_graph(path))) == ["opset 8, expected 9 to 24"]


def test_every_operator_of_the_list_is_one_of_onnx():
    import onnx

    for name in (*OPERATORS, *NEWER):
        assert onnx.defs.has(name), name


@pytest.fixture
def folder(tiny_bundle, tmp_path):
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


def failing(folder, **changes):
    """The checks that graph 'cnn' fails when its record in the manifest is another."""
    manifest = read_manifest(folder)
    graph = msgspec.structs.replace(manifest.graphs["cnn"], **changes)
    changed = msgspec.structs.replace(manifest, graphs={"cnn": graph})
    return {result.check: result.problems for result in check_graphs(folder, changed) if not result.ok}


def test_a_manifest_with_a_wrong_precision_or_dtype_histogram_is_found(folder):
    graph = read_manifest(folder).graphs["cnn"]
    assert set(failing(folder, precision="fp16")) == {"dtype histogram"}
    assert set(failing(folder, dtype_histogram={"int8": {"Conv": 23}})) == {"dtype histogram"}
    assert failing(folder, dtype_histogram=graph.dtype_histogram) == {}


def test_other_tensors_and_impossible_axes_are_found(folder):
    graph = read_manifest(folder).graphs["cnn"]
    (tensor,) = graph.inputs
    found = failing(folder, inputs=(msgspec.structs.replace(tensor, dtype="float16"),))
    assert "input frames is uint8[" in found["tensors and axes"][0]
    assert "axis 'batch' has no range" in failing(folder, axes={})["tensors and axes"]
    found = failing(folder, axes={"batch": AxisRange(4, 1, 16)})
    assert found == {"tensors and axes": ("axis 'batch' ranges from 4 over 1 to 16",)}


def test_a_graph_whose_shapes_contradict_each_other_fails_strict_inference(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    path = write_graph(tmp_path / "g.onnx", nodes, [X], [Y], (("w", np.ones((5, 2), np.float32)),))
    with pytest.raises(DataError, match="strict shape inference"):
        view_graph(path)


def test_tensorrt_results_are_remarks_on_int8_for_other_backends(folder, monkeypatch):
    from flamest.export.graphs import tensorrt_operators

    monkeypatch.delitem(tensorrt_operators.OPERATORS, "Conv")
    manifest = read_manifest(folder)
    int8 = msgspec.structs.replace(manifest.graphs["cnn"], precision="int8")
    for backend, remark in (("onnx", True), ("tensorrt", False)):
        changed = msgspec.structs.replace(manifest, graphs={"cnn": int8}, backend=backend)
        found = {result.check: result for result in check_graphs(folder, changed)}["TensorRT operators"]
        assert found.problems
        assert found.ok == remark


def test_export_with_check_leaves_no_bundle_when_a_check_fails(tmp_path, monkeypatch, silent):
    from flamest.export.bundle import ExportRequest, export_bundle
    from flamest.export.graphs import tensorrt_operators
    from flamest.export.networks.extractors import EXTRACTORS

    monkeypatch.delitem(tensorrt_operators.OPERATORS, "Relu")
    sources = {"slow": parse_source("slow", "random:tiny")}
    request = ExportRequest(EXTRACTORS["slow-uniform"], sources, tmp_path / "out" / "b", threads=1, check=True)
    with pytest.raises(DataError, match="Relu: not in the list"):
        export_bundle(request, silent)
    assert list((tmp_path / "out").iterdir()) == []
