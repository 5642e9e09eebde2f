"""The part of a head's graph before the perceptron: standardised blocks, and residual gated cross fusion.

The formulas are in ``fedproto/head.py`` (paper section 6.5, docs/paper.md); here they are ONNX nodes, with the nodes
of their gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...fedproto.head import HeadSpec
from .graph_builder import OnnxGraphBuilder

TINY = 1e-12  # added to a block's variance: a constant block becomes values of at most 1 (zeros, except for rounding)


@dataclass(frozen=True)
class _Gated:
    """Values of v' = v + gate * carried that its gradient needs."""

    own: str  # v [batch, common]
    other: str  # t
    both: str  # [v; t]
    gate: str  # sigmoid(W_g [v; t])
    carried: str  # W_t t
    out: str


@dataclass(frozen=True)
class Fused:
    """The fusion's intermediate values by name."""

    blocks: tuple[str, str]
    v: _Gated
    t: _Gated
    out: str  # [v'; t'], [batch, 2 * common]


@dataclass(frozen=True)
class LinearGradient:
    """The factors of a linear map's gradient: that of its weight is output_gradient^T @ layer_input."""

    output_gradient: str  # [batch, outputs]
    layer_input: str  # [batch, inputs]


def input_blocks(builder: OnnxGraphBuilder, spec: HeadSpec) -> list[str]:
    """Return the modalities of ``x``, standardised if the head asks for it; one when nothing depends on them."""
    if not spec.standardise and spec.kind == "mlp":
        return ["x"]
    widths = spec.blocks or (spec.inputs,)
    blocks, start = [], 0
    for width in widths:
        ends = [builder.constant(builder.np.array([end], "int64")) for end in (start, start + width, 1)]  # of axis 1
        block = builder.op("Slice", "x", *ends) if len(widths) > 1 else "x"
        blocks.append(_standardised(builder, block) if spec.standardise else block)
        start += width
    return blocks


def _standardised(builder: OnnxGraphBuilder, block: str) -> str:
    """(block - mean) / sqrt(variance + TINY), over each row's own values."""
    centred = builder.op("Sub", block, builder.op("ReduceMean", block, axes=[1]))
    variance = builder.op("ReduceMean", builder.op("Mul", centred, centred), axes=[1])
    return builder.op("Div", centred, builder.op("Sqrt", builder.op("Add", variance, builder.number(TINY))))


def fuse(builder: OnnxGraphBuilder, first: str, second: str) -> Fused:
    """Compute [v'; t'] from the two blocks."""
    v, t = linear(builder, "v", first), linear(builder, "t", second)
    gated_v, gated_t = _gated(builder, "v", v, t), _gated(builder, "t", t, v)
    return Fused((first, second), gated_v, gated_t, builder.op("Concat", gated_v.out, gated_t.out, axis=1))


def _gated(builder: OnnxGraphBuilder, name: str, own: str, other: str) -> _Gated:
    both = builder.op("Concat", own, other, axis=1)
    gate = builder.op("Sigmoid", linear(builder, f"{name}.gate", both))
    carried = linear(builder, f"{name}.carry", other)
    return _Gated(own, other, both, gate, carried, builder.op("Add", own, builder.op("Mul", gate, carried)))


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
    builder: OnnxGraphBuilder, name: str, gated: _Gated, gradient: str, gradients: dict[str, LinearGradient]
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


def linear(builder: OnnxGraphBuilder, name: str, x: str) -> str:
    """Compute x W^T + b."""
    return builder.op("Gemm", x, f"{name}.weight", f"{name}.bias", transB=1)
