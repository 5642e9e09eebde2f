"""Operations of an ONNX graph at given sizes: its matmuls and convolutions, two operations for each multiply-add."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...runtime.bundle.value_types import drop_large_constants
from ..bench.inputs import axis_size

# By operator, the positions of the first operand and of a convolution's weight
_MATMULS = {"MatMul": 0, "Gemm": 0, "MatMulInteger": 0, "QLinearMatMul": 0}
_CONVOLUTIONS = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3}


def graph_gflop(path: Path, sizes: Mapping[str, int]) -> float | None:
    """10^9 operations of one run with these sizes of its axes; None where the shapes cannot be inferred."""
    import onnx

    counted = node_operations(onnx.load(str(path)), sizes)
    known = [operations for operations in counted.values() if operations is not None]
    return sum(known) / 1e9 if counted and len(known) == len(counted) else None


def node_operations(model: Any, sizes: Mapping[str, int]) -> dict[str, float | None]:
    """Operations of each matmul and convolution of ``model`` (an ``onnx.ModelProto``), by the name of its result.

    None for a node whose shapes cannot be inferred. The large constants of ``model`` become inputs.
    """
    import onnx

    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = axis_size(dim.dim_param, sizes)
    for value in (*model.graph.output, *model.graph.value_info):
        value.type.tensor_type.ClearField("shape")  # they are inferred again, with numbers
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    drop_large_constants(model)
    names = [node.output[0] for node in model.graph.node if node.op_type in (*_MATMULS, *_CONVOLUTIONS)]
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return dict.fromkeys(names)
    for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        dims = value.type.tensor_type.shape.dim
        if all(dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = tuple(dim.dim_value for dim in dims)
    makers = {node.output[0]: node for node in inferred.graph.node if node.output}
    return {name: _node_flop(makers[name], shapes) for name in names}


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
