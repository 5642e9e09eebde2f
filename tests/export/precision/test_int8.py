"""int8 as pairs around matmuls: changed operators, distance to fp32, and independent rows."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from flamest.base.errors import DataError
from flamest.export.precision.dtypes import read_dtype_histogram
from flamest.export.precision.int8 import ONNX_FORM, TENSORRT_FORM, quantise_static, quantise_weights, watched_channels
from flamest.export.precision.products import gemms_to_matmuls, int8_by_channel
from flamest.export.precision.ranges import observe
from flamest.runtime.backends.onnxruntime_cpu import open_session
from onnx import TensorProto, helper, numpy_helper

WIDTH = 64
RANDOM = np.random.default_rng(0)


def model(nodes, constants, inputs, outputs):
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(made, full_check=True)
    return made


def rows(name):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", WIDTH])


A, B = (RANDOM.normal(0, 0.1, (WIDTH, WIDTH)).astype(np.float32) for _ in range(2))
BIAS = RANDOM.normal(0, 0.1, WIDTH).astype(np.float32)


def layers():
    """Two dense layers, one of them as Gemm with a turned weight."""
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "b", "bias"], ["g"], transB=1),
    ]
    return model(nodes, {"a": A, "b": B, "bias": BIAS}, [rows("x")], [rows("g")])


STEM, INNER = (RANDOM.normal(0, 0.2, (8, channels, 3, 3)).astype(np.float32) for channels in (3, 8))


def convolutions():
    """A first convolution on pixels, then one inside a residual."""
    constants = {"stem": STEM, "inner": INNER, "bias": BIAS[:8]}
    nodes = [
        helper.make_node("Conv", ["pixels", "stem", "bias"], ["s"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["s"], ["r"]),
        helper.make_node("Conv", ["r", "inner", "bias"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["r", "c"], ["y"]),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, 12, 12])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8, 12, 12])
    return model(nodes, constants, [pixels], [result])


def dynamic():
    """Quantisation that must not be used: one activation scale for a whole batch."""
    quantised, scales = int8_by_channel(A, 1)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["q", "w", "zero"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["scale", "scales"], ["both"]),
        helper.make_node("Mul", ["f", "both"], ["g"]),
    ]
    return model(nodes, {"w": quantised, "scales": scales}, [rows("x")], [rows("g")])


def run(made, **feeds):
    (output,) = open_session(made.SerializeToString(), threads=1).run(feeds).values()
    return output


def cosine(a, b):
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


X = RANDOM.normal(size=(16, WIDTH)).astype(np.float32)


def quantised(made, feeds, form, *, kept=(), first=False):
    gemms_to_matmuls(made)
    seen = observe(made, watched_channels(made, form, first=first), feeds, symmetric=form.symmetric)
    return quantise_static(made, seen, form, kept, first=first)


def range_of(values, *, symmetric):
    return observe(layers(), {"x": None}, [{"x": values}], symmetric=symmetric)["x"].range


def weights_only():
    made = layers()
    gemms_to_matmuls(made)
    assert quantise_weights(made) == 2
    return made


def static(form=ONNX_FORM):
    made = layers()
    assert quantised(made, [{"x": X[:8]}], form) == 2
    return made


MADE = {"weights": weights_only, "static": static, "static for TensorRT": lambda: static(TENSORRT_FORM)}


@pytest.mark.parametrize("form", MADE)
def test_int8_is_valid_onnx_and_stays_near_fp32(form, tmp_path):
    made = MADE[form]()
    onnx.save(made, tmp_path / "g.onnx")
    onnx.checker.check_model(str(tmp_path / "g.onnx"), full_check=True)
    assert {node.domain for node in made.graph.node} == {""}
    assert "DynamicQuantizeLinear" not in {node.op_type for node in made.graph.node}
    assert cosine(run(made, x=X), run(layers(), x=X)) > 0.999
    kind = "float32 with int8 weights" if form == "weights" else "int8"
    assert read_dtype_histogram(tmp_path / "g.onnx") == {kind: {"MatMul": 2}}


@pytest.mark.parametrize("form", MADE)
def test_a_row_does_not_depend_on_its_neighbours(form):
    made = MADE[form]()
    loud = np.concatenate([X[:1], 50 * X[1:]])
    np.testing.assert_allclose(run(made, x=loud)[:1], run(made, x=X[:1]), rtol=0, atol=2e-6)


def test_dynamic_quantisation_would_let_a_neighbour_change_a_row():
    loud = np.concatenate([X[:1], 50 * X[1:]])
    assert np.abs(run(dynamic(), x=loud)[:1] - run(dynamic(), x=X[:1])).max() > 0.1


def test_all_convolutions_but_the_first_become_int8(tmp_path):
    pixels = RANDOM.normal(size=(4, 3, 12, 12)).astype(np.float32)
    for form in (ONNX_FORM, TENSORRT_FORM):
        made = convolutions()
        assert quantised(made, [{"pixels": pixels}], form) == 1
        onnx.save(made, tmp_path / "g.onnx")
        assert read_dtype_histogram(tmp_path / "g.onnx") == {"float32": {"Conv": 1}, "int8": {"Conv": 1}}
        assert cosine(run(made, pixels=pixels), run(convolutions(), pixels=pixels)) > 0.999


def test_the_first_convolution_becomes_int8_where_that_is_asked_for(tmp_path):
    pixels = RANDOM.normal(size=(4, 3, 12, 12)).astype(np.float32)
    made = convolutions()
    assert quantised(made, [{"pixels": pixels}], ONNX_FORM, first=True) == 2
    assert cosine(run(made, pixels=pixels), run(convolutions(), pixels=pixels)) > 0.999


@pytest.mark.parametrize("form", [ONNX_FORM, TENSORRT_FORM])
def test_a_kept_product_reads_the_values_before_the_pairs(form):
    made = layers()
    assert quantised(made, [{"x": X[:8]}], form, kept=("h",)) == 1
    (kept,) = [node for node in made.graph.node if node.output[0] == "h"]
    assert list(kept.input) == ["x", "a"]
    assert cosine(run(made, x=X), run(layers(), x=X)) > 0.999


def test_mean_errors_of_weights_go_into_the_biases():
    """Inputs with a mean: rounded weights shift every row in the same way."""
    shifted = 3 + X

    def distance(means):
        made = model(
            [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("Add", ["h", "bias"], ["g"])],
            {"a": A, "bias": BIAS},
            [rows("x")],
            [rows("g")],
        )
        exact = run(made, x=shifted)
        quantise_weights(made, means)
        return np.abs((run(made, x=shifted) - exact).mean(0)).max()

    assert distance({"x": shifted.mean(0)}) < 0.4 * distance({})


def test_tensorrts_form_is_symmetric_without_int32_biases():
    made = convolutions()
    quantised(made, [{"pixels": RANDOM.normal(size=(4, 3, 12, 12)).astype(np.float32)}], TENSORRT_FORM)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    assert {value.dtype.name for value in constants.values()} == {"float32", "int8"}
    zeros = [constants[node.input[2]] for node in made.graph.node if node.op_type == "QuantizeLinear"]
    assert zeros
    assert not any(zero.any() for zero in zeros)


def test_a_range_covers_the_bulk_and_clips_costly_outliers():
    values = RANDOM.normal(size=(1600, WIDTH)).astype(np.float32)
    values[0, 0] = 12.0
    one_sided = np.maximum(values, -0.17)  # as a GELU's
    found = range_of(one_sided, symmetric=False)
    assert -0.18 < found.low < 0
    assert 3 < found.high < 12
    two_sided = range_of(values, symmetric=False)
    assert two_sided.low == -two_sided.high
    assert 3 < two_sided.high < 11
    around_zero = range_of(one_sided, symmetric=True)
    assert around_zero.low == -around_zero.high


def test_a_large_activation_is_counted_in_all_its_channels():
    """Every second value would be every second channel: their outliers would be cut off unseen."""
    values = RANDOM.normal(size=(600_000 // WIDTH, WIDTH)).astype(np.float32)
    values[:, 1::2] *= 20
    found = range_of(values, symmetric=True)
    assert found.high > 40


def test_no_clips_and_values_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match="needs calibration clips"):
        observe(layers(), {"h": None}, [], symmetric=False)
    with pytest.raises(DataError, match="not finite"):
        observe(layers(), {"h": None}, [{"x": np.full((1, WIDTH), np.inf, np.float32)}], symmetric=False)
