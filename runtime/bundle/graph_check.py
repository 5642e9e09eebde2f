"""The check that every ONNX file of a bundle passes before a runtime sees it: what a graph may hold.

A graph of this program is one file, a flat list of arithmetic nodes. So everything else that ONNX can say is refused:
tensors in other files (paths that led out of the folder caused several CVEs), graphs inside nodes and functions (loops
without end), operators of others, strings, tensors that claim more elements than the file can hold. What is left ends
by itself; how much time and memory a run may take is bounded where it runs (runtime/backends/run_limits.py).

This walks the protobuf wire format (field numbers from https://github.com/onnx/onnx/blob/main/onnx/onnx.proto)
without copying a weight, so that half a gigabyte is checked in milliseconds and no parser has to be trusted.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from ...base.errors import DataError, printable
from ...base.files import open_regular, printable_path

_MICROSOFT = "com.microsoft"
_STANDARD = ("", "ai.onnx")
# What the exporters write, and neighbours that do as much work as their inputs and outputs have elements.
_OPERATORS = """
    Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast Ceil Clip Concat Constant Conv ConvInteger
    Cos DequantizeLinear Div DynamicQuantizeLinear Equal Erf Exp Expand Flatten Floor Gather GatherElements
    GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GroupNormalization HardSigmoid
    HardSwish Identity InstanceNormalization LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax
    MatMul MatMulInteger Max MaxPool Mean Min Mod Mul Neg Not Or Pad Pow QLinearConv QLinearMatMul
    QuantizeLinear Reciprocal ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
    Relu Reshape Round Shape Sigmoid Sign Sin Size Slice Softmax Softplus Split Sqrt Squeeze Sub Sum Tanh
    Transpose Trilu Unsqueeze Where Xor
