"""int8 as standard ONNX: ``QuantizeLinear``/``DequantizeLinear`` pairs around matmuls, written into a finished file.

Two forms, both without any scale that a batch shares at run time (a clip's embedding must not depend on
its neighbours, as they do with ``DynamicQuantizeLinear``):

``static``   activations get fixed scales from calibration clips, weights one scale per output channel.
``weights``  weights alone are int8; a runtime may quantise activations row by row (ONNX Runtime does).

Norms, softmaxes, activation functions and matmuls of two activations stay as they are, and so do the products that
``kept`` names (trial.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .products import Product, find_products, int8_by_channel, mean_errors
from .ranges import HEADROOM, Range, Seen

EMBEDDING = 1 << 20  # values from which a table of word vectors is stored as int8 too


@dataclass(frozen=True)
class Int8Form:
    """The form of int8 that a runtime fuses."""

    symmetric: bool  # activations as int8 around zero (TensorRT); otherwise uint8 with a zero point
    between: bool  # results of convolutions are quantised too, and biases are int32 (ONNX Runtime's fused kernels)


ONNX_FORM = Int8Form(symmetric=False, between=True)
TENSORRT_FORM = Int8Form(symmetric=True, between=False)


def quantise_weights(
    model: Any, means: Mapping[str, npt.NDArray[np.float64]] | None = None, kept: Collection[str] = ()
) -> int:
    """Change ``model`` (an ``onnx.ModelProto`` without Gemm nodes): each weight of a matmul becomes int8, a scale per
    output channel.

    ``means``: of the channels of the values that the matmuls read; without them biases are not corrected. ``kept``:
    results of matmuls that stay. Returns how many matmuls were changed.
    """
    products = [each for each in find_products(model, ("MatMul",)) if each.name not in kept]
    graph = _Rewriter(model)
    graph.correct_biases(products, means or {})
    for product in products:
        node = graph.makers[product.name]
        node.input[1] = graph.dequantised_weight(node.input[1], axis=1)
    for node in list(model.graph.node):
        if node.op_type == "Gather" and graph.is_weight(node.input[0], 2):
            graph.gather_rows(node)
    graph.finish()
    return len(products)


def watched_channels(model: Any, form: Int8Form, *, first: bool = False) -> dict[str, int | None]:
    """The values of ``model`` whose ranges ``quantise_static`` needs, each with the axis of its channels.

    ``first``: the pixels too.

    None for a result of a convolution, whose channels' means nothing needs.
    """
    graph, products = _Rewriter(model), find_products(model, first=first)
    results = [graph.result_of(each.name) for each in products if each.operator == "Conv" and form.between]
    return {**dict.fromkeys(results), **{each.source: each.source_axis for each in products}}


def quantise_static(
    model: Any, seen: Mapping[str, Seen], form: Int8Form, kept: Collection[str] = (), *, first: bool = False
) -> int:
    """Change ``model`` (an ``onnx.ModelProto`` without Gemm nodes): matmuls and convolutions with a weight read int8
    activations and int8 weights.

    ``seen``: the values of ``watched_channels`` on calibration clips. ``kept``: results of products that stay.
    ``first``: the convolution of the pixels does not. Returns how many products were changed.
    """
    products = [each for each in find_products(model, first=first) if each.name not in kept]
    graph = _Rewriter(model)
    graph.correct_biases(products, {name: value.mean for name, value in seen.items() if value.mean is not None})
    ranges: dict[str, Range] = {}
    for product in products:
        conv = product.operator == "Conv" and form.between
        for name in (graph.result_of(product.name), product.source) if conv else (product.source,):
            ranges.setdefault(name, seen[name].range.widened(HEADROOM[product.operator]))
    for product in products:
        if product.operator == "Conv" and form.between:
            result = graph.result_of(product.name)
            graph.quantise_value(result, ranges[result], form)
    for product in products:
        node = graph.makers[product.name]
        node.input[0] = graph.quantise_value(product.source, ranges[product.source], form)
        node.input[1] = graph.dequantised_weight(product.weight, axis=product.weight_axis)
        if product.operator == "Conv" and len(node.input) > 2 and form.between:
            node.input[2] = graph.dequantised_bias(node.input[2], product.source, product.weight)
    graph.finish(untouched=kept)
    return len(products)


class _Rewriter:
    """Inserts quantise-dequantise pairs into a graph, in the order of its nodes."""

    def __init__(self, model: Any) -> None:
        from onnx import numpy_helper

        self._graph = model.graph
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self.makers = {output: node for node in model.graph.node for output in node.output}
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
        floats = [each.dtype for each in self.constants.values() if each.ndim > 1 and each.dtype.name in _WIDE]
        self._kind = next((kind for kind in floats if kind != np.float32), np.dtype(np.float32))  # that it computes in

    def is_weight(self, name: str, dimensions: int | None = None) -> bool:
        found = self.constants.get(name)
        return found is not None and found.dtype.name in _WIDE and dimensions in (None, found.ndim)

    def result_of(self, result: str) -> str:
        """The value at which ``result`` of a product is quantised: that of its only reader, a Relu, or itself."""
        readers = self._readers.get(result, [])
        if len(readers) == 1 and readers[0].op_type == "Relu" and result not in self._outputs:
            return str(readers[0].output[0])
        return result

    def correct_biases(self, products: list[Product], means: Mapping[str, npt.NDArray[np.float64]]) -> None:
        """Take the products' mean errors out of their biases, where they have one that is a constant."""
        for name, error in mean_errors(tuple(products), self.constants, means).items():
            node, place = self.makers[name], 2
            if node.op_type == "MatMul":
                readers = self._readers.get(name, [])
                if len(readers) != 1 or readers[0].op_type != "Add" or name in self._outputs:
                    continue
                node = readers[0]
                place = 1 - list(node.input).index(name)
            bias = self.constants.get(node.input[place]) if len(node.input) > place else None
            if bias is None or bias.shape != error.shape:
                continue
            corrected = f"{name}_bias"
            self._add(corrected, (bias.astype(np.float32) - error).astype(bias.dtype))
            self.constants[corrected] = (bias.astype(np.float32) - error).astype(bias.dtype)
            node.input[place] = corrected

    def quantise_value(self, name: str, seen: Range, form: Int8Form) -> str:
        """A pair behind the maker of ``name``, read by all its readers; the pair's end."""
        if name in self._quantised:
            return self._quantised[name]
        scale, zero = _steps(seen, form)
        scale = scale.astype(self._kind)
        self._scales[name] = scale.astype(np.float32)
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
        kind = self.constants[name].dtype
        quantised, scales = int8_by_channel(self.constants[name].astype(np.float32), axis, kind)
        self._scales[name] = scales
        parts = [f"{name}_int8", f"{name}_scale", f"{name}_zero"]
        values: tuple[npt.NDArray[Any], ...] = (quantised, scales.astype(kind), np.zeros(scales.shape, np.int8))
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

    def finish(self, untouched: Collection[str] = ()) -> None:
        """Nodes in order, readers behind the pairs, and no constant that nothing reads.

        ``untouched``: results of nodes that read the values before the pairs.
        """
        inputs = [node for value in self._graph.input for node in self._after.get(value.name, [])]
        nodes = [*self._first, *inputs]
        for node in self._graph.node:
            nodes.append(node)
            for output in node.output:
                nodes.extend(self._after.get(output, []))
        own = {id(node) for made in self._after.values() for node in made}
        own |= {id(self.makers[name]) for name in untouched}
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


_WIDE = ("float32", "float16", "bfloat16")


def _steps(seen: Range, form: Int8Form) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any]]:
    """(step, the integer of zero) of a range, as arrays of no dimension."""
    if form.symmetric:
        return np.asarray(max(-seen.low, seen.high, 1e-12) / 127, np.float32), np.zeros((), np.int8)
    step = max(seen.high - seen.low, 1e-12) / 255
    return np.asarray(step, np.float32), np.asarray(round(-seen.low / step), np.uint8)
