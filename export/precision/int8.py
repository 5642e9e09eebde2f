"""int8 as standard ONNX: ``QuantizeLinear``/``DequantizeLinear`` pairs around matmuls, written into a finished file.

Two forms, both without any scale that a batch shares at run time (a clip's embedding must not depend on
its neighbours, as they do with ``DynamicQuantizeLinear``):

``static``   activations get fixed scales from calibration clips, weights one scale per output channel.
``weights``  weights alone are int8; a runtime may quantise activations row by row (ONNX Runtime does).

Norms, softmaxes, activation functions and matmuls of two activations stay in fp32.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .ranges import Feeds, Range, observe

EMBEDDING = 1 << 20  # values from which a table of word vectors is stored as int8 too


@dataclass(frozen=True)
class Int8Form:
    """The form of int8 that a runtime fuses."""

    symmetric: bool  # activations as int8 around zero (TensorRT); otherwise uint8 with a zero point
    between: bool  # results of convolutions are quantised too, and biases are int32 (ONNX Runtime's fused kernels)


ONNX_FORM = Int8Form(symmetric=False, between=True)
TENSORRT_FORM = Int8Form(symmetric=True, between=False)


def quantise_weights(model: Any) -> int:
    """Change ``model`` (an ``onnx.ModelProto``): each weight of a matmul becomes int8, a scale per output channel.

    Returns how many matmuls were changed.
    """
    _gemms_to_matmuls(model)
    graph, changed = _Rewriter(model), 0
    for node in list(model.graph.node):
        if node.op_type == "MatMul" and graph.is_weight(node.input[1], 2):
            changed += 1
            node.input[1] = graph.dequantised_weight(node.input[1], axis=1)
        elif node.op_type == "Gather" and graph.is_weight(node.input[0], 2):
            graph.gather_rows(node)
    graph.finish()
    return changed


def quantise_static(model: Any, feeds: Iterable[Feeds], form: Int8Form, *, threads: int | None = None) -> int:
    """Change ``model`` (an ``onnx.ModelProto``): matmuls with a weight read int8 activations and int8 weights.

    ``feeds``: inputs of the graph for calibration clips. Returns how many matmuls were changed.
    Raises DataError as ``observe`` does.
    """
    _gemms_to_matmuls(model)
    graph, pixels = _Rewriter(model), _pixels(model)
    # The first convolution stays: three channels, little work, and all that follows depends on it.
    matmuls = [
        node
        for node in model.graph.node
        if (node.op_type == "MatMul" and graph.is_weight(node.input[1], 2))
        or (node.op_type == "Conv" and graph.is_weight(node.input[1]) and node.input[0] not in pixels)
    ]
    results = {id(node): graph.result_of(node) for node in matmuls if node.op_type == "Conv" and form.between}
    names = [node.input[0] for node in matmuls] + list(results.values())
    ranges = observe(model, names, feeds, symmetric=form.symmetric, threads=threads)
    for result in dict.fromkeys(results.values()):
        graph.quantise_value(result, ranges[result], form)
    for node in matmuls:
        source = node.input[0]
        node.input[0] = graph.quantise_value(source, ranges[source], form)
        weight = node.input[1]
        axis = 1 if node.op_type == "MatMul" else 0
        node.input[1] = graph.dequantised_weight(weight, axis=axis)
        if node.op_type == "Conv" and len(node.input) > 2 and form.between:
            node.input[2] = graph.dequantised_bias(node.input[2], source, weight)
    graph.finish()
    return len(matmuls)


def _pixels(model: Any) -> set[str]:
    """The graph's inputs, and what normalisation and changes of shape make of them."""
    names = {value.name for value in model.graph.input}
    for node in model.graph.node:
        if node.op_type in ("Cast", "Transpose", "Reshape", "Div", "Sub") and node.input[0] in names:
            names |= set(node.output)
    return names


