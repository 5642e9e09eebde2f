"""A file of named tensors that a later process reads back to the bit: state that is kept from round to round.

Eight bytes with the header's length, little-endian; the header, JSON; the payload, little-endian values without gaps.
The header's keys are ``told`` (the writer's metadata), ``arrays`` ([name, dtype, shape] each, in the payload's order)
and ``sha256`` (of the payload). Written whole or not at all, private to its owner.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ..base.errors import DataError
from ..base.files import read_regular, sha256_bytes, write_atomic
from .tensors import MAX_PAYLOAD_BYTES

DTYPES = ("<f4", "<f8")
MAX_HEADER_BYTES = 1 << 20
MAX_DIMENSIONS = 8  # of one tensor
MAX_FILE_BYTES = MAX_HEADER_BYTES + 8 * 2 * MAX_PAYLOAD_BYTES  # eight float64 values for each parameter


@dataclass(frozen=True, eq=False)
class TensorFile:
    """Contents of a file."""

    metadata: Mapping[str, str | int]
    tensors: Mapping[str, npt.NDArray[np.floating[Any]]]  # float32 or float64


class _Header(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"metadata": "told", "tensors": "arrays"}
):
    metadata: dict[str, str | int]
    tensors: list[tuple[str, str, tuple[int, ...]]]
    sha256: str


def write_tensors(path: Path, content: TensorFile) -> None:
    """Write ``content`` durably; the same content gives the same bytes. Raises StorageError."""
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in content.tensors.items()}
    tensors = {name: tensor.astype(tensor.dtype.newbyteorder("<"), copy=False) for name, tensor in tensors.items()}
    payload = b"".join(tensor.tobytes() for tensor in tensors.values())
    header = {
        "told": dict(content.metadata),
        "arrays": [[name, f"<f{tensor.itemsize}", list(tensor.shape)] for name, tensor in tensors.items()],
        "sha256": sha256_bytes(payload),
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    write_atomic(path, struct.pack("<Q", len(text)) + text + payload, mode=0o600)


def read_tensors(path: Path) -> TensorFile:
    """Read a file that ``write_tensors`` wrote. Raises StorageError when it is absent, DataError (``damaged``)."""
    try:
        data = read_regular(path, largest=MAX_FILE_BYTES)
    except DataError as error:
        raise _damaged_error(path, error.message) from error
    size = struct.unpack_from("<Q", data)[0] if len(data) >= 8 else -1
    if not 0 < size <= min(MAX_HEADER_BYTES, len(data) - 8):
        raise _damaged_error(path, "its header is cut short")
    try:
        header = msgspec.json.decode(data[8 : 8 + size], type=_Header)
    except (ValueError, RecursionError) as error:
        raise _damaged_error(path, f"its header: {error}") from error
    payload = memoryview(data)[8 + size :]
    if sha256_bytes(payload) != header.sha256:
        raise _damaged_error(path, "its values are not the ones written")
    tensors, start = {}, 0
    for name, dtype, shape in header.tensors:
        fits = len(shape) <= MAX_DIMENSIONS and min(shape, default=0) >= 0
        count = math.prod(shape) if fits else 0
        end = start + count * int(dtype[-1]) if dtype in DTYPES and fits else -1
        if not start <= end <= len(payload):
            raise _damaged_error(path, f"{name} is {dtype}{list(shape)}, more than the file holds or of another kind")
        values = np.frombuffer(payload[start:end], dtype).reshape(shape)
        tensors[name] = values.astype(values.dtype.newbyteorder("="))
        start = end
    if start != len(payload):
        raise _damaged_error(path, f"{len(payload) - start} bytes too many")
    return TensorFile(header.metadata, tensors)


def _damaged_error(path: Path, why: str) -> DataError:
    return DataError(f"{path} is damaged: {why}", fix="restore it from a backup", code="damaged")
