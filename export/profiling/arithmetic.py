"""Operations of an ONNX graph at given sizes: its matmuls and convolutions, two operations for each multiply-add."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..bench.inputs import axis_size
from ..graphs.views import drop_large_constants

# By operator, the positions of the first operand and of a convolution's weight
_MATMULS = {"MatMul": 0, "Gemm": 0, "MatMulInteger": 0, "QLinearMatMul": 0}
_CONVOLUTIONS = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3}


def graph_gflop(path: Path, sizes: Mapping[str, int]) -> float | None:
    """10^9 operations of one run with these sizes of its axes; None where the shapes cannot be inferred."""
    import onnx

    model = onnx.load(str(path))
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = axis_size(dim.dim_param, sizes)
    for value in (*model.graph.output, *model.graph.value_info):
        value.type.tensor_type.ClearField("shape")  # they are inferred again, with numbers
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    drop_large_constants(model)
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return None
    for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        dims = value.type.tensor_type.shape.dim
        if all(dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = tuple(dim.dim_value for dim in dims)
    counted = [_node_flop(node, shapes) for node in inferred.graph.node]
    return None if None in counted else sum(filter(None, counted)) / 1e9


def _node_flop(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> float | None:
    """Operations of a node; 0 where it is neither matmul nor convolution, None where its shapes are not known."""
    kind = node.op_type
    if kind not in _MATMULS and kind not in _CONVOLUTIONS:
        return 0.0
    written = shapes.get(node.output[0])
    if kind in _MATMULS:
        first = shapes.get(node.input[0])
        if not written or not first:
            return None
        turned = any(given.name == "transA" and given.i for given in node.attribute)
        return 2.0 * math.prod(written) * first[0 if turned else -1]
    weight = shapes.get(node.input[_CONVOLUTIONS[kind]])
    return 2.0 * math.prod(written) * math.prod(weight[1:]) if written and weight else None
