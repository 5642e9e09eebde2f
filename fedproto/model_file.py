"""``MODEL.safetensors``: a trained head with everything that is needed to use it.

The format is https://github.com/huggingface/safetensors#format, and any reader of it opens these files. Metadata (each
value one JSON text): ``flamest.format``, ``flamest.head``, ``flamest.labels``, ``flamest.fingerprint``,
``flamest.run``, ``flamest.round``, ``flamest.calibration`` where there is one, and the caller's own under
``flamest.metadata``.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from ..base.errors import DataError, printable
from ..base.files import printable_path, read_regular, write_atomic
from .bounds import (
    MAX_FINGERPRINT,
    MAX_ROUND_NUMBER,
    MAX_RUN_NAME,
    label_problems,
    name_problems,
    number_problems,
    shortened,
)
from .calibration import Calibration
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
    calibration: Calibration | None = None  # of its probabilities; None: made by nobody


class _Header(msgspec.Struct):
    """The part of the JSON header that holds no tensors."""

    metadata: dict[str, str] = msgspec.field(name="__metadata__", default_factory=dict)


class _Tensor(msgspec.Struct, forbid_unknown_fields=True):
    """A tensor in the JSON header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def write_model(path: Path, model: ModelFile) -> None:
    """Write ``model``, whole or not at all; the same model gives the same bytes.

    Raises DataError when params or labels do not fit the head, StorageError.
    """
    write_atomic(Path(path), encode_model(model))


def encode_model(model: ModelFile) -> bytes:
    """Return the file's content. Raises DataError when params or labels do not fit the head."""
    check_model(model)
    payload = encode_params(model.head, model.params)
    # Not by the library's writer: its order of metadata keys changes from one process to the next.
    header: dict[str, Any] = {"__metadata__": encode_metadata(model)}
    start = 0
    for name, shape in model.head.shapes.items():
        end = start + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the payload begins on a multiple of 8 bytes
    return struct.pack("<Q", len(text)) + text + payload


def check_model(model: ModelFile) -> None:
    """Raise DataError when a model cannot be written: its params or labels do not fit its head, or a name is bad."""
    _check_labels(model.head, model.labels, "the model to write")
    if problems := _problems(model):
        raise _bad_model_error("the model to write", "; ".join(problems))
    check_params(model.head, model.params, whose="the model to write")


def encode_metadata(model: ModelFile) -> dict[str, str]:
    """Return a file's metadata: everything but the tensors, each value one JSON text of ASCII characters."""
    metadata: dict[str, Any] = {
        "format": FORMAT,
        "head": model.head.as_dict(),
        "labels": model.labels,
        "fingerprint": model.fingerprint,
        "run": model.run,
        "round": model.round,
        "metadata": dict(sorted(model.metadata.items())),
    }
    if model.calibration is not None:
        metadata["calibration"] = msgspec.to_builtins(model.calibration)
    return {_PREFIX + key: json.dumps(value) for key, value in metadata.items()}


