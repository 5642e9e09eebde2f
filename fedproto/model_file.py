"""``MODEL.safetensors``: a trained head with everything that is needed to use it.

The format is https://github.com/huggingface/safetensors#format, and any reader of it opens these files. Metadata (each
value one JSON text): ``flamest.format``, ``flamest.head``, ``flamest.labels``, ``flamest.fingerprint``,
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
from .certificates import require_package
from .head import HeadSpec, Params, check_params
from .tensors import MAX_PAYLOAD_BYTES, encode_params

T = TypeVar("T")
FORMAT = 1
MAX_HEADER_BYTES = 4 << 20
_PREFIX = "flamest."


@dataclass(frozen=True, eq=False)
class ModelFile:
    """Contents of a file."""

    head: HeadSpec
    params: Params
    labels: tuple[str, ...]  # class k is labels[k]
    fingerprint: str  # of the bundle whose features it was trained on
    run: str = ""  # of the federation; empty for a model trained locally
    round: int = 0  # after which it was made
    metadata: Mapping[str, str] = field(default_factory=dict)  # whatever else the writer knows


class _Header(msgspec.Struct):
    """The part of the JSON header that holds no tensors."""

    metadata: dict[str, str] = msgspec.field(name="__metadata__", default_factory=dict)


def write_model(path: Path, model: ModelFile) -> None:
    """Write ``model``, whole or not at all; the same model gives the same bytes.

    Raises DataError when params or labels do not fit the head, StorageError.
    """
    write_atomic(Path(path), encode_model(model))


def encode_model(model: ModelFile) -> bytes:
    """Return the file's content. Raises DataError when params or labels do not fit the head."""
    _check_labels(model.head, model.labels, "the model to write")
    payload = encode_params(model.head, model.params)
    metadata: dict[str, Any] = {
        "format": FORMAT,
        "head": model.head.as_dict(),
        "labels": model.labels,
        "fingerprint": model.fingerprint,
        "run": model.run,
        "round": model.round,
        "metadata": dict(sorted(model.metadata.items())),
    }
    # Not by the library's writer: its order of metadata keys changes from one process to the next.
    header: dict[str, Any] = {"__metadata__": {_PREFIX + key: json.dumps(value) for key, value in metadata.items()}}
    start = 0
    for name, shape in model.head.shapes.items():
        end = start + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the payload begins on a multiple of 8 bytes
    return struct.pack("<Q", len(text)) + text + payload


def read_model(path: Path) -> ModelFile:
    """Read a file that ``write_model`` made.

    The bytes are read by ordinary reads, so that a disk's error is an OSError, and bounded before the library parses
    them; its own checks refuse overlaps and gaps between tensors. Raises StorageError when the file cannot be read,
    DataError (``bad_model``) naming the broken rule, MissingExtra.
    """
    require_package("safetensors")
    from safetensors import SafetensorError, deserialize

    whose = str(path)
    try:
        with Path(path).open("rb") as file:
            data = file.read(8 + MAX_HEADER_BYTES + MAX_PAYLOAD_BYTES + 1)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    metadata = _metadata(data, whose)
    try:
        tensors = dict(deserialize(data))  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise _bad_model_error(whose, f"not a whole safetensors file ({error})") from error
    head, labels = _read_head(metadata, whose)
    _check_layout(head, tensors, whose)
    params = {
        name: np.frombuffer(tensors[name]["data"], "<f4").reshape(shape).copy() for name, shape in head.shapes.items()
    }
    try:
        check_params(head, params, whose=whose)
    except DataError as error:
        raise DataError(error.message, code="bad_model") from error
    return ModelFile(
        head=head,
        params=params,
        labels=labels,
        fingerprint=_decode_value(metadata, "fingerprint", str, whose),
        run=_decode_value(metadata, "run", str, whose),
        round=_decode_value(metadata, "round", int, whose),
        metadata=_decode_value(metadata, "metadata", dict[str, str], whose),
    )


def _metadata(data: bytes, whose: str) -> Mapping[str, str]:
    """``__metadata__`` of a file's header. Raises DataError for a header or a file of a size that no model has."""
    header = struct.unpack_from("<Q", data)[0] if len(data) >= 8 else 0
    if not 2 <= header <= min(MAX_HEADER_BYTES, len(data) - 8):
        problem = f"a header of {header} bytes in a file of {len(data)}; it is cut short, or not a safetensors file"
        raise _bad_model_error(whose, problem)
    if len(data) - 8 - header > MAX_PAYLOAD_BYTES:
        raise _bad_model_error(whose, f"more than {MAX_PAYLOAD_BYTES} bytes of tensors")
    try:
        return msgspec.json.decode(data[8 : 8 + header], type=_Header).metadata
    except (ValueError, RecursionError) as error:  # what msgspec raises for JSON and UTF-8
        raise _bad_model_error(whose, f"not a whole safetensors file ({error})") from error


def _read_head(metadata: Mapping[str, str], whose: str) -> tuple[HeadSpec, tuple[str, ...]]:
    """Return head and labels of a file in this version's format."""
    if _PREFIX + "format" not in metadata:
        problem = "no FLAMeST metadata, expected a model from flamest-agent train or flamest-coordinator model"
        raise _bad_model_error(whose, problem)
    if _decode_value(metadata, "format", int, whose) != FORMAT:
        raise _bad_model_error(whose, f"format {metadata[_PREFIX + 'format']}, this version reads {FORMAT}")
    head = _decode_value(metadata, "head", HeadSpec, whose)
    labels = _decode_value(metadata, "labels", tuple[str, ...], whose)
    _check_labels(head, labels, whose)
    return head, labels


def _decode_value(metadata: Mapping[str, str], key: str, kind: type[T], whose: str) -> T:
    text = metadata.get(_PREFIX + key)
    if text is None:
        raise _bad_model_error(whose, f"no metadata '{_PREFIX}{key}'")
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, DataError) as error:
        raise _bad_model_error(whose, f"metadata '{_PREFIX}{key}': {error}") from error


def _check_labels(head: HeadSpec, labels: tuple[str, ...], whose: str) -> None:
    if len(labels) != head.outputs:
        raise _bad_model_error(whose, f"{len(labels)} labels, its head has {head.outputs} outputs")


def _check_layout(head: HeadSpec, tensors: Mapping[str, Any], whose: str) -> None:
    """Raise unless a file holds exactly the head's tensors."""
    if set(tensors) != set(head.shapes):
        raise _bad_model_error(whose, f"tensors {sorted(tensors)}, expected {list(head.shapes)}")
    for name, shape in head.shapes.items():
        found = (tensors[name]["dtype"], tensors[name]["shape"])
        if found != ("F32", list(shape)):
            raise _bad_model_error(whose, f"{name} is {found[0]} {found[1]}, expected F32 {list(shape)}")


def _bad_model_error(whose: str, why: str) -> DataError:
    return DataError(f"{whose}: {why}", code="bad_model")
