"""Rewrites of an exported graph into the forms that runtimes take and fuse; the arithmetic stays the same."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np


def cast_bytes_first(model: Any) -> None:
    """Let Cast alone read each uint8 input of ``model``, as TensorRT requires: its shape is asked of the cast value.

    Cast and Shape are all that the exporter lets read such an input. A reader of another kind would stay, and
    ``flamest-export check`` would report it (tensorrt_operators.py).
    """
    from onnx import TensorProto

    graph = model.graph
    for value in graph.input:
        if value.type.tensor_type.elem_type != TensorProto.UINT8:
            continue
        casts = [node for node in graph.node if node.op_type == "Cast" and node.input[0] == value.name]
        if not casts:
            continue
        first = type(casts[0]).FromString(casts[0].SerializeToString())
        graph.node.remove(casts[0])
        graph.node.insert(0, first)
        for node in graph.node[1:]:
            if node.op_type == "Shape" and node.input[0] == value.name:
                node.input[0] = first.output[0]


def order_gelus(model: Any) -> int:
    """Reorder each GELU of ``model`` (an ``onnx.ModelProto``) into the form that runtimes fuse; return how many.

    PyTorch's exporter writes x · (0.5 · (1 + erf(x / √2))). ONNX Runtime (its GeluFusion) and others fuse
    (x · (1 + erf(x / √2))) · 0.5 to one operator. Halving is exact, so the numbers are the same.
    """
    from onnx import numpy_helper

    graph, changed = model.graph, 0
    makers = {node.output[0]: node for node in graph.node}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    halves = {
        tensor.name
        for tensor in graph.initializer
        if not tensor.dims and np.asarray(numpy_helper.to_array(tensor), np.float64) == 0.5
    }
    for halved in list(graph.node):
        operands = set(halved.input)
        if halved.op_type != "Mul" or len(operands & halves) != 1 or len(operands) != 2:
            continue
        (half,) = operands & halves
        (summed,) = operands - halves
        last = readers.get(halved.output[0], [])
        if not _is_one_plus_erf(makers, summed) or [node.op_type for node in last] != ["Mul"]:
            continue
        x = next(name for name in last[0].input if name != halved.output[0])
        halved.input[:], last[0].input[:] = [x, summed], [halved.output[0], half]
        changed += 1
    return changed


def _is_one_plus_erf(makers: dict[str, Any], name: str) -> bool:
    """True where ``name`` is the sum of an Erf's result and another value."""
    node = makers.get(name)
    return (
        node is not None
        and node.op_type == "Add"
        and any(makers[operand].op_type == "Erf" for operand in node.input if operand in makers)
    )


def scale_queries(model: Any) -> int:
    """Scale the first operand of each attention's first product instead of its scores; return how many were changed.

    The libraries' networks compute softmax((q k) · s), TensorRT's fused kernels are for softmax((q · s) k). A scale
    that is a power of two, as that of 64 dimensions a head, gives the same numbers; another one differs by a rounding.
    """
    from onnx import helper, numpy_helper

    graph, changed = model.graph, 0
    makers = {output: node for node in graph.node for output in node.output}
    readers: dict[str, list[Any]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    scalars = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if int(np.prod(tensor.dims)) == 1
    }
    for node in list(graph.node):
        found = _scaled_scores(node, makers, readers, scalars)
        if found is None:
            continue
        product, constant = found
        values = scalars[constant]
        factor = f"{node.output[0]}_factor"
        exact = np.asarray(values, np.float64)
        scale = (1 / exact if node.op_type == "Div" else exact).astype(values.dtype).reshape(())
        graph.initializer.append(numpy_helper.from_array(np.asarray(scale), factor))
        query = f"{product.input[0]}_scaled_{changed}"
        scaling = helper.make_node("Mul", [product.input[0], factor], [query], name=f"{product.name}_scaling")
        product.input[0] = query
        product.output[0] = node.output[0]
        graph.node.insert(list(graph.node).index(product), scaling)
        graph.node.remove(node)
        changed += 1
    return changed


def _scaled_scores(node: Any, makers: Any, readers: Any, scalars: Any) -> tuple[Any, str] | None:
    """The product of queries and keys whose scores ``node`` scales before a softmax, and the scale's name."""
    if node.op_type not in ("Mul", "Div"):
        return None
    constants = [name for name in node.input if name in scalars]
    scores = [name for name in node.input if name not in scalars]
    if len(constants) != 1 or len(scores) != 1 or (node.op_type == "Div" and node.input[0] != scores[0]):
        return None
    product = makers.get(scores[0])
    if product is None or product.op_type != "MatMul" or len(readers[scores[0]]) != 1:
        return None
    following = node
    while following.op_type != "Softmax":
        after = readers[following.output[0]]
        if len(after) != 1 or after[0].op_type not in ("Add", "Cast", "Softmax"):
            return None
        following = after[0]
    return product, constants[0]
