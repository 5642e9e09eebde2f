"""What stands before the perceptron in a head's graph: standardised blocks, and residual gated cross fusion.

The formulas are ``fedproto/head.py``'s (paper section 6.5, our reading); here are their nodes and the nodes of
their gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...fedproto.head import HeadSpec
from .graph_builder import OnnxGraphBuilder

TINY = 1e-12  # added to a block's variance: a constant block becomes numbers of at most 1 (zeros, but for rounding)


@dataclass(frozen=True)
class _Gated:
    """v' = v + gate * carried, and what its gradient needs."""

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
class Slope:
    """What a linear map's gradient is made of: that of its weight is gradient^T @ below."""

    gradient: str  # of its output, [batch, outputs]
    below: str  # what enters it, [batch, inputs]


def input_blocks(write: OnnxGraphBuilder, spec: HeadSpec) -> list[str]:
    """The modalities of ``x``, standardised if the head asks for it; one when nothing depends on them."""
    if not spec.standardise and spec.kind == "mlp":
        return ["x"]
    widths = spec.blocks or (spec.inputs,)
    blocks, start = [], 0
    for width in widths:
        ends = [write.constant(write.np.array([end], "int64")) for end in (start, start + width, 1)]  # of axis 1
        block = write.op("Slice", "x", *ends) if len(widths) > 1 else "x"
        blocks.append(_standardised(write, block) if spec.standardise else block)
        start += width
    return blocks


def _standardised(write: OnnxGraphBuilder, block: str) -> str:
    """(block - mean) / sqrt(variance + TINY), over each row's own numbers."""
    centred = write.op("Sub", block, write.op("ReduceMean", block, axes=[1]))
    variance = write.op("ReduceMean", write.op("Mul", centred, centred), axes=[1])
    return write.op("Div", centred, write.op("Sqrt", write.op("Add", variance, write.number(TINY))))


def fuse(write: OnnxGraphBuilder, first: str, second: str) -> Fused:
    """[v'; t'] from the two blocks."""
    v, t = linear(write, "v", first), linear(write, "t", second)
    gated_v, gated_t = _gated(write, "v", v, t), _gated(write, "t", t, v)
    return Fused((first, second), gated_v, gated_t, write.op("Concat", gated_v.out, gated_t.out, axis=1))


def _gated(write: OnnxGraphBuilder, name: str, own: str, other: str) -> _Gated:
    both = write.op("Concat", own, other, axis=1)
    gate = write.op("Sigmoid", linear(write, f"{name}.gate", both))
    carried = linear(write, f"{name}.carry", other)
    return _Gated(own, other, both, gate, carried, write.op("Add", own, write.op("Mul", gate, carried)))


def fused_slopes(write: OnnxGraphBuilder, fused: Fused, gradient: str) -> dict[str, Slope]:
    """Slopes of the fusion's linear maps from the gradient of [v'; t']."""
    of_v, of_t = write.split(gradient)
    slopes: dict[str, Slope] = {}
    v_own, v_other = _gated_slopes(write, "v", fused.v, of_v, slopes)
    t_own, t_other = _gated_slopes(write, "t", fused.t, of_t, slopes)
    slopes["v"] = Slope(write.op("Add", v_own, t_other), fused.blocks[0])
    slopes["t"] = Slope(write.op("Add", t_own, v_other), fused.blocks[1])
    return slopes


def _gated_slopes(
    write: OnnxGraphBuilder, name: str, gated: _Gated, gradient: str, slopes: dict[str, Slope]
) -> tuple[str, str]:
    """Adds the gate's and the carry's slopes to ``slopes``; gives the gradients of own and of other."""
    of_carried = write.op("Mul", gradient, gated.gate)
    bend = write.op("Mul", gated.gate, write.op("Sub", write.number(1.0), gated.gate))
    of_gate = write.op("Mul", write.op("Mul", gradient, gated.carried), bend)
    slopes[f"{name}.gate"] = Slope(of_gate, gated.both)
    slopes[f"{name}.carry"] = Slope(of_carried, gated.other)
    through_own, through_other = write.split(write.op("MatMul", of_gate, f"{name}.gate.weight"))
    carried = write.op("MatMul", of_carried, f"{name}.carry.weight")
    return write.op("Add", gradient, through_own), write.op("Add", through_other, carried)


def linear(write: OnnxGraphBuilder, name: str, x: str) -> str:
    """x W^T + b."""
    return write.op("Gemm", x, f"{name}.weight", f"{name}.bias", transB=1)
