"""The head's forward pass, and the products of its training step, written as ONNX graphs.

A training step runs two graphs and Adam (``adam``). The first goes forward and back down to the gradients of every
linear map's output; the second makes the gradient of any rows of any weight from them. The same runtime that runs
extraction runs them, so the silo needs no torch.

Two graphs, because Adam is bound by memory: on a few rows at a time, all that it touches stays in a core's
cache (docs/training.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...fedproto.head import HeadSpec
from .fusion import Fused, Slope, fuse, fused_slopes, input_blocks
from .graph_builder import DType, OnnxGraphBuilder


def forward_graph(spec: HeadSpec, *, dtype: DType = "float32") -> bytes:
    """x[batch, inputs] and the parameters -> ``logits`` [batch, classes]. A serialised ONNX model."""
    write = OnnxGraphBuilder(dtype)
    write.op("Identity", _forward(write, spec).logits, name="logits")
    inputs = [write.value("x", ["batch", spec.inputs]), *_parameter_values(write, spec)]
    return write.finish("head_forward", inputs, [write.value("logits", ["batch", spec.outputs])])


def linear_maps(spec: HeadSpec) -> dict[str, tuple[int, ...]]:
    """The head's linear maps in the order of its tensors: name -> (outputs, inputs)."""
    return {name.removesuffix(".weight"): shape for name, shape in spec.shapes.items() if name.endswith(".weight")}


@dataclass(frozen=True)
class GradientGraph:
    """A serialised ONNX model, and where it leaves what enters each linear map."""

    model: bytes
    below: dict[str, str]  # linear map -> "x", or the output that holds it [batch, inputs]


def gradient_graph(spec: HeadSpec, *, balanced: bool = False, dtype: DType = "float32") -> GradientGraph:
    """Forward, loss and backward of one batch, down to the gradients of the linear maps' outputs.

    Inputs: ``x`` [batch, inputs], ``y`` int64[batch], every parameter. With ``balanced`` also
    ``class_weight`` [classes]: a row counts by its class, and the mean is over the batch's weights.
    Outputs: ``loss`` (mean cross-entropy of the batch, nats); ``slopes`` [all outputs, batch], the gradients
    of the linear maps' outputs, transposed and one below the other in ``linear_maps``' order; and what
    ``below`` names.
    """
    write = OnnxGraphBuilder(dtype)
    trace = _forward(write, spec)
    loss, gradient = _cross_entropy(write, trace.logits, spec.outputs, balanced=balanced)
    write.op("Identity", loss, name="loss")
    slopes, maps = _backward(write, spec, trace, gradient), linear_maps(spec)
    write.op("Concat", *(write.op("Transpose", slopes[name].gradient) for name in maps), name="slopes", axis=0)
    below = {name: "x" if slopes[name].below == "x" else f"{name}.below" for name in maps}
    outputs = [write.value("loss", []), write.value("slopes", [sum(shape[0] for shape in maps.values()), "batch"])]
    for name, output in below.items():
        if output != "x":
            write.op("Identity", slopes[name].below, name=output)
            outputs.append(write.value(output, ["batch", maps[name][1]]))
    inputs = [write.value("x", ["batch", spec.inputs]), write.value("y", ["batch"], integer=True)]
    inputs += _parameter_values(write, spec)
    if balanced:
        inputs.append(write.value("class_weight", [spec.outputs]))
    return GradientGraph(write.finish("head_gradients", inputs, outputs), below)


def product_graph(*, dtype: DType = "float32") -> bytes:
    """``slope`` [rows, batch] · ``below`` [batch, columns] -> ``gradient`` [rows, columns]. A serialised ONNX model.

    The gradient of some rows of a weight, from the gradients of their outputs and what entered the linear map.
    """
    write = OnnxGraphBuilder(dtype)
    write.op("MatMul", "slope", "below", name="gradient")
    inputs = [write.value("slope", ["rows", "batch"]), write.value("below", ["batch", "columns"])]
    return write.finish("weight_gradient", inputs, [write.value("gradient", ["rows", "columns"])])


def _parameter_values(write: OnnxGraphBuilder, spec: HeadSpec) -> list[Any]:
    return [write.value(name, list(shape)) for name, shape in spec.shapes.items()]


@dataclass(frozen=True)
class _Trace:
    """What the forward pass leaves for the backward one."""

    activations: list[str]  # what enters each layer of the perceptron, then the logits
    fused: Fused | None  # rgcf's part, before them

    @property
    def logits(self) -> str:
        return self.activations[-1]


def _forward(write: OnnxGraphBuilder, spec: HeadSpec) -> _Trace:
    blocks = input_blocks(write, spec)
    fused = fuse(write, *blocks) if spec.kind == "rgcf" else None
    activations = [fused.out if fused else blocks[0] if len(blocks) == 1 else write.op("Concat", *blocks, axis=1)]
    last = len(spec.widths) - 2
    for layer in range(last + 1):
        sums = write.op("Gemm", activations[-1], f"{layer}.weight", f"{layer}.bias", transB=1)
        activations.append(sums if layer == last else write.op("Relu", sums))
    return _Trace(activations, fused)


def _cross_entropy(write: OnnxGraphBuilder, logits: str, classes: int, *, balanced: bool) -> tuple[str, str]:
    """Mean cross-entropy over the batch, and its gradient with respect to the logits."""
    log_probability = write.op("LogSoftmax", logits, axis=-1)
    column = write.op("Unsqueeze", "y", write.constant(write.np.array([1], "int64")))
    is_class = write.op("Equal", column, write.constant(write.np.arange(classes, dtype="int64")))
    one_hot = write.cast(is_class)
    first = write.constant(write.np.array([0], "int64"))
    excess = write.op("Sub", write.op("Exp", log_probability), one_hot)
    if balanced:
        weights = write.op("Gather", "class_weight", column)  # [batch, 1]
        whole = write.op("ReduceSum", weights, keepdims=0)
        one_hot, excess = write.op("Mul", one_hot, weights), write.op("Mul", excess, weights)
    else:
        whole = write.cast(write.op("Squeeze", write.op("Shape", "y"), first))
    picked = write.op("ReduceSum", write.op("Mul", log_probability, one_hot), keepdims=0)
    return write.op("Neg", write.op("Div", picked, whole)), write.op("Div", excess, whole)


def _backward(write: OnnxGraphBuilder, spec: HeadSpec, trace: _Trace, gradient: str) -> dict[str, Slope]:
    """Every linear map's slope by name, from the gradient of the logits."""
    slopes: dict[str, Slope] = {}
    zero = write.number(0.0)
    for layer in reversed(range(len(spec.widths) - 1)):
        below = trace.activations[layer]
        slopes[str(layer)] = Slope(gradient, below)
        if layer > 0:
            through = write.op("MatMul", gradient, f"{layer}.weight")
            gradient = write.op("Where", write.op("Greater", below, zero), through, zero)
    if trace.fused is not None:
        slopes |= fused_slopes(write, trace.fused, write.op("MatMul", gradient, "0.weight"))
    return slopes
