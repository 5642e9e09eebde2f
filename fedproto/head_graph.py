"""The head's forward pass as ONNX nodes: standardised blocks, residual gated cross fusion, perceptron.

The formulas are in ``head.py`` (paper section 6.5, docs/paper.md). The silo trains on these nodes
(``agent/training/graph.py`` adds their gradients), and ``head_onnx.py`` writes them into files for serving.
"""

from __future__ import annotations

from dataclasses import dataclass

from .head import HeadSpec
from .onnx_builder import OnnxGraphBuilder

TINY = 1e-12  # added to a block's variance: a constant block becomes values of at most 1 (zeros, except for rounding)


@dataclass(frozen=True)
class Gated:
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
    v: Gated
    t: Gated
    out: str  # [v'; t'], [batch, 2 * common]


@dataclass(frozen=True)
class HeadTrace:
    """Intermediate values of the forward pass; a backward pass needs them."""

    activations: list[str]  # inputs of each layer of the perceptron, then the logits
    fused: Fused | None  # rgcf's part, before them

    @property
    def logits(self) -> str:
        return self.activations[-1]


def head_forward(builder: OnnxGraphBuilder, spec: HeadSpec) -> HeadTrace:
    """Add the forward pass from ``x`` [batch, inputs] and the parameters, which the graph has under their names."""
    blocks = input_blocks(builder, spec)
    fused = fuse(builder, *blocks) if spec.kind == "rgcf" else None
    activations = [fused.out if fused else blocks[0] if len(blocks) == 1 else builder.op("Concat", *blocks, axis=1)]
    last = len(spec.widths) - 2
    for layer in range(last + 1):
        sums = builder.op("Gemm", activations[-1], f"{layer}.weight", f"{layer}.bias", transB=1)
        activations.append(sums if layer == last else builder.op("Relu", sums))
    return HeadTrace(activations, fused)


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
    gated_v, gated_t = _gate(builder, "v", v, t), _gate(builder, "t", t, v)
    return Fused((first, second), gated_v, gated_t, builder.op("Concat", gated_v.out, gated_t.out, axis=1))


def _gate(builder: OnnxGraphBuilder, name: str, own: str, other: str) -> Gated:
    both = builder.op("Concat", own, other, axis=1)
    gate = builder.op("Sigmoid", linear(builder, f"{name}.gate", both))
    carried = linear(builder, f"{name}.carry", other)
    return Gated(own, other, both, gate, carried, builder.op("Add", own, builder.op("Mul", gate, carried)))


def linear(builder: OnnxGraphBuilder, name: str, x: str) -> str:
    """Compute x W^T + b."""
    return builder.op("Gemm", x, f"{name}.weight", f"{name}.bias", transB=1)
