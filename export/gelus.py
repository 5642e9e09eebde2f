"""GELUs in the order of operators that runtimes know.

PyTorch's exporter writes x · (0.5 · (1 + erf(x / √2))). ONNX Runtime (its GeluFusion) and others fuse
(x · (1 + erf(x / √2))) · 0.5 to one operator. Halving is exact, so the numbers are the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def order_gelus(model: Any) -> int:
    """Change ``model`` (an ``onnx.ModelProto``); how many GELUs were put in order."""
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
    """Whether ``name`` is the sum of an Erf's result and something."""
    node = makers.get(name)
    return (
        node is not None
        and node.op_type == "Add"
        and any(makers[operand].op_type == "Erf" for operand in node.input if operand in makers)
    )
