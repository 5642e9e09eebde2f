"""``MODEL.safetensors``: a trained head with all that is needed to use it.

The format is https://github.com/huggingface/safetensors#format, and any reader of it opens these
files. The header is written here and not by the library, whose order of metadata keys changes from
one process to the next: the same model gives the same bytes, on every machine. Metadata (each value
one JSON text): ``flamest.format``, ``flamest.head``, ``flamest.labels``, ``flamest.fingerprint``,
``flamest.run``, ``flamest.round``, and the caller's own under ``flamest.metadata``.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from ..base.errors import DataError, StorageError
from ..base.files import write_atomic
from .head import HeadSpec, Params
from .tensors import MAX_PAYLOAD_BYTES, decode_params, encode_params

T = TypeVar("T")
FORMAT = 1
MAX_HEADER_BYTES = 4 << 20
_KEY = "flamest."


@dataclass(frozen=True, eq=False)
class ModelFile:
    """What the file holds."""

    head: HeadSpec
    params: Params
    labels: tuple[str, ...]  # class k is labels[k]
    fingerprint: str  # of the bundle whose features it was trained on
    run: str = ""  # of the federation; empty for a model trained locally
    round: int = 0  # after which it was made
    metadata: Mapping[str, str] = field(default_factory=dict)  # whatever else the writer knows


def write_model(path: Path, model: ModelFile) -> None:
    """Write ``model``, whole or not at all; the same model gives the same bytes.

    Raises DataError when params or labels do not fit the head, StorageError.
    """
    write_atomic(Path(path), encode_model(model))


def encode_model(model: ModelFile) -> bytes:
    """The file's content. Raises DataError when params or labels do not fit the head."""
    _check_labels(model.head, model.labels, "the model to write")
    payload = encode_params(model.head, model.params)
    told: dict[str, Any] = {
        "format": FORMAT,
        "head": model.head.told(),
        "labels": model.labels,
        "fingerprint": model.fingerprint,
        "run": model.run,
        "round": model.round,
        "metadata": dict(sorted(model.metadata.items())),
    }
    header: dict[str, Any] = {"__metadata__": {_KEY + key: json.dumps(value) for key, value in told.items()}}
    start = 0
    for name, shape in model.head.shapes.items():
        end = start + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the payload begins on a multiple of 8 bytes
    return struct.pack("<Q", len(text)) + text + payload


def read_model(path: Path) -> ModelFile:
    """Read a file that ``write_model`` made, strictly.

    Raises StorageError when it cannot be read, DataError (``bad_model``) naming the broken rule.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(8 + MAX_HEADER_BYTES + MAX_PAYLOAD_BYTES + 1)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    return decode_model(data, whose=str(path))


def decode_model(data: bytes, *, whose: str) -> ModelFile:
    """The model in a file's content; DataError (``bad_model``) begins with ``whose``."""
    header, payload = _split(data, whose)
    told = header.pop("__metadata__", None)
    if not isinstance(told, dict) or _KEY + "format" not in told:
        raise _bad(whose, "no FLAMeST metadata, expected a model from flamest-agent train or flamest-coordinator model")
    if _value(told, "format", int, whose) != FORMAT:
        raise _bad(whose, f"format {told[_KEY + 'format']}, this version reads {FORMAT}")
    head = _value(told, "head", HeadSpec, whose)
    labels = _value(told, "labels", tuple[str, ...], whose)
    _check_labels(head, labels, whose)
    _check_layout(head, header, whose)
    try:
        params = decode_params(head, payload, whose=whose)
    except DataError as error:
        raise DataError(error.message, code="bad_model") from error
    return ModelFile(
        head=head,
        params=params,
        labels=labels,
        fingerprint=_value(told, "fingerprint", str, whose),
        run=_value(told, "run", str, whose),
        round=_value(told, "round", int, whose),
        metadata=_value(told, "metadata", dict[str, str], whose),
    )


def _split(data: bytes, whose: str) -> tuple[dict[str, Any], bytes]:
    if len(data) < 8:
        raise _bad(whose, f"{len(data)} bytes, expected a safetensors file")
    size = struct.unpack_from("<Q", data)[0]
    if not 2 <= size <= min(MAX_HEADER_BYTES, len(data) - 8):
        raise _bad(whose, f"a header of {size} bytes in a file of {len(data)}; it is cut short, or no safetensors file")
    try:
        header = json.loads(data[8 : 8 + size])
    except (ValueError, RecursionError) as error:
        raise _bad(whose, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise _bad(whose, "its header is not a JSON object")
    return header, data[8 + size :]


def _value(told: dict[str, Any], key: str, kind: type[T], whose: str) -> T:
    text = told.get(_KEY + key)
    if not isinstance(text, str):
        raise _bad(whose, f"no metadata '{_KEY}{key}'")
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, DataError) as error:
        raise _bad(whose, f"metadata '{_KEY}{key}': {error}") from error


def _check_labels(head: HeadSpec, labels: tuple[str, ...], whose: str) -> None:
    if len(labels) != head.outputs:
        raise _bad(whose, f"{len(labels)} labels, its head has {head.outputs} outputs")


def _check_layout(head: HeadSpec, header: dict[str, Any], whose: str) -> None:
    """The tensors must be the head's, one after the other in its order, as ``encode_model`` lays them."""
    if set(header) != set(head.shapes):
        raise _bad(whose, f"tensors {sorted(header)}, expected {list(head.shapes)}")
    start = 0
    for name, shape in head.shapes.items():
        end = start + 4 * int(np.prod(shape))
        if header[name] != {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}:
            raise _bad(whose, f"{name} is {header[name]}, expected F32 {list(shape)} at bytes {start} to {end}")
        start = end


def _bad(whose: str, why: str) -> DataError:
    return DataError(f"{whose}: {why}", code="bad_model")
