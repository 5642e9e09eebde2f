"""The head's forward pass and its training step, written as ONNX graphs.

A training step is two graphs, run one after the other. The first goes forward and back down to the
gradients of every linear map's output; the second makes a weight's gradient and at once Adam's step with L2
weight decay (Kingma and Ba 2015, arXiv 1412.6980, as ``torch.optim.Adam`` computes it) from it, for any
rows of any weight. The same runtime that runs extraction runs them, so the silo needs no torch.

Two graphs, because the second is bound by memory: run on a few rows at a time, all that it touches stays
in a core's cache, and it may write over what it reads (docs/training.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ...fedproto.head import HeadSpec
from ...fedproto.records import TrainSettings
from .fusion import Fused, Slope, fuse, fused_slopes, input_blocks
from .writer import DType, Writer

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # torch.optim.Adam's defaults
MOMENTS = ("m", "v")
NEXT = ".next"


def forward_graph(spec: HeadSpec, *, dtype: DType = "float32") -> bytes:
    """x[batch, inputs] and the parameters -> ``logits`` [batch, classes]. A serialised ONNX model."""
    write = Writer(dtype)
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
    write = Writer(dtype)
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


def update_graph(*, proximal: bool = False, dtype: DType = "float32") -> bytes:
    """One Adam step of some rows of a weight. A serialised ONNX model.

    Inputs: ``slope`` [rows, batch] and ``below`` [batch, columns], whose product is the gradient; the rows'
    ``weight`` and moments ``m`` and ``v`` [rows, columns]; the scalars of ``adam_scalars``. With ``proximal``
    also ``mu`` and the rows' ``anchor``: the gradient of (mu/2)·‖w − anchor‖² is added (FedProx, Li et al.
    2020, arXiv 1812.06127). Outputs: ``weight.next``, ``m.next``, ``v.next``.

    An output may be bound onto its input's memory. Whoever reads ``weight``, ``m`` or ``v`` is either what the
    writer of its ``.next`` waits for (it is computed from the reader's result), or the writer itself, which
    reads and writes element by element; tests/agent/training/test_graph.py walks the nodes to hold this.
    """
    write = Writer(dtype)
    pull = write.op("Mul", "weight", "weight_decay")
    if proximal:
        pull = write.op("Add", pull, write.op("Mul", write.op("Sub", "weight", "anchor"), "mu"))
    gradient = write.op("Gemm", "slope", "below", pull)
    first = _decayed(write, "m", gradient, BETA1)
    second = _decayed(write, "v", write.op("Mul", gradient, gradient), BETA2)
    direction = write.op("Div", first, write.op("Add", write.op("Sqrt", second), "epsilon"))
    write.op("Sub", "weight", write.op("Mul", direction, "step_size"), name="weight" + NEXT)
    rows = [write.value(name, ["rows", "columns"]) for name in ("weight", *MOMENTS)]
    inputs = [write.value("slope", ["rows", "batch"]), write.value("below", ["batch", "columns"]), *rows]
    inputs += [write.value(scalar, []) for scalar in adam_scalars(TrainSettings(), 1)]
    if proximal:
        inputs += [write.value("mu", []), write.value("anchor", ["rows", "columns"])]
    outputs = [write.value(name + NEXT, ["rows", "columns"]) for name in ("weight", *MOMENTS)]
    return write.finish("adam_step", inputs, outputs)


def adam_scalars(settings: TrainSettings, time: int) -> dict[str, float]:
    """The step's scalar inputs at step ``time`` (from 1).

    With M = m / (1 - beta1) and V = v / (1 - beta2), Adam's update
    learning_rate / (1 - beta1**t) · m / (sqrt(v / (1 - beta2**t)) + EPSILON)
    is ``step_size`` · M / (sqrt(V) + ``epsilon``).
    """
    scale = math.sqrt((1.0 - BETA2**time) / (1.0 - BETA2))
    return {
        "step_size": settings.learning_rate * (1.0 - BETA1) / (1.0 - BETA1**time) * scale,
        "epsilon": EPSILON * scale,
        "weight_decay": settings.weight_decay,
    }


def _parameter_values(write: Writer, spec: HeadSpec) -> list[Any]:
    return [write.value(name, list(shape)) for name, shape in spec.shapes.items()]


@dataclass(frozen=True)
class _Trace:
    """What the forward pass leaves for the backward one."""

    activations: list[str]  # what enters each layer of the perceptron, then the logits
    fused: Fused | None  # rgcf's part, before them

    @property
    def logits(self) -> str:
        return self.activations[-1]


def _forward(write: Writer, spec: HeadSpec) -> _Trace:
    blocks = input_blocks(write, spec)
    fused = fuse(write, *blocks) if spec.kind == "rgcf" else None
    activations = [fused.out if fused else blocks[0] if len(blocks) == 1 else write.op("Concat", *blocks, axis=1)]
    last = len(spec.widths) - 2
    for layer in range(last + 1):
        sums = write.op("Gemm", activations[-1], f"{layer}.weight", f"{layer}.bias", transB=1)
        activations.append(sums if layer == last else write.op("Relu", sums))
    return _Trace(activations, fused)


def _cross_entropy(write: Writer, logits: str, classes: int, *, balanced: bool) -> tuple[str, str]:
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


def _backward(write: Writer, spec: HeadSpec, trace: _Trace, gradient: str) -> dict[str, Slope]:
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


def _decayed(write: Writer, moment: str, fresh: str, beta: float) -> str:
    """beta * moment + fresh: a moment is kept without the factor (1 - beta), which saves a pass over memory."""
    return write.op("Add", write.op("Mul", moment, write.number(beta)), fresh, name=moment + NEXT)
