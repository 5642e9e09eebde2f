"""The lossy codecs: a change of the model in fewer bytes. docs/wire.md specifies the bytes.

What is coded is a delta against a model that both sides have, as one row of float32 in the head's order.
What a codec leaves out is the residual; whoever codes adds it to the next delta (error feedback: Seide et al. 2014,
https://doi.org/10.21437/Interspeech.2014-274; Karimireddy et al. 2019, https://arxiv.org/abs/1901.09847), so that
nothing is lost for good. Decoding is the same on every machine, to the bit.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..base.errors import DataError
from .head import HeadSpec, Params, tensors_of
from .tensors import payload_bytes

Codec = Literal["fp32", "fp16", "int8", "sparse_int8"]
CODECS: tuple[Codec, ...] = ("fp32", "fp16", "int8", "sparse_int8")  # from exact to coarse
KEPT = 0.1  # sparse_int8: the share of values that is sent, those of the largest magnitude
STEPS = 127  # int8: values are -127 … 127 times their row's scale
FP16_MAX = 65504.0
Row = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Coded:
    """A delta as it goes over the wire, and what became of it."""

    payload: bytes
    decoded: Row  # float32 [parameters], what the other side reads
    residual: Row  # float32 [parameters], what was left out: wanted - decoded
    error: float  # norm of the residual over the norm of what was wanted; 0 for nothing


def more_exact(one: Codec, other: Codec) -> Codec:
    """The one that loses less."""
    return min(one, other, key=CODECS.index)


def row_of(params: Mapping[str, npt.NDArray[np.floating[Any]]]) -> Row:
    """All parameters in the head's order as one row (a copy)."""
    return np.concatenate([np.asarray(tensor, np.float32).ravel() for tensor in params.values()])


def code(codec: Codec, spec: HeadSpec, params: Params, base: Params, carried: Row | None) -> Coded:
    """``params`` - ``base`` and what the last coding left out (``carried``), coded."""
    wanted = row_of(params)
    wanted -= row_of(base)
    if carried is not None:
        wanted += carried
    payload = _ENCODE[codec](spec, wanted)
    decoded = decode_delta(codec, spec, payload, whose="what was just coded")
    residual = wanted - decoded
    norm = float(np.linalg.norm(wanted.astype(np.float64)))
    lost = float(np.linalg.norm(residual.astype(np.float64)))
    return Coded(payload, decoded, residual, lost / norm if norm > 0 else 0.0)


def apply(codec: Codec, spec: HeadSpec, payload: bytes | memoryview, base: Params, *, whose: str) -> Params:
    """``base`` moved by a coded delta: what sender and receiver agree on to the bit.

    Raises DataError (``payload_size``, ``bad_codes``; ``not_finite`` when the sum is beyond float32).
    """
    return moved(spec, base, decode_delta(codec, spec, payload, whose=whose), whose=whose)


def moved(spec: HeadSpec, base: Params, delta: Row, *, whose: str) -> Params:
    """``base`` + ``delta`` in float32. Raises DataError (``not_finite``)."""
    with np.errstate(over="ignore"):
        row = row_of(base) + delta
    if not np.isfinite(row).all():
        raise DataError(f"{whose}: the model moved by its delta holds NaN or infinity", code="not_finite")
    row.flags.writeable = False
    return tensors_of(spec, row)


def check_size(codec: Codec, spec: HeadSpec, size: int, *, whose: str) -> None:
    """DataError (``payload_size``) for a payload that this codec cannot make of this head."""
    least, most = size_bounds(codec, spec)
    if not least <= size <= most:
        expected = f"{least}" if least == most else f"{least} to {most}"
        raise DataError(f"{whose}: payload of {size} bytes, expected {expected}", code="payload_size")


def size_bounds(codec: Codec, spec: HeadSpec) -> tuple[int, int]:
    """Least and most bytes of a payload."""
    whole = payload_bytes(spec)
    if codec == "fp32":
        return whole, whole
    if codec == "fp16":
        return whole // 2, whole // 2
    if codec == "int8":
        size = 4 * sum(_rows(shape) for shape in spec.shapes.values()) + spec.parameters
        return size, size
    head = 4 + 4 * len(spec.shapes)
    return head, head + 2 * spec.parameters + spec.parameters // 255


def decode_delta(codec: Codec, spec: HeadSpec, payload: bytes | memoryview, *, whose: str) -> Row:
    """The delta in a payload, float32 [parameters]. Raises DataError (``payload_size``, ``bad_codes``)."""
    check_size(codec, spec, len(payload), whose=whose)
    with np.errstate(over="ignore"):  # what is beyond float32 is found where the delta is added
        return _DECODE[codec](spec, memoryview(payload), whose)


# --- fp16 ---


def _encode_fp16(_: HeadSpec, wanted: Row) -> bytes:
    return np.clip(wanted, -FP16_MAX, FP16_MAX).astype("<f2").tobytes()


def _decode_fp16(_: HeadSpec, payload: memoryview, whose: str) -> Row:
    delta = np.frombuffer(payload, "<f2").astype(np.float32)
    if not np.isfinite(delta).all():
        raise _bad(whose, "a delta holds NaN or infinity")
    return delta


# --- int8: the scales of every tensor's rows, then every value as a whole number of them ---


