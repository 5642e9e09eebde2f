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

    Sizes are bounded before the library reads anything; its own checks refuse overlaps and gaps between tensors.
    Raises StorageError when the file cannot be read, DataError (``bad_model``) naming the broken rule, MissingExtra.
    """
    require_package("safetensors")
    from safetensors import SafetensorError, safe_open

    whose = str(path)
    try:
        _check_sizes(Path(path), whose)
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            head, labels = _read_head(metadata, whose)
            _check_layout(head, file, whose)
            params = {name: np.asarray(file.get_tensor(name)) for name in head.shapes}
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise _bad_model_error(whose, f"not a whole safetensors file ({error})") from error
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


def _check_sizes(path: Path, whose: str) -> None:
    """Raise DataError for a header or a file that is larger than any model's, or cut short. Raises OSError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
    header = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= header <= min(MAX_HEADER_BYTES, size - 8):
        problem = f"a header of {header} bytes in a file of {size}; it is cut short, or not a safetensors file"
        raise _bad_model_error(whose, problem)
    if size - 8 - header > MAX_PAYLOAD_BYTES:
        raise _bad_model_error(whose, f"{size - 8 - header} bytes of tensors, expected at most {MAX_PAYLOAD_BYTES}")


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


def _check_layout(head: HeadSpec, file: Any, whose: str) -> None:
    """Raise unless an open file holds exactly the head's tensors."""
    names = set(file.keys())
    if names != set(head.shapes):
        raise _bad_model_error(whose, f"tensors {sorted(names)}, expected {list(head.shapes)}")
    for name, shape in head.shapes.items():
        tensor = file.get_slice(name)
        found = (tensor.get_dtype(), tensor.get_shape())
        if found != ("F32", list(shape)):
            raise _bad_model_error(whose, f"{name} is {found[0]} {found[1]}, expected F32 {list(shape)}")


def _bad_model_error(whose: str, why: str) -> DataError:
    return DataError(f"{whose}: {why}", code="bad_model")
