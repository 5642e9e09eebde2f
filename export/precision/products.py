"""The matmuls and convolutions of a graph that int8 can compute: those with a constant weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

FLOATS = ("float32", "float16", "bfloat16")
_OF_PIXELS = ("Cast", "Transpose", "Reshape", "Div", "Sub")  # what normalisation and changes of shape consist of


@dataclass(frozen=True)
class Product:
    """A matmul or convolution with a constant weight."""

    name: str  # of its result
    operator: Literal["MatMul", "Conv"]
    source: str  # the value that it reads
    weight: str

    @property
    def source_axis(self) -> int:
        """Axis of ``source`` that holds its channels."""
        return 1 if self.operator == "Conv" else -1

    @property
    def weight_axis(self) -> int:
        """Axis of ``weight`` that holds the result's channels."""
        return 0 if self.operator == "Conv" else 1


def find_products(
    model: Any, operators: tuple[str, ...] = ("MatMul", "Conv"), *, first: bool = False
) -> tuple[Product, ...]:
    """The products of ``model`` (an ``onnx.ModelProto`` without Gemm nodes), in its order.

    ``first``: with the convolution of the pixels. In large networks it is little work, and all that follows depends on
    it: there it stays.
    """
    import onnx

    weights = {
        tensor.name: len(tensor.dims)
        for tensor in model.graph.initializer
        if np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).name in FLOATS
    }
    pixels = _pixels(model)
    return tuple(
        Product(node.output[0], node.op_type, node.input[0], node.input[1])
        for node in model.graph.node
        if node.op_type in operators
        and (weights.get(node.input[1]) == 2 if node.op_type == "MatMul" else node.input[1] in weights)
        and (first or node.op_type != "Conv" or node.input[0] not in pixels)
    )


def _pixels(model: Any) -> set[str]:
    """The graph's inputs, and what normalisation and changes of shape make of them."""
    names = {value.name for value in model.graph.input}
    for node in model.graph.node:
        if node.op_type in _OF_PIXELS and node.input[0] in names:
            names |= set(node.output)
    return names


def gemms_to_matmuls(model: Any) -> None:
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


def int8_by_channel(
    values: npt.NDArray[np.float32], axis: int, kind: npt.DTypeLike = np.float32
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """(int8 of the same shape, float32 scales [values.shape[axis]] that ``kind`` holds): symmetric, -127 to 127."""
    others = tuple(index for index in range(values.ndim) if index != axis)
    scales = np.maximum(np.abs(values).max(axis=others) / 127, 1e-12).astype(kind).astype(np.float32)
    return np.clip(np.rint(values / along(scales, axis, values.ndim)), -127, 127).astype(np.int8), scales


def along(vector: npt.NDArray[np.float32], axis: int, dimensions: int) -> npt.NDArray[np.float32]:
    """``vector`` shaped to be multiplied along ``axis`` of an array of so many ``dimensions``."""
    shape = [1] * dimensions
    shape[axis] = -1
    return vector.reshape(shape)


def weight_error(
    weight: npt.NDArray[np.float32], axis: int, kind: npt.DTypeLike = np.float32
) -> npt.NDArray[np.float32]:
    """Difference to ``weight`` of what int8 makes of it."""
    quantised, scales = int8_by_channel(weight, axis, kind)
    return np.asarray(quantised * along(scales, axis, weight.ndim) - weight, np.float32)


def mean_errors(
    products: tuple[Product, ...], constants: Mapping[str, npt.NDArray[Any]], means: Mapping[str, npt.NDArray[Any]]
) -> dict[str, npt.NDArray[np.float32]]:
    """Error of each product that is the same for all inputs on average, [channels], by the product's name.

    A weight's rounding error times the mean of what it multiplies. It does not average out over an image's positions or
    a caption's tokens as other errors do, so it is most of what int8 costs an embedding; the biases take it up
    (Nagel et al. 2019, https://arxiv.org/abs/1906.04721, section 4.2).
    """
    errors = {}
    for product in products:
        mean = means.get(product.source)
        error = weight_error(
            constants[product.weight].astype(np.float32), product.weight_axis, constants[product.weight].dtype
        )
        if product.operator == "Conv":
            error = error.sum(axis=tuple(range(2, error.ndim))).T  # [in / groups, out]
        if mean is not None and len(mean) == len(error):  # a grouped convolution's is longer
            errors[product.name] = np.asarray(mean @ error.astype(np.float64), np.float32)
    return errors