def _encode_int8(spec: HeadSpec, wanted: Row) -> bytes:
    scales, values = [], []
    for tensor in tensors_of(spec, wanted).values():
        rows = tensor.reshape(_rows(tensor.shape), -1)
        scale = (np.abs(rows).max(axis=1) / np.float32(STEPS)).astype(np.float32)
        scales.append(scale.astype("<f4").tobytes())
        values.append(_whole_steps(rows, scale[:, None]).tobytes())
    return b"".join((*scales, *values))


def _decode_int8(spec: HeadSpec, payload: memoryview, whose: str) -> Row:
    count = sum(_rows(shape) for shape in spec.shapes.values())
    scales = _scales(payload[: 4 * count], whose)
    values = _steps(payload[4 * count :], whose)
    delta = np.empty(spec.parameters, np.float32)
    row = 0
    for tensor, steps in zip(tensors_of(spec, delta).values(), tensors_of(spec, values).values(), strict=True):
        rows = _rows(tensor.shape)
        np.multiply(steps.reshape(rows, -1), scales[row : row + rows, None], out=tensor.reshape(rows, -1))
        row += rows
    return delta


# --- sparse_int8: how many values, a scale per tensor, the gaps between places, the values ---


def _encode_sparse(spec: HeadSpec, wanted: Row) -> bytes:
    magnitude = np.abs(wanted)
    count = min(int(np.ceil(KEPT * spec.parameters)), int(np.count_nonzero(magnitude)))
    places = np.sort(np.argpartition(magnitude, -count)[-count:]) if count else np.empty(0, np.int64)
    owner = np.searchsorted(_ends(spec), places, side="right")
    scales = np.zeros(len(spec.shapes), np.float32)
    np.maximum.at(scales, owner, magnitude[places])
    scales = (scales / np.float32(STEPS)).astype(np.float32)
    values = _whole_steps(wanted[places], scales[owner])
    head = struct.pack("<I", count) + scales.astype("<f4").tobytes()
    return head + _encode_gaps(places) + values.tobytes()


def _decode_sparse(spec: HeadSpec, payload: memoryview, whose: str) -> Row:
    (count,) = struct.unpack_from("<I", payload)
    start = 4 + 4 * len(spec.shapes)
    if count > len(payload) - start:
        raise _bad(whose, f"{count} values in a payload of {len(payload)} bytes")
    scales = _scales(payload[4:start], whose)
    places = _decode_gaps(payload[start : len(payload) - count], count, spec.parameters, whose)
    values = _steps(payload[len(payload) - count :], whose)
    delta = np.zeros(spec.parameters, np.float32)
    delta[places] = values * scales[np.searchsorted(_ends(spec), places, side="right")]
    return delta


def _encode_gaps(places: npt.NDArray[np.int64]) -> bytes:
    """Values skipped before each place: a byte below 255 ends a gap, 255 says "255 more"."""
    gaps = np.diff(places, prepend=-1) - 1
    ends = np.cumsum(gaps // 255 + 1) - 1
    out = np.full(int(ends[-1]) + 1 if len(ends) else 0, 255, np.uint8)
    out[ends] = gaps % 255
    return out.tobytes()


def _decode_gaps(gaps: memoryview, count: int, parameters: int, whose: str) -> npt.NDArray[np.int64]:
    skipped = np.frombuffer(gaps, np.uint8)
    ends = np.flatnonzero(skipped < 255)
    if len(ends) != count or (len(skipped) and skipped[-1] == 255):
        raise _bad(whose, f"{len(ends)} gaps for {count} values")
    places = np.cumsum(skipped, dtype=np.int64)[ends] + np.arange(count)
    if count and places[-1] >= parameters:
        raise _bad(whose, f"a value at place {places[-1]} of {parameters}")
    return places


# --- what they share ---


def _rows(shape: tuple[int, ...]) -> int:
    """How many scales a tensor has with int8: one per output of a weight, one for a bias."""
    return shape[0] if len(shape) > 1 else 1


def _ends(spec: HeadSpec) -> npt.NDArray[np.int64]:
    return np.cumsum([int(np.prod(shape)) for shape in spec.shapes.values()])


def _whole_steps(values: Row, scale: Row) -> npt.NDArray[np.int8]:
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(scale > 0, values / scale, 0)
    return np.clip(np.rint(steps), -STEPS, STEPS).astype(np.int8)


def _scales(raw: memoryview, whose: str) -> Row:
    scales = np.frombuffer(raw, "<f4").astype(np.float32)
    if not (np.isfinite(scales).all() and (scales >= 0).all()):
        raise _bad(whose, "a scale is not finite, or below 0")
    return scales


def _steps(raw: memoryview, whose: str) -> npt.NDArray[Any]:
    values = np.frombuffer(raw, np.int8)
    if values.size and values.min() < -STEPS:
        raise _bad(whose, "a value is -128")
    return values


def _bad(whose: str, why: str) -> DataError:
    return DataError(f"{whose}: {why}", code="bad_codes")


_ENCODE = {"fp16": _encode_fp16, "int8": _encode_int8, "sparse_int8": _encode_sparse}
_DECODE = {"fp16": _decode_fp16, "int8": _decode_int8, "sparse_int8": _decode_sparse}
