"""Gradients of residual gated cross fusion, the part of an rgcf head before the perceptron, as ONNX nodes.

Its forward pass is in ``fedproto/head_graph.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...fedproto.head_graph import Fused, Gated
from ...fedproto.onnx_builder import OnnxGraphBuilder


@dataclass(frozen=True)
class LinearGradient:
    """The factors of a linear map's gradient: that of its weight is output_gradient^T @ layer_input."""

    output_gradient: str  # [batch, outputs]
    layer_input: str  # [batch, inputs]


def fused_gradients(builder: OnnxGraphBuilder, fused: Fused, gradient: str) -> dict[str, LinearGradient]:
    """Return the gradients of the fusion's linear maps from the gradient of [v'; t']."""
    of_v, of_t = builder.split(gradient)
    gradients: dict[str, LinearGradient] = {}
    v_own, v_other = _gated_gradients(builder, "v", fused.v, of_v, gradients)
    t_own, t_other = _gated_gradients(builder, "t", fused.t, of_t, gradients)
    gradients["v"] = LinearGradient(builder.op("Add", v_own, t_other), fused.blocks[0])
    gradients["t"] = LinearGradient(builder.op("Add", t_own, v_other), fused.blocks[1])
    return gradients


def _gated_gradients(
    builder: OnnxGraphBuilder, name: str, gated: Gated, gradient: str, gradients: dict[str, LinearGradient]
) -> tuple[str, str]:
    """Add the gate's and the carry's gradients to ``gradients``; returns the gradients of own and of other."""
    of_carried = builder.op("Mul", gradient, gated.gate)
    slope = builder.op("Mul", gated.gate, builder.op("Sub", builder.number(1.0), gated.gate))
    of_gate = builder.op("Mul", builder.op("Mul", gradient, gated.carried), slope)
    gradients[f"{name}.gate"] = LinearGradient(of_gate, gated.both)
    gradients[f"{name}.carry"] = LinearGradient(of_carried, gated.other)
    through_own, through_other = builder.split(builder.op("MatMul", of_gate, f"{name}.gate.weight"))
    carried = builder.op("MatMul", of_carried, f"{name}.carry.weight")
    return builder.op("Add", gradient, through_own), builder.op("Add", through_other, carried)
