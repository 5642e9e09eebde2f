"""The head's forward pass and its training step as ONNX graphs.

A training step runs two graphs, then Adam (``adam``). The first graph goes forward and then back to the gradients of
every linear map's output; the second computes the gradient of some rows of a weight from them. They run in the same
runtime as extraction, so the silo needs no torch.

There are two graphs because Adam is limited by memory bandwidth: on a few rows at a time, all that it reads and writes
stays in a core's cache (docs/explanation/training.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...fedproto.head import HeadSpec
from ...fedproto.head_graph import HeadTrace, head_forward
from ...fedproto.onnx_builder import DType, OnnxGraphBuilder
from .fusion import LinearGradient, fused_gradients


def forward_graph(spec: HeadSpec, *, dtype: DType = "float32") -> bytes:
    """Serialised ONNX model from ``x`` [batch, inputs] and the parameters to ``logits`` [batch, classes]."""
    builder = OnnxGraphBuilder(dtype)
    builder.op("Identity", head_forward(builder, spec).logits, name="logits")
    inputs = [builder.value("x", ["batch", spec.inputs]), *_parameter_values(builder, spec)]
    return builder.finish("head_forward", inputs, [builder.value("logits", ["batch", spec.outputs])])


def linear_maps(spec: HeadSpec) -> dict[str, tuple[int, ...]]:
    """Return the head's linear maps in the order of its tensors: name -> (outputs, inputs)."""
    return {name.removesuffix(".weight"): shape for name, shape in spec.shapes.items() if name.endswith(".weight")}


@dataclass(frozen=True)
class GradientGraph:
    """A serialised ONNX model, and the names of its outputs that hold the linear maps' inputs."""

    model: bytes
    layer_inputs: dict[str, str]  # linear map -> "x", or the output that holds it [batch, inputs]


def gradient_graph(spec: HeadSpec, *, balanced: bool = False, dtype: DType = "float32") -> GradientGraph:
    """Build forward pass, loss and backward pass of one batch, to the gradients of the linear maps' outputs.

    Inputs: ``x`` [batch, inputs], ``y`` int64[batch], every parameter. With ``balanced`` also
    ``class_weight`` [classes]: a row is weighted by its class, and the mean is over the batch's weights.
    Outputs: ``loss`` (mean cross-entropy of the batch, nats); ``output_gradients`` [all outputs, batch], the gradients
    of the linear maps' outputs, transposed and stacked in ``linear_maps``' order; and the
    outputs that ``layer_inputs`` names.
    """
    builder = OnnxGraphBuilder(dtype)
    trace = head_forward(builder, spec)
    loss, gradient = _cross_entropy(builder, trace.logits, spec.outputs, balanced=balanced)
    builder.op("Identity", loss, name="loss")
    gradients, maps = _backward(builder, spec, trace, gradient), linear_maps(spec)
    transposed = [builder.op("Transpose", gradients[name].output_gradient) for name in maps]
    builder.op("Concat", *transposed, name="output_gradients", axis=0)
    layer_inputs = {name: "x" if gradients[name].layer_input == "x" else f"{name}.layer_inputs" for name in maps}
    stacked = sum(shape[0] for shape in maps.values())
    outputs = [builder.value("loss", []), builder.value("output_gradients", [stacked, "batch"])]
    for name, output in layer_inputs.items():
        if output != "x":
            builder.op("Identity", gradients[name].layer_input, name=output)
            outputs.append(builder.value(output, ["batch", maps[name][1]]))
    inputs = [builder.value("x", ["batch", spec.inputs]), builder.value("y", ["batch"], integer=True)]
    inputs += _parameter_values(builder, spec)
    if balanced:
        inputs.append(builder.value("class_weight", [spec.outputs]))
    return GradientGraph(builder.finish("head_gradients", inputs, outputs), layer_inputs)


def weight_gradient_graph(*, dtype: DType = "float32") -> bytes:
    """Serialised ONNX model of the gradient of some rows of a weight.

    ``output_gradients`` [rows, batch] · ``layer_inputs`` [batch, columns] -> ``gradient`` [rows, columns].
    """
    builder = OnnxGraphBuilder(dtype)
    builder.op("MatMul", "output_gradients", "layer_inputs", name="gradient")
    inputs = [builder.value("output_gradients", ["rows", "batch"]), builder.value("layer_inputs", ["batch", "columns"])]
    return builder.finish("weight_gradient", inputs, [builder.value("gradient", ["rows", "columns"])])


def _parameter_values(builder: OnnxGraphBuilder, spec: HeadSpec) -> list[Any]:
    return [builder.value(name, list(shape)) for name, shape in spec.shapes.items()]


def _cross_entropy(builder: OnnxGraphBuilder, logits: str, classes: int, *, balanced: bool) -> tuple[str, str]:
    """Mean cross-entropy over the batch, and its gradient with respect to the logits."""
    log_probability = builder.op("LogSoftmax", logits, axis=-1)
    column = builder.op("Unsqueeze", "y", builder.constant(builder.np.array([1], "int64")))
    is_class = builder.op("Equal", column, builder.constant(builder.np.arange(classes, dtype="int64")))
    one_hot = builder.cast(is_class)
    first = builder.constant(builder.np.array([0], "int64"))
    excess = builder.op("Sub", builder.op("Exp", log_probability), one_hot)
    if balanced:
        weights = builder.op("Gather", "class_weight", column)  # [batch, 1]
        whole = builder.op("ReduceSum", weights, keepdims=0)
        one_hot, excess = builder.op("Mul", one_hot, weights), builder.op("Mul", excess, weights)
    else:
        whole = builder.cast(builder.op("Squeeze", builder.op("Shape", "y"), first))
    picked = builder.op("ReduceSum", builder.op("Mul", log_probability, one_hot), keepdims=0)
    return builder.op("Neg", builder.op("Div", picked, whole)), builder.op("Div", excess, whole)


def _backward(builder: OnnxGraphBuilder, spec: HeadSpec, trace: HeadTrace, gradient: str) -> dict[str, LinearGradient]:
    """Return every linear map's gradient by name, from the gradient of the logits."""
    gradients: dict[str, LinearGradient] = {}
    zero = builder.number(0.0)
    for layer in reversed(range(len(spec.widths) - 1)):
        layer_input = trace.activations[layer]
        gradients[str(layer)] = LinearGradient(gradient, layer_input)
        if layer > 0:
            through = builder.op("MatMul", gradient, f"{layer}.weight")
            gradient = builder.op("Where", builder.op("Greater", layer_input, zero), through, zero)
    if trace.fused is not None:
        gradients |= fused_gradients(builder, trace.fused, builder.op("MatMul", gradient, "0.weight"))
    return gradients
