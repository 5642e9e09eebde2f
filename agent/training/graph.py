"""The head's forward pass and its whole training step, written as ONNX graphs.

A training step is one graph: forward, mean cross-entropy, backward, and Adam with L2 weight decay
(Kingma and Ba 2015, arXiv 1412.6980, as ``torch.optim.Adam`` computes it). Every size is symbolic
in the batch only; the same session that runs extraction runs it, so the silo needs no torch.

Names: a parameter ``0.weight`` enters as ``0.weight``, with its moments ``0.weight.m`` and
``0.weight.v``, and leaves as the same names with ``.next`` behind.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from ...base.errors import MissingExtra
from ...fedproto.head import HeadSpec
from ...fedproto.records import TrainSettings

OPSET = 17
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # torch.optim.Adam's defaults
MOMENTS = (".m", ".v")
NEXT = ".next"
DType = Literal["float32", "float64"]


class _Writer:
    """Collects nodes; each method adds one and gives the name of what it makes."""

    def __init__(self, dtype: DType) -> None:
        try:
            import onnx
            from onnx import helper, numpy_helper
        except ImportError as error:
            raise MissingExtra("onnx", extra="agent") from error
        import numpy as np

        self.helper = helper
        self.to_tensor = numpy_helper.from_array
        self.np = np
        self.dtype = np.dtype(dtype)
        self.element = helper.np_dtype_to_tensor_dtype(self.dtype)
        self.integer = onnx.TensorProto.INT64
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def op(self, kind: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        name = name or f"{kind}_{len(self.nodes)}"
        self.nodes.append(self.helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def cast(self, value: str) -> str:
        return self.op("Cast", value, to=self.element)

    def number(self, value: float) -> str:
        return self.constant(self.np.asarray(value, self.dtype))

    def constant(self, value: Any) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(self.to_tensor(self.np.asarray(value), name))
        return name

    def value(self, name: str, shape: list[int | str], *, integer: bool = False) -> Any:
        return self.helper.make_tensor_value_info(name, self.integer if integer else self.element, shape)

    def finish(self, name: str, inputs: list[Any], outputs: list[Any]) -> bytes:
        graph = self.helper.make_graph(self.nodes, name, inputs, outputs, self.constants)
        opset = self.helper.make_opsetid("", OPSET)
        model = self.helper.make_model(graph, opset_imports=[opset], ir_version=9, producer_name="flamest")
        data: bytes = model.SerializeToString()
        return data


def forward_graph(spec: HeadSpec, *, dtype: DType = "float32") -> bytes:
    """x[batch, inputs] and the parameters -> ``logits`` [batch, classes]. A serialised ONNX model."""
    write = _Writer(dtype)
    logits = _forward(write, spec)[-1]
    write.op("Identity", logits, name="logits")
    inputs = [write.value("x", ["batch", spec.inputs]), *_parameter_values(write, spec)]
    return write.finish("head_forward", inputs, [write.value("logits", ["batch", spec.outputs])])


def training_step_graph(spec: HeadSpec, *, proximal: bool = False, dtype: DType = "float32") -> bytes:
    """One Adam step on one batch. A serialised ONNX model.

    Inputs: ``x`` [batch, inputs], ``y`` int64[batch], every parameter and its moments, and the scalars
    of ``adam_scalars``. With ``proximal`` also ``mu`` and every parameter's ``.anchor``: the gradient of
    (mu/2)·‖w − anchor‖² is added (FedProx, Li et al. 2020, arXiv 1812.06127).
    Outputs: ``loss`` (mean cross-entropy of the batch before the step, nats) and everything ``.next``.

    The step is bound by memory, so it makes as few passes over the weights as ONNX's operators
    allow: weight decay is added by the gradient's product, and the moments are kept without the factors
    (1 - beta), which ``adam_scalars`` brings in at the end.
    """
    write = _Writer(dtype)
    activations = _forward(write, spec)
    loss, gradient = _cross_entropy(write, activations[-1], spec.outputs)
    write.op("Identity", loss, name="loss")
    for name, slope in _backward(write, spec, activations, gradient).items():
        _adam(write, name, slope, proximal=proximal)

    suffixes = ("", *MOMENTS)
    inputs = [
        write.value("x", ["batch", spec.inputs]),
        write.value("y", ["batch"], integer=True),
        *(write.value(scalar, []) for scalar in adam_scalars(TrainSettings(), 1)),
        *(value for suffix in suffixes for value in _parameter_values(write, spec, suffix)),
    ]
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


def _parameter_values(write: _Writer, spec: HeadSpec, suffix: str = "") -> list[Any]:
    return [write.value(name + suffix, list(shape)) for name, shape in spec.shapes.items()]


def _forward(write: _Writer, spec: HeadSpec) -> list[str]:
    """[x, first hidden activation, …, logits]."""
    activations = ["x"]
    last = len(spec.widths) - 2
    for layer in range(last + 1):
        sums = write.op("Gemm", activations[-1], f"{layer}.weight", f"{layer}.bias", transB=1)
        activations.append(sums if layer == last else write.op("Relu", sums))
    return activations


def _cross_entropy(write: _Writer, logits: str, classes: int) -> tuple[str, str]:
    """Mean cross-entropy over the batch, and its gradient with respect to the logits."""
    log_probability = write.op("LogSoftmax", logits, axis=-1)
    column = write.op("Unsqueeze", "y", write.constant(write.np.array([1], "int64")))
    is_class = write.op("Equal", column, write.constant(write.np.arange(classes, dtype="int64")))
    one_hot = write.cast(is_class)
    first = write.constant(write.np.array([0], "int64"))
    batch = write.cast(write.op("Squeeze", write.op("Shape", "y"), first))
    picked = write.op("ReduceSum", write.op("Mul", log_probability, one_hot), keepdims=0)
    loss = write.op("Neg", write.op("Div", picked, batch))
    excess = write.op("Sub", write.op("Exp", log_probability), one_hot)
    return loss, write.op("Div", excess, batch)


def _backward(write: _Writer, spec: HeadSpec, activations: list[str], gradient: str) -> dict[str, str]:
    """Gradient of every parameter by name, weight decay included, from that of the logits."""
    slopes: dict[str, str] = {}
    rows = write.constant(write.np.array([0], "int64"))
    zero = write.number(0.0)
    for layer in reversed(range(len(spec.widths) - 1)):
        below, weight, bias = activations[layer], f"{layer}.weight", f"{layer}.bias"
        decay = write.op("Mul", weight, "weight_decay")
        slopes[weight] = write.op("Gemm", gradient, below, decay, transA=1)
        decay = write.op("Mul", bias, "weight_decay")
        slopes[bias] = write.op("Add", write.op("ReduceSum", gradient, rows, keepdims=0), decay)
        if layer > 0:
            through = write.op("MatMul", gradient, weight)
            gradient = write.op("Where", write.op("Greater", below, zero), through, zero)
    return slopes


def _adam(write: _Writer, parameter: str, slope: str, *, proximal: bool) -> None:
    if proximal:
        pull = write.op("Mul", write.op("Sub", parameter, f"{parameter}.anchor"), "mu")
        slope = write.op("Add", slope, pull)
    first = _decayed(write, f"{parameter}.m", slope, BETA1)
    second = _decayed(write, f"{parameter}.v", write.op("Mul", slope, slope), BETA2)
    direction = write.op("Div", first, write.op("Add", write.op("Sqrt", second), "epsilon"))
    write.op("Sub", parameter, write.op("Mul", direction, "step_size"), name=parameter + NEXT)


def _decayed(write: _Writer, moment: str, fresh: str, beta: float) -> str:
    return write.op("Add", write.op("Mul", moment, write.number(beta)), fresh, name=moment + NEXT)
