"""Detect ONNX files that take tensors from other files ("external data").

ONNX lets a tensor name a file next to the graph; paths that led out of the folder caused several CVEs. A bundle's
graphs must be single files. This walks the protobuf wire format (field numbers from
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto) without copying a weight, so that half a gigabyte is checked
in milliseconds and no parser has to be trusted.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from ...base.errors import DataError

# message -> {field number: message inside it}; all other fields are skipped
INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "tensor": {},
}
EXTERNAL_DATA, DATA_LOCATION = 13, 14  # fields of a tensor
MAX_DEPTH = 64  # messages inside each other
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def has_external_data(path: Path) -> bool:
    """True when any tensor of the ONNX file names another file for its data.

    Raises DataError (``bad_graph``) when the file is not a protobuf message.
    """
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty, expected an ONNX graph", code="bad_graph")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _outside(data, 0, len(data), "model", 0)
            except (IndexError, ValueError) as error:
                raise DataError(f"{path} is not an ONNX graph: {error}", code="bad_graph") from error


def _outside(data: mmap.mmap, start: int, end: int, kind: str, depth: int) -> bool:
    if depth > MAX_DEPTH:
        raise ValueError(f"messages inside each other deeper than {MAX_DEPTH}")
    for number, first, last in _fields(data, start, end):
        if kind == "tensor" and (number == EXTERNAL_DATA or (number == DATA_LOCATION and data[first] != 0)):
            return True
        inner = INSIDE[kind].get(number)
        if inner and _outside(data, first, last, inner, depth + 1):
            return True
    return False


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Field number and content bounds of every field between ``start`` and ``end``."""
    position = start
    while position < end:
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        first = position
        if wire == VARINT:
            _, position = _varint(data, position)
        elif wire == BYTES:
            size, first = _varint(data, position)
            position = first + size
        elif wire in (FIXED64, FIXED32):
            position += 8 if wire == FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {first}")
        if position > end:
            raise ValueError(f"a field ends at byte {position}, its message at {end}")
        yield number, first, position


def _varint(data: mmap.mmap, position: int) -> tuple[int, int]:
    """The value and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"a number longer than 10 bytes before byte {position}")
