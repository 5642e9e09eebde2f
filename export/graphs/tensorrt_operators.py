"""Operators that TensorRT's ONNX parser accepts, as far as our graphs need them: element types, restrictions.

Our own table in our own words, narrowed to what holds for every TensorRT from 10.3 to 11: what is in
the parser's published lists of operators both for 9.2 (the last list before 10.3 that we could read) and for
10.15, and is not taken back in the excerpts of 11.2's (https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md,
its history, and https://docs.nvidia.com/deeplearning/tensorrt/latest/reference/onnx-opset-guide.html).
What the table allows may still fail to build; what it refuses does not parse everywhere.

Since version 10 int8 is a *quantised* type: it exists between QuantizeLinear and DequantizeLinear and
nowhere else, with zero points of zero; uint8 is an input of the network that a Cast reads, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

OPSETS = range(9, 20)  # 9.2 reads up to opset 19, 10.15 up to 24, 11 up to 25
NEWER_OPSETS = range(20, 25)  # read by 10.15 and later; 10.3 may not
STANDARD = ("", "ai.onnx")  # the domains of ONNX itself

_FLOATS = frozenset({"float32", "float16", "bfloat16"})
_WHOLE = frozenset({"int32", "int64"})
_NUMBERS = _FLOATS | _WHOLE
_ALL = _NUMBERS | {"bool"}
_BOOL = frozenset({"bool"})


@dataclass(frozen=True, eq=False)
class NodeView:
    """One node, with the known properties of its values."""

    node: Any  # onnx.NodeProto
    types: Mapping[str, str]  # value -> numpy's name of its element type
    ranks: Mapping[str, int]
    constants: frozenset[str]  # initializers and results of Constant
    zeros: frozenset[str]  # constants whose every value is zero
    inputs: frozenset[str] = frozenset()  # of the network

    def attribute(self, name: str) -> list[int]:
        return next((list(given.ints) for given in self.node.attribute if given.name == name), [])


Restriction = Callable[[NodeView], str]  # what is wrong; empty when nothing is


def _two_or_three_dimensions(view: NodeView) -> str:
    rank = view.ranks.get(view.node.input[0])
    return "" if rank in (4, 5, None) else f"is over {rank - 2} spatial dimensions, expected 2 or 3"


def _pooling(view: NodeView) -> str:
    if any(size != 1 for size in view.attribute("dilations")):
        return "has dilations, expected none"
    if len([output for output in view.node.output if output]) > 1:
        return "gives indices, expected its values alone"
    return _two_or_three_dimensions(view)


def _first_output_alone(view: NodeView) -> str:
    more = [output for output in view.node.output[1:] if output]
    return f"gives {', '.join(more)} too, expected its first output alone" if more else ""


def _constant_input(position: int, name: str) -> Restriction:
    def check(view: NodeView) -> str:
        names = view.node.input[position : position + 1]
        return f"computes its {name}, expected a constant" if any(n and n not in view.constants for n in names) else ""

    return check


def _zero_point_of_zero(view: NodeView) -> str:
    names = view.node.input[2:3]
    return "has a zero point other than zero" if any(n and n not in view.zeros for n in names) else ""


def _bytes_from_outside(view: NodeView) -> str:
    """The network's own input may be uint8; a value that is computed may not."""
    value = view.node.input[0]
    inside = view.types.get(value) == "uint8" and value not in view.inputs
    return "on uint8 that is no input of the network, expected another type" if inside else ""


def _no_restriction(view: NodeView) -> str:
    return ""


@dataclass(frozen=True)
class Operator:
    types: frozenset[str]  # of its first input, or of its result where it makes one from nothing
    restriction: Restriction = _no_restriction


_axes = _constant_input(1, "axes")

OPERATORS: dict[str, Operator] = {
    **dict.fromkeys(("Add", "Div", "Mul", "Sub", "Max", "Min", "Neg", "ArgMax", "ArgMin"), Operator(_NUMBERS)),
    **dict.fromkeys(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"), Operator(_NUMBERS)),
    **dict.fromkeys(("Concat", "Expand", "Flatten", "Gather", "GatherElements"), Operator(_ALL)),
    **dict.fromkeys(("GatherND", "Identity", "Reshape", "Shape", "Size", "Split", "Tile"), Operator(_ALL)),
    **dict.fromkeys(("Transpose", "Constant", "Where"), Operator(_ALL)),
    **dict.fromkeys(("Erf", "Exp", "Floor", "Gemm", "GlobalAveragePool", "Log", "MatMul"), Operator(_FLOATS)),
    **dict.fromkeys(("Pow", "Reciprocal", "Sigmoid", "Softmax", "Sqrt", "Tanh", "Clip"), Operator(_FLOATS)),
    # Of encoders of the exporter's own. In the parser's list since that of 8.4.
    **dict.fromkeys(("Abs", "Ceil", "Cos", "Sin", "LeakyRelu", "Softplus", "GlobalMaxPool"), Operator(_FLOATS)),
    **dict.fromkeys(("And", "Not", "Or"), Operator(_BOOL)),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), Operator(_ALL, _axes)),
    **dict.fromkeys(("ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"), Operator(_NUMBERS, _axes)),
    **dict.fromkeys(("AveragePool", "MaxPool"), Operator(_FLOATS, _pooling)),
    "Cast": Operator(_ALL | {"uint8"}, _bytes_from_outside),
    "Conv": Operator(_FLOATS, _two_or_three_dimensions),
    "ConstantOfShape": Operator(frozenset({"float32"})),
    "DequantizeLinear": Operator(frozenset({"int8"}), _zero_point_of_zero),
    "HardSigmoid": Operator(_FLOATS),
    "LayerNormalization": Operator(_FLOATS, _first_output_alone),
    "Pad": Operator(_NUMBERS),
    "QuantizeLinear": Operator(_FLOATS, _zero_point_of_zero),
    "Range": Operator(_NUMBERS),
    "Relu": Operator(_NUMBERS),
    "Slice": Operator(_ALL, _constant_input(3, "axes")),
}


NEWER = {"Gelu": Operator(_FLOATS), "RMSNormalization": Operator(_FLOATS)}  # in 10.15's list, not in 9.2's


def newer_operators(view: NodeView) -> Iterator[str]:
    """Remarks on a node that only newer TensorRTs are known to accept."""
    if view.node.domain in STANDARD and view.node.op_type in NEWER:
        yield f"{view.node.op_type}: in TensorRT's list of 10.15, not in that of 9.2: 10.3 may not accept it"


def parser_problems(view: NodeView) -> Iterator[str]:
    """Problems of one node with TensorRT's parser, each starting with its operator."""
    node = view.node
    name = f"{node.op_type} '{node.name}'"
    if node.domain not in STANDARD:
        yield f"{node.domain}.{node.op_type}: not an operator of ONNX itself"
        return
    known = OPERATORS.get(node.op_type) or NEWER.get(node.op_type)
    if known is None:
        yield f"{node.op_type}: not in the list of operators that TensorRT 10.3 to 11 all accept"
        return
    value = node.input[0] if node.input else node.output[0]
    kind = view.types.get(value)
    if kind is not None and kind not in known.types:
        yield f"{name} on {kind}, expected {', '.join(sorted(known.types))}"
    problem = known.restriction(view)
    if problem:
        yield f"{name} {problem}"