def _gemms_to_matmuls(model: Any) -> None:
    """Replace ``Gemm`` with a constant weight by ``MatMul`` and ``Add``: the form that every runtime fuses."""
    import onnx
    from onnx import helper, numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[Any] = []
    for node in model.graph.node:
        settings = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        plain = settings.get("alpha", 1.0) == settings.get("beta", 1.0) == 1.0 and not settings.get("transA", 0)
        if node.op_type != "Gemm" or not plain or node.input[1] not in constants:
            nodes.append(node)
            continue
        weight = node.input[1]
        if settings.get("transB", 0):
            turned = np.ascontiguousarray(numpy_helper.to_array(constants[weight]).T)
            weight = f"{weight}_turned"
            if weight not in constants:
                constants[weight] = numpy_helper.from_array(turned, weight)
                model.graph.initializer.append(constants[weight])
        biased = len(node.input) > 2
        product = f"{node.output[0]}_product" if biased else node.output[0]
        nodes.append(onnx.helper.make_node("MatMul", [node.input[0], weight], [product], name=f"{node.name}_product"))
        if biased:
            nodes.append(onnx.helper.make_node("Add", [product, node.input[2]], [node.output[0]], name=node.name))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


class _Rewriter:
    """Inserts quantise-dequantise pairs into a graph, in the order of its nodes."""

    def __init__(self, model: Any) -> None:
        from onnx import numpy_helper

        self._graph = model.graph
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self._outputs = {value.name for value in model.graph.output}
        self._readers: dict[str, list[Any]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._after: dict[str, list[Any]] = {}  # value -> nodes that follow its maker
        self._first: list[Any] = []  # nodes that read constants alone
        self._quantised: dict[str, str] = {}  # value -> its name after the pair
        self._scales: dict[str, npt.NDArray[np.float32]] = {}  # of values and weights
        self._weights: dict[tuple[str, int], str] = {}

    def is_weight(self, name: str, dimensions: int | None = None) -> bool:
        found = self.constants.get(name)
        return found is not None and found.dtype == np.float32 and dimensions in (None, found.ndim)

    def result_of(self, node: Any) -> str:
        """Name of the value at which the output of ``node`` is quantised: after its only reader, a Relu, or at once."""
        result = str(node.output[0])
        readers = self._readers.get(result, [])
        if len(readers) == 1 and readers[0].op_type == "Relu" and result not in self._outputs:
            return str(readers[0].output[0])
        return result

    def quantise_value(self, name: str, seen: Range, form: Int8Form) -> str:
        """A pair behind the maker of ``name``, read by all its readers; the pair's end."""
        if name in self._quantised:
            return self._quantised[name]
        scale, zero = _steps(seen, form)
        self._scales[name] = scale
        end = f"{name}_int8_back"
        pair = self._pair(name, end, scale, zero)
        self._after.setdefault(name, []).extend(pair)
        self._quantised[name] = end
        return end

    def _pair(self, name: str, end: str, scale: Any, zero: Any) -> list[Any]:
        from onnx import helper

        constants = [f"{name}_scale", f"{name}_zero"]
        self._add(constants[0], scale)
        self._add(constants[1], zero)
        return [
            helper.make_node("QuantizeLinear", [name, *constants], [f"{name}_int8"], name=f"{name}_quantise"),
            helper.make_node("DequantizeLinear", [f"{name}_int8", *constants], [end], name=f"{name}_dequantise"),
        ]

    def dequantised_weight(self, name: str, axis: int) -> str:
        """The weight ``name`` as int8 with a scale per index of ``axis``."""
        from onnx import helper

        if (name, axis) in self._weights:
            return self._weights[name, axis]
        quantised, scales = int8_by_channel(self.constants[name], axis)
        self._scales[name] = scales
        parts = [f"{name}_int8", f"{name}_scale", f"{name}_zero"]
        values: tuple[npt.NDArray[Any], ...] = (quantised, scales, np.zeros(scales.shape, np.int8))
        for part, value in zip(parts, values, strict=True):
            self._add(part, value)
        self._first.append(helper.make_node("DequantizeLinear", parts, [f"{name}_back"], name=f"{name}_dq", axis=axis))
        self._weights[name, axis] = f"{name}_back"
        return f"{name}_back"

    def dequantised_bias(self, name: str, source: str, weight: str) -> str:
        """A bias as int32 in the steps of the matmuls it is added to."""
        from onnx import helper

        scales = (self._scales[source] * self._scales[weight]).astype(np.float32)
        made = f"{name}_of_{source}"
        rounded = np.clip(np.rint(self.constants[name] / scales), -(2**31) + 1, 2**31 - 1).astype(np.int32)
        for part, value in (("int32", rounded), ("scale", scales), ("zero", np.zeros(scales.shape, np.int32))):
            self._add(f"{made}_{part}", value)
        inputs = [f"{made}_{part}" for part in ("int32", "scale", "zero")]
        self._first.append(helper.make_node("DequantizeLinear", inputs, [f"{made}_back"], name=f"{made}_dq", axis=0))
        return f"{made}_back"

    def gather_rows(self, node: Any) -> None:
        """Rows of a large table as int8 with a scale per row, back to fp32 after they are fetched."""
        from onnx import TensorProto, helper

        table, ids, result = node.input[0], node.input[1], node.output[0]
        if self.constants[table].size < EMBEDDING:
            return
        quantised, scales = int8_by_channel(self.constants[table], 0)
        self._add(f"{table}_rows", quantised)
        self._add(f"{table}_row_scales", scales[:, None])
        node.input[0] = f"{table}_rows"
        node.output[0] = f"{result}_int8"
        self._after.setdefault(f"{result}_int8", []).extend(
            [
                helper.make_node("Cast", [f"{result}_int8"], [f"{result}_steps"], to=TensorProto.FLOAT),
                helper.make_node("Gather", [f"{table}_row_scales", ids], [f"{result}_scale"], axis=0),
                helper.make_node("Mul", [f"{result}_steps", f"{result}_scale"], [result]),
            ]
        )

    def _add(self, name: str, value: npt.NDArray[Any]) -> None:
        from onnx import numpy_helper

        self._graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name))

    def finish(self) -> None:
        """Nodes in order, readers behind the pairs, and no constant that nothing reads."""
        inputs = [node for value in self._graph.input for node in self._after.get(value.name, [])]
        nodes = [*self._first, *inputs]
        for node in self._graph.node:
            nodes.append(node)
            for output in node.output:
                nodes.extend(self._after.get(output, []))
        own = {id(node) for made in self._after.values() for node in made}
        for node in nodes:
            if id(node) not in own:
                for index, name in enumerate(node.input):
                    node.input[index] = self._quantised.get(name, name)
        copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
        del self._graph.node[:]
        self._graph.node.extend(copies)
        read = {name for node in copies for name in node.input} | self._outputs
        kept = [tensor for tensor in self._graph.initializer if tensor.name in read]
        copies_kept = [type(tensor).FromString(tensor.SerializeToString()) for tensor in kept]
        del self._graph.initializer[:]
        self._graph.initializer.extend(copies_kept)


def _steps(seen: Range, form: Int8Form) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any]]:
    """(step, the integer of zero) of a range, as arrays of no dimension."""
    if form.symmetric:
        return np.asarray(max(-seen.low, seen.high, 1e-12) / 127, np.float32), np.zeros((), np.int8)
    step = max(seen.high - seen.low, 1e-12) / 255
    return np.asarray(step, np.float32), np.asarray(round(-seen.low / step), np.uint8)


def int8_by_channel(values: npt.NDArray[np.float32], axis: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """(int8 of the same shape, float32 scales [values.shape[axis]]): symmetric, -127 to 127."""
    others = tuple(index for index in range(values.ndim) if index != axis)
    scales = np.maximum(np.abs(values).max(axis=others) / 127, 1e-12).astype(np.float32)
    shape = [1] * values.ndim
    shape[axis] = -1
    return np.rint(values / scales.reshape(shape)).astype(np.int8), scales