"""
OPERATORS = frozenset(_OPERATORS.split())
MICROSOFT_OPERATORS = frozenset({"MatMulNBits"})
MICROSOFT_INPUTS = 4  # a further one is an index into the weights, which the runtime does not check
MAX_NODES = 20_000  # a full-size graph has 1,000
MAX_FIELDS = 1_000_000  # of the whole file; a full-size graph has 30,000
MAX_RANK = 16
_MOST_ELEMENTS_A_BYTE = 8
_STRING = 8  # of TensorProto.DataType
_FIX = "get the bundle again from its operator, or export it again with flamest-export"

# message -> {field number: message inside it}; all other fields are skipped
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 8: "opset"},
    "opset": {},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 10: "tensor"},
    "tensor": {},
}
_REFUSED: dict[str, dict[int, str]] = {
    "model": {20: "it holds instructions for training", 25: "it defines functions of its own"},
    "graph": {15: "it holds sparse tensors"},
    "attribute": {
        6: "a node holds a graph of its own",
        11: "a node holds graphs of its own",
        22: "it holds sparse tensors",
        23: "it holds sparse tensors",
    },
}
_OPSET_DOMAIN = 1
_INPUT, _OP_TYPE, _NODE_DOMAIN = 1, 4, 7
_DIMS, _DATA_TYPE, _EXTERNAL_DATA, _DATA_LOCATION = 1, 2, 13, 14
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class _Refused(Exception):
    """The graph holds what none of ours does; ``str`` says what."""


class _TakesFiles(_Refused):
    """A tensor is in another file."""


def check_graph(path: Path, name: str) -> None:
    """Raise DataError unless the ONNX file ``path``, called ``name`` in messages, is a graph that may run.

    Codes: ``bad_graph`` for a file that is no protobuf message of a model, ``bundle_tampered`` for a model with tensors
    in other files, ``graph_refused`` for one that holds more than a flat list of known operators.
    """
    shown = printable_path(Path(name))
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise DataError(
                f"{shown} is empty, expected an ONNX graph",
                fix="copy the bundle again, or export it again",
                code="bad_graph",
            )
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                _Walk(data).model()
            except _TakesFiles as refused:
                raise DataError(f"{shown} {refused}", code="bundle_tampered", fix=_FIX) from refused
            except _Refused as refused:
                raise DataError(
                    f"{shown} is not a graph that may run: {refused}",
                    fix=_FIX,
                    code="graph_refused",
                ) from refused
            except (IndexError, ValueError) as error:
                raise DataError(
                    f"{shown} is not an ONNX graph: {error}",
                    fix="copy the bundle again, or export it again",
                    code="bad_graph",
                ) from error


class _Walk:
    """One pass over a file."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._fields_left = MAX_FIELDS
        self._nodes = 0

    def model(self) -> None:
        self._message("model", 0, len(self._data))

    def _message(self, kind: str, start: int, end: int) -> None:
        if kind == "node":
            self._node(start, end)
        elif kind == "tensor":
            self._tensor(start, end)
        for number, wire, first, last in self._fields(start, end):
            if refused := _REFUSED.get(kind, {}).get(number):
                raise _Refused(refused)
            if kind == "opset" and number == _OPSET_DOMAIN and wire == _BYTES:
                self._domain(self._text(first, last))
            inner = _INSIDE[kind].get(number)
            if inner:
                if wire != _BYTES:
                    raise ValueError(f"field {number} at byte {first} is not a message")
                self._message(inner, first, last)

    def _node(self, start: int, end: int) -> None:
        """Every operator name and domain that the node gives, also twice, must be allowed together."""
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise _Refused(f"it has more than {MAX_NODES} nodes")
        types, domains, inputs = [], [], 0
        for number, _, first, last in self._fields(start, end):
            if number == _INPUT:
                inputs += 1
            elif number == _OP_TYPE:
                types.append(self._text(first, last))
            elif number == _NODE_DOMAIN:
                domains.append(self._text(first, last))
        for domain in domains or [""]:
            known = self._domain(domain)
            if domain == _MICROSOFT and inputs > MICROSOFT_INPUTS:
                raise _Refused(f"{MICROSOFT_INPUTS + 1} or more inputs of an operator of {domain}")
            for operator in types or [""]:
                if operator not in known:
                    shown = printable(f"{domain}.{operator}" if domain else operator)
                    raise _Refused(f"it has the operator '{shown[:80]}', which no exported graph needs")

    def _domain(self, domain: str) -> frozenset[str]:
        if domain in _STANDARD:
            return OPERATORS
        if domain == _MICROSOFT:
            return MICROSOFT_OPERATORS
        raise _Refused(f"it has operators of the domain '{printable(domain)[:80]}'")

    def _tensor(self, start: int, end: int) -> None:
        for number, _, first, _ in self._fields(start, end):
            if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and self._data[first] != 0):
                raise _TakesFiles("takes tensors from another file; a graph must be one file")
            if number == _DATA_TYPE and self._varint(first)[0] & 0xFFFFFFFF == _STRING:
                raise _Refused("it holds text as data")
        elements, rank = 1, 0
        for number, wire, first, last in self._fields(start, end):
            for size in self._integers(wire, first, last) if number == _DIMS else ():
                elements, rank = elements * size, rank + 1
                if rank > MAX_RANK or not 0 <= elements <= _MOST_ELEMENTS_A_BYTE * len(self._data):
                    raise _Refused("a tensor claims a shape that its file cannot hold")

    def _integers(self, wire: int, first: int, last: int) -> Iterator[int]:
        """Values of a repeated int64, packed or single."""
        while first < last:
            value, first = self._varint(first)
            yield value - (1 << 64) if value >> 63 else value
            if wire == _VARINT:
                return

    def _text(self, first: int, last: int) -> str:
        if last - first > 1000:
            raise ValueError(f"a name of {last - first} bytes")
        return self._data[first:last].decode("utf-8", "strict")

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Number, wire type and content bounds of every field between ``start`` and ``end``."""
        position = start
        while position < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise _Refused(f"it has more than {MAX_FIELDS} fields")
            tag, position = self._varint(position)
            number, wire = tag >> 3, tag & 7
            if tag >> 32 or number == 0:  # a parser would drop the upper bits, and read another field
                raise ValueError(f"field number {number} before byte {position}")
            first = position
            if wire == _VARINT:
                _, position = self._varint(position)
            elif wire == _BYTES:
                size, first = self._varint(position)
                position = first + size
            elif wire in (_FIXED64, _FIXED32):
                position += 8 if wire == _FIXED64 else 4
            else:
                raise ValueError(f"wire type {wire} at byte {first}")
            if position > end:
                raise ValueError(f"a field ends at byte {position}, its message at {end}")
            yield number, wire, first, position

    def _varint(self, position: int) -> tuple[int, int]:
        """The value and the position after it."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self._data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFFFFFFFFFFFFFF, position
        raise ValueError(f"a number longer than 10 bytes before byte {position}")
