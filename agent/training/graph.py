"""The head's forward pass and its whole training step, written as ONNX graphs.

A training step is one graph: forward, mean cross-entropy, backward, and Adam with L2 weight decay
(Kingma and Ba 2015, arXiv 1412.6980, as ``torch.optim.Adam`` computes it). Every size is symbolic
in the batch only; the same session that runs extraction runs it, so the silo needs no torch.

Names: a parameter ``0.weight`` enters as ``0.weight``, with its moments ``0.weight.m`` and
``0.weight.v``, and leaves as the same names with ``.next`` behind.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ...fedproto.head import HeadSpec
from ...fedproto.records import TrainSettings
from .fusion import Fused, fuse, fused_slopes, input_blocks, linear_slopes
from .writer import DType, Writer

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # torch.optim.Adam's defaults
MOMENTS = (".m", ".v")
NEXT = ".next"


def forward_graph(spec: HeadSpec, *, dtype: DType = "float32") -> bytes:
    """x[batch, inputs] and the parameters -> ``logits`` [batch, classes]. A serialised ONNX model."""
    write = Writer(dtype)
    write.op("Identity", _forward(write, spec).logits, name="logits")
    inputs = [write.value("x", ["batch", spec.inputs]), *_parameter_values(write, spec)]
    return write.finish("head_forward", inputs, [write.value("logits", ["batch", spec.outputs])])


def training_step_graph(
    spec: HeadSpec, *, proximal: bool = False, balanced: bool = False, dtype: DType = "float32"
) -> bytes:
    """One Adam step on one batch. A serialised ONNX model.

    Inputs: ``x`` [batch, inputs], ``y`` int64[batch], every parameter and its moments, and the scalars
    of ``adam_scalars``. With ``proximal`` also ``mu`` and every parameter's ``.anchor``: the gradient of
    (mu/2)·‖w − anchor‖² is added (FedProx, Li et al. 2020, arXiv 1812.06127). With ``balanced`` also
    ``class_weight`` [classes]: a row counts by its class, and the mean is over the batch's weights.
    Outputs: ``loss`` (mean cross-entropy of the batch before the step, nats) and everything ``.next``.

    The step is bound by memory, so it makes as few passes over the weights as ONNX's operators
    allow: weight decay is added by the gradient's product, and the moments are kept without the factors
    (1 - beta), which ``adam_scalars`` brings in at the end.
    """
    write = Writer(dtype)
    trace = _forward(write, spec)
    loss, gradient = _cross_entropy(write, trace.logits, spec.outputs, balanced=balanced)
    write.op("Identity", loss, name="loss")
    for name, slope in _backward(write, spec, trace, gradient).items():
        _adam(write, name, slope, proximal=proximal)

    suffixes = ("", *MOMENTS)
    inputs = [
        write.value("x", ["batch", spec.inputs]),
        write.value("y", ["batch"], integer=True),
        *(write.value(scalar, []) for scalar in adam_scalars(TrainSettings(), 1)),
        *(value for suffix in suffixes for value in _parameter_values(write, spec, suffix)),
    ]
    if balanced:
        inputs.append(write.value("class_weight", [spec.outputs]))
    if proximal:
        inputs += [write.value("mu", []), *_parameter_values(write, spec, ".anchor")]
    outputs = [write.value("loss", [])]
    outputs += [value for suffix in suffixes for value in _parameter_values(write, spec, suffix + NEXT)]
    return write.finish("head_training_step", inputs, outputs)


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


def _parameter_values(write: Writer, spec: HeadSpec, suffix: str = "") -> list[Any]:
    return [write.value(name + suffix, list(shape)) for name, shape in spec.shapes.items()]


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


def _backward(write: Writer, spec: HeadSpec, trace: _Trace, gradient: str) -> dict[str, str]:
    """Gradient of every parameter by name, weight decay included, from that of the logits."""
    slopes: dict[str, str] = {}
    zero = write.number(0.0)
    for layer in reversed(range(len(spec.widths) - 1)):
        below = trace.activations[layer]
        slopes |= linear_slopes(write, str(layer), gradient, below)
        if layer > 0:
            through = write.op("MatMul", gradient, f"{layer}.weight")
            gradient = write.op("Where", write.op("Greater", below, zero), through, zero)
    if trace.fused is not None:
        slopes |= fused_slopes(write, trace.fused, write.op("MatMul", gradient, "0.weight"))
    return slopes


def _adam(write: Writer, parameter: str, slope: str, *, proximal: bool) -> None:
    if proximal:
        pull = write.op("Mul", write.op("Sub", parameter, f"{parameter}.anchor"), "mu")
        slope = write.op("Add", slope, pull)
    first = _decayed(write, f"{parameter}.m", slope, BETA1)
    second = _decayed(write, f"{parameter}.v", write.op("Mul", slope, slope), BETA2)
    direction = write.op("Div", first, write.op("Add", write.op("Sqrt", second), "epsilon"))
    write.op("Sub", parameter, write.op("Mul", direction, "step_size"), name=parameter + NEXT)


def _decayed(write: Writer, moment: str, fresh: str, beta: float) -> str:
    return write.op("Add", write.op("Mul", moment, write.number(beta)), fresh, name=moment + NEXT)
