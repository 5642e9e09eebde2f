"""Cost of int8 in each matmul and convolution by itself, in the graph's own outputs.

One session measures all of them: a copy of the graph in which every product reads either its value and weight as they
are or what int8 makes of them, by a switch of its own that is an input of the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...runtime.backends.onnxruntime_cpu import open_session
from ...runtime.similarity import row_cosines
from .products import Product, mean_errors, weight_error
from .ranges import HEADROOM, Feeds, Seen

SWITCHES = "int8_switches"


@dataclass(frozen=True, eq=False)
class SwitchedGraph:
    """A graph whose products can be int8 one by one."""

    model: Any  # an ``onnx.ModelProto`` that ONNX Runtime can run
    products: Sequence[Product]
    seen: Mapping[str, Seen]  # ranges and means of what the products read
    values_too: bool  # activations are int8 as weights are


def product_costs(
    graph: SwitchedGraph,
    feeds: Sequence[Feeds],
    *,
    threads: int | None = None,
    tell: Callable[[float], None] = lambda share: None,
) -> dict[str, float]:
    """Distance from 1 of the smallest cosine of a row when one product alone is int8, by the product's name.

    ``tell``: called after each product with the share of them that are measured.
    """
    products = graph.products
    outputs = [value.name for value in graph.model.graph.output if _is_float(value)]
    session = open_session(_with_switches(graph), threads=threads)
    off = np.zeros(len(products), bool)
    exact = [session.run({**feed, SWITCHES: off}, outputs) for feed in feeds]
    costs = {}
    for index, product in enumerate(products):
        switches = off.copy()
        switches[index] = True
        smallest = 1.0
        for feed, expected in zip(feeds, exact, strict=True):
            got = session.run({**feed, SWITCHES: switches}, outputs)
            smallest = min(smallest, *(smallest_cosine(got[name], expected[name]) for name in outputs))
        costs[product.name] = 1.0 - smallest
        tell((index + 1) / len(products))
    return costs


def smallest_cosine(got: Any, expected: Any) -> float:
    """The smallest cosine of a row; 1 where there is none, -1 where one is not finite."""
    if not got.size:
        return 1.0
    smallest = float(row_cosines(got, expected).min())
    return smallest if np.isfinite(smallest) else -1.0


def _is_float(value: Any) -> bool:
    from onnx import TensorProto

    return value.type.tensor_type.elem_type in (TensorProto.FLOAT, TensorProto.FLOAT16)


def _with_switches(switched: SwitchedGraph) -> bytes:
    from onnx import ModelProto, TensorProto, helper, numpy_helper

    products, seen = switched.products, switched.seen
    copy = ModelProto()
    copy.CopyFrom(switched.model)
    graph = copy.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    means = {name: value.mean for name, value in seen.items() if value.mean is not None}
    errors = mean_errors(tuple(products), constants, means)
    graph.input.append(helper.make_tensor_value_info(SWITCHES, TensorProto.BOOL, [len(products)]))
    numbers = {product.name: index for index, product in enumerate(products)}
    nodes: list[Any] = []

    def add(name: str, value: Any) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def make(operator: str, inputs: list[str], output: str) -> str:
        nodes.append(helper.make_node(operator, inputs, [output]))
        return output

    for node in graph.node:
        index = numbers.get(node.output[0])
        if index is None:
            nodes.append(node)
            continue
        product, weight = products[index], constants[node.input[1]]
        switch = make("Gather", [SWITCHES, add(f"switch_{index}_at", np.int64(index))], f"switch_{index}")
        error = weight_error(weight.astype(np.float32), product.weight_axis, weight.dtype)
        rounded = add(f"rounded_{index}", (weight.astype(np.float32) + error).astype(weight.dtype))
        node.input[1] = make("Where", [switch, rounded, node.input[1]], f"weight_{index}")
        if switched.values_too:
            reach = seen[product.source].range.widened(HEADROOM[product.operator])
            step = max(reach.high - reach.low, 1e-12) / 255
            pair = [
                add(f"step_{index}", np.asarray(step, weight.dtype)),
                add(f"zero_{index}", np.uint8(round(-reach.low / step))),
            ]
            whole = make("QuantizeLinear", [product.source, *pair], f"whole_{index}")
            back = make("DequantizeLinear", [whole, *pair], f"back_{index}")
            node.input[0] = make("Where", [switch, back, product.source], f"value_{index}")
        nodes.append(node)
        if product.name in errors:
            name, error = product.name, errors[product.name].astype(weight.dtype)
            node.output[0] = f"uncorrected_{index}"
            shape = (-1, *(1 for _ in weight.shape[2:])) if product.operator == "Conv" else (-1,)
            nothing = add(f"nothing_{index}", np.zeros_like(error).reshape(shape))
            common = make("Where", [switch, add(f"common_{index}", error.reshape(shape)), nothing], f"error_{index}")
            make("Sub", [node.output[0], common], name)
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return bytes(copy.SerializeToString())
