"""An ONNX file as the checks see it: every node with the types that strict inference finds, no large weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...base.errors import DataError, MissingExtra
from ...runtime.bundle.value_types import SMALL_BYTES, drop_large_constants, dtype_name
from .tensorrt_operators import NodeView


@dataclass(frozen=True, eq=False)
class GraphView:
    nodes: tuple[NodeView, ...]
    opsets: Mapping[str, int]  # domain -> version
    inputs: Mapping[str, tuple[str, tuple[int | str, ...]]]  # name -> numpy dtype, sizes
    outputs: Mapping[str, tuple[str, tuple[int | str, ...]]]


def view_graph(path: Path) -> GraphView:
    """Read the file ``path``; raises DataError (``bad_graph``) when strict shape inference finds a contradiction."""
    try:
        import onnx
    except ImportError as error:
        raise MissingExtra("onnx", extra="agent") from error
    model = onnx.load(str(path))
    constants, zeros = _constants(model)
    opsets = {given.domain: given.version for given in model.opset_import}
    drop_large_constants(model)
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        first = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
        raise DataError(
            f"{path.name}: strict shape inference: {first}",
            fix="export the bundle again with this version of flamest-export",
            code="bad_graph",
        ) from error
    values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    types = {value.name: _dtype(value) for value in values}
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in values}
    types |= {tensor.name: dtype_name(tensor.data_type) for tensor in inferred.graph.initializer}
    given = frozenset(value.name for value in inferred.graph.input) - constants
    return GraphView(
        nodes=tuple(NodeView(node, types, ranks, constants, zeros, given) for node in inferred.graph.node),
        opsets=opsets,
        inputs={value.name: (_dtype(value), _sizes(value)) for value in inferred.graph.input if value.name in given},
        outputs={value.name: (_dtype(value), _sizes(value)) for value in inferred.graph.output},
    )


def _constants(model: Any) -> tuple[frozenset[str], frozenset[str]]:
    """Names of all constants, and of those that hold zeros alone."""
    import onnx

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            value = next((given.t for given in node.attribute if given.name == "value"), None)
            tensors[node.output[0]] = value
    small = {
        name: onnx.numpy_helper.to_array(tensor)
        for name, tensor in tensors.items()
        if tensor is not None and len(tensor.raw_data) <= SMALL_BYTES * 4
    }
    zeros = (name for name, array in small.items() if not np.any(array))
    return frozenset(tensors), frozenset(zeros)


def _dtype(value: Any) -> str:
    return dtype_name(value.type.tensor_type.elem_type)


def _sizes(value: Any) -> tuple[int | str, ...]:
    return tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)