def read_model(path: Path) -> ModelFile:
    """Read a file that ``write_model`` made.

    Only a regular file of a size that a model can have is read. Its bytes come by ordinary reads, so that a disk's
    error is an OSError. The header is checked against the head before the library parses anything; the library's own
    checks refuse overlaps and gaps between tensors. Raises StorageError when the file cannot be read, DataError
    (``not_a_file``, ``too_large``; ``bad_model`` naming the broken rule), MissingExtra.
    """
    require_package("safetensors")
    from safetensors import SafetensorError, deserialize

    whose = printable_path(Path(path))
    data = read_regular(path, largest=8 + MAX_HEADER_BYTES + MAX_PAYLOAD_BYTES)
    metadata, layout = _read_header(data, whose)
    head, labels = _read_head(metadata, whose)
    _check_layout(head, layout, len(data), whose)
    fingerprint = _decode_value(metadata, "fingerprint", str, whose)
    calibrated = _PREFIX + "calibration" in metadata
    model = ModelFile(
        head=head,
        params={},
        labels=labels,
        fingerprint=fingerprint,
        run=_decode_value(metadata, "run", str, whose),
        round=_decode_value(metadata, "round", int, whose),
        metadata=_decode_value(metadata, "metadata", dict[str, str], whose),
        calibration=_decode_value(metadata, "calibration", Calibration, whose) if calibrated else None,
    )
    if problems := _problems(model):
        raise _bad_model_error(whose, "; ".join(problems))
    try:
        tensors = dict(deserialize(data))  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise _bad_model_error(whose, f"not a whole safetensors file ({error})") from error
    params = {
        name: np.frombuffer(tensors[name]["data"], "<f4").reshape(shape).copy() for name, shape in head.shapes.items()
    }
    try:
        check_params(head, params, whose=whose)
    except DataError as error:
        raise DataError(error.message, fix=error.fix, code="bad_model") from error
    return replace(model, params=params)


def _problems(model: ModelFile) -> list[str]:
    """Return what a model file cannot have, apart from its head and its tensors."""
    return [
        *label_problems(model.labels),
        *name_problems("fingerprint", model.fingerprint, MAX_FINGERPRINT),
        *(name_problems("run", model.run, MAX_RUN_NAME) if model.run else ()),
        *number_problems("round", model.round, 0, MAX_ROUND_NUMBER),
        *_calibration_problems(model),
    ]


def _calibration_problems(model: ModelFile) -> list[str]:
    found = model.calibration
    return [] if found is None else [f"calibration.{problem}" for problem in found.problems(model.head.outputs)]


def _read_header(data: bytes, whose: str) -> tuple[Mapping[str, str], Mapping[str, _Tensor]]:
    """Return ``__metadata__`` and the tensors of a file's header. Raises DataError (``bad_model``)."""
    header = struct.unpack_from("<Q", data)[0] if len(data) >= 8 else 0
    if not 2 <= header <= min(MAX_HEADER_BYTES, len(data) - 8):
        problem = f"a header of {header} bytes in a file of {len(data)}; it is cut short, or not a safetensors file"
        raise _bad_model_error(whose, problem)
    text = data[8 : 8 + header]
    try:
        metadata = msgspec.json.decode(text, type=_Header).metadata
        entries = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        entries.pop("__metadata__", None)
        layout = {name: msgspec.json.decode(entry, type=_Tensor) for name, entry in entries.items()}
    except (ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise _bad_model_error(whose, f"not a whole safetensors file ({error})") from error
    return metadata, layout


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
    except (ValueError, RecursionError, msgspec.MsgspecError, DataError) as error:
        raise _bad_model_error(whose, f"metadata '{_PREFIX}{key}': {error}") from error


def _check_labels(head: HeadSpec, labels: tuple[str, ...], whose: str) -> None:
    if len(labels) != head.outputs:
        raise _bad_model_error(whose, f"{len(labels)} labels, its head has {head.outputs} outputs")


def _check_layout(head: HeadSpec, layout: Mapping[str, _Tensor], size: int, whose: str) -> None:
    """Raise unless a file of ``size`` bytes holds exactly the head's tensors."""
    if set(layout) != set(head.shapes):
        raise _bad_model_error(whose, f"tensors {sorted(layout)}, expected {list(head.shapes)}")
    for name, shape in head.shapes.items():
        found = layout[name]
        start, end = found.data_offsets
        if (found.dtype, found.shape) != ("F32", shape) or not 0 <= start <= end <= size:
            raise _bad_model_error(whose, f"{name} is {found.dtype} {list(found.shape)}, expected F32 {list(shape)}")


def _bad_model_error(whose: str, why: str) -> DataError:
    return DataError(
        f"{whose}: {shortened(printable(shortened(why)))}",
        fix="copy the model again: flamest-coordinator model, or train it again",
        code="bad_model",
    )
