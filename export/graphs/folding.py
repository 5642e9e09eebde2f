"""Batch norms folded into the convolutions before them: the same numbers with half the operators.

GELUs in the order of operators that runtimes know.

PyTorch's exporter writes x · (0.5 · (1 + erf(x / √2))). ONNX Runtime (its GeluFusion) and others fuse
(x · (1 + erf(x / √2))) · 0.5 to one operator. Halving is exact, so the numbers are the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import nn


def fold_norms(module: nn.Module) -> nn.Module:
    """Change ``module`` (in evaluation mode) so that each batch norm that directly follows a convolution is gone.

    A norm follows the convolution registered just before it in the same parent: so it is in
    PyTorchVideo's blocks and torchvision's, and parity with PyTorch proves it for each export.
    """
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    convolutions, norms = (nn.Conv2d, nn.Conv3d), (nn.BatchNorm2d, nn.BatchNorm3d)
    for parent in list(module.modules()):
        previous: tuple[str, Any] | None = None
        for name, child in list(parent.named_children()):
            if previous is not None and isinstance(child, norms):
                fused: Any = fuse_conv_bn_eval(previous[1], child)
                setattr(parent, previous[0], fused)
                setattr(parent, name, nn.Identity())
            previous = (name, child) if isinstance(child, convolutions) else None
    return module


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
