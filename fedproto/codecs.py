"""Lossy codecs with error feedback: the change of a model in fewer bytes. docs/reference/wire.md specifies the bytes.

A codec encodes the delta against a model that both sides have, flat: float32 [parameters] in the head's order.
The residual is what it leaves out; the sender adds it to its next delta (error feedback: Seide et al. 2014,
https://doi.org/10.21437/Interspeech.2014-274; Karimireddy et al. 2019, https://arxiv.org/abs/1901.09847), so that
nothing is lost for good. Decoding gives the same bits on every machine.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..base.errors import DataError
from .head import Params, TensorLayout, all_finite, split_params
from .tensors import payload_bytes

Codec = Literal["fp32", "fp16", "int8", "sparse_int8"]
CODECS: tuple[Codec, ...] = ("fp32", "fp16", "int8", "sparse_int8")  # from exact to coarse
SPARSE_SHARE = 0.1  # sparse_int8: share of the values that is sent, those of the largest magnitude
STEPS = 127  # int8: values are -127 … 127 times their scale
FP16_MAX = 65504.0
FlatParams = npt.NDArray[np.float32]  # [parameters], all tensors in the head's order


@dataclass(frozen=True, eq=False)
class EncodedDelta:
    """A delta as it goes over the wire, and what the codec left out of it."""

    payload: bytes
    decoded: FlatParams  # the delta that the receiver decodes
    residual: FlatParams  # what was left out: delta - decoded
    error: float  # norm of the residual over the norm of the delta; 0 for an empty delta


def more_exact(one: Codec, other: Codec) -> Codec:
    """Return the codec that loses less."""
    return min(one, other, key=CODECS.index)


def flatten_params(params: Mapping[str, npt.NDArray[np.floating[Any]]]) -> FlatParams:
    """Return all parameters as one flat array (a copy); ``head.split_params`` is its inverse."""
    return np.concatenate([np.asarray(tensor, np.float32).ravel() for tensor in params.values()])


def encode_delta(
    codec: Codec, spec: TensorLayout, params: Params, base: Params, residual: FlatParams | None
) -> EncodedDelta:
    """Encode ``params`` - ``base`` + ``residual``, where ``residual`` is what the sender's last encoding left out.

    Raises DataError (``not_finite``) when the difference is beyond float32.
    """
    delta = flatten_params(params)
    with np.errstate(over="ignore"):
        delta -= flatten_params(base)
        if residual is not None:
            delta += residual
    if not all_finite(delta):
        raise DataError("the update's difference from the round's model holds NaN or infinity", code="not_finite")
    payload = _ENCODE[codec](spec, delta)
    decoded = decode_delta(codec, spec, payload, whose="the encoded delta")
    residual = delta - decoded
    norm = float(np.linalg.norm(delta.astype(np.float64)))
    lost = float(np.linalg.norm(residual.astype(np.float64)))
    return EncodedDelta(payload, decoded, residual, lost / norm if norm > 0 else 0.0)


def apply_delta(codec: Codec, spec: TensorLayout, payload: bytes | memoryview, base: Params, *, whose: str) -> Params:
    """Return ``base`` plus an encoded delta: sender and receiver get the same bits.

    Raises DataError (``payload_size``, ``bad_codes``; ``not_finite`` when the sum is beyond float32).
    """
    return add_delta(spec, base, decode_delta(codec, spec, payload, whose=whose), whose=whose)


def add_delta(spec: TensorLayout, base: Params, delta: FlatParams, *, whose: str) -> Params:
    """Return ``base`` + ``delta`` in float32, read-only. Raises DataError (``not_finite``)."""
    with np.errstate(over="ignore"):
        values = flatten_params(base) + delta
    if not np.isfinite(values).all():
        raise DataError(f"{whose}: model plus delta holds NaN or infinity", code="not_finite")
    values.flags.writeable = False
    return split_params(spec, values)


def check_size(codec: Codec, spec: TensorLayout, size: int, *, whose: str) -> None:
    """Raise DataError (``payload_size``) for a size that no payload of this codec and head has."""
    least, most = size_bounds(codec, spec)
    if not least <= size <= most:
        expected = f"{least}" if least == most else f"{least} to {most}"
        raise DataError(f"{whose}: payload of {size} bytes, expected {expected}", code="payload_size")


def size_bounds(codec: Codec, spec: TensorLayout) -> tuple[int, int]:
    """Return the least and the most bytes of a payload."""
    whole = payload_bytes(spec)
    if codec == "fp32":
        return whole, whole
    if codec == "fp16":
        return whole // 2, whole // 2
    if codec == "int8":
        size = 4 * sum(_scale_count(shape) for shape in spec.shapes.values()) + spec.parameters
        return size, size
    head = 4 + 4 * len(spec.shapes)
    return head, head + 2 * spec.parameters + spec.parameters // 255


def decode_delta(codec: Codec, spec: TensorLayout, payload: bytes | memoryview, *, whose: str) -> FlatParams:
    """Return the delta in a payload. Raises DataError (``payload_size``, ``bad_codes``)."""
    check_size(codec, spec, len(payload), whose=whose)
    with np.errstate(over="ignore"):  # add_delta finds what is beyond float32
        return _DECODE[codec](spec, memoryview(payload), whose)


# --- fp16 ---


def _encode_fp16(_: TensorLayout, delta: FlatParams) -> bytes:
    return np.clip(delta, -FP16_MAX, FP16_MAX).astype("<f2").tobytes()


def _decode_fp16(_: TensorLayout, payload: memoryview, whose: str) -> FlatParams:
    delta = np.frombuffer(payload, "<f2").astype(np.float32)
    if not np.isfinite(delta).all():
        raise _bad_codes_error(whose, "a delta holds NaN or infinity")
    return delta


# --- int8: the scale of every row of every tensor, then every value as a multiple of its scale ---


def _encode_int8(spec: TensorLayout, delta: FlatParams) -> bytes:
    scales, values = [], []
    for tensor in split_params(spec, delta).values():
        rows = tensor.reshape(_scale_count(tensor.shape), -1)
        scale = (np.abs(rows).max(axis=1) / np.float32(STEPS)).astype(np.float32)
        scales.append(scale.astype("<f4").tobytes())
        values.append(_quantize(rows, scale[:, None]).tobytes())
    return b"".join((*scales, *values))


def _decode_int8(spec: TensorLayout, payload: memoryview, whose: str) -> FlatParams:
    count = sum(_scale_count(shape) for shape in spec.shapes.values())
    scales = _read_scales(payload[: 4 * count], whose)
    values = _read_steps(payload[4 * count :], whose)
    delta = np.empty(spec.parameters, np.float32)
    row = 0
    for tensor, steps in zip(split_params(spec, delta).values(), split_params(spec, values).values(), strict=True):
        rows = _scale_count(tensor.shape)
        np.multiply(steps.reshape(rows, -1), scales[row : row + rows, None], out=tensor.reshape(rows, -1))
        row += rows
    return delta


# --- sparse_int8: the number of values, a scale per tensor, the gaps between their positions, the values ---


def _encode_sparse(spec: TensorLayout, delta: FlatParams) -> bytes:
    magnitude = np.abs(delta)
    count = min(int(np.ceil(SPARSE_SHARE * spec.parameters)), int(np.count_nonzero(magnitude)))
    positions = np.sort(np.argpartition(magnitude, -count)[-count:]) if count else np.empty(0, np.int64)
    owner = np.searchsorted(_tensor_ends(spec), positions, side="right")
    scales = np.zeros(len(spec.shapes), np.float32)
    np.maximum.at(scales, owner, magnitude[positions])
    scales = (scales / np.float32(STEPS)).astype(np.float32)
    values = _quantize(delta[positions], scales[owner])
    head = struct.pack("<I", count) + scales.astype("<f4").tobytes()
    return head + _encode_gaps(positions) + values.tobytes()


def _decode_sparse(spec: TensorLayout, payload: memoryview, whose: str) -> FlatParams:
    (count,) = struct.unpack_from("<I", payload)
    start = 4 + 4 * len(spec.shapes)
    if count > len(payload) - start:
        raise _bad_codes_error(whose, f"{count} values in a payload of {len(payload)} bytes")
    scales = _read_scales(payload[4:start], whose)
    positions = _decode_gaps(payload[start : len(payload) - count], count, spec.parameters, whose)
    values = _read_steps(payload[len(payload) - count :], whose)
    delta = np.zeros(spec.parameters, np.float32)
    delta[positions] = values * scales[np.searchsorted(_tensor_ends(spec), positions, side="right")]
    return delta


def _encode_gaps(positions: npt.NDArray[np.int64]) -> bytes:
    """Encode the number of values skipped before each position: a byte below 255 ends a gap, 255 means "255 more"."""
    gaps = np.diff(positions, prepend=-1) - 1
    ends = np.cumsum(gaps // 255 + 1) - 1
    out = np.full(int(ends[-1]) + 1 if len(ends) else 0, 255, np.uint8)
    out[ends] = gaps % 255
    return out.tobytes()


def _decode_gaps(gaps: memoryview, count: int, parameters: int, whose: str) -> npt.NDArray[np.int64]:
    skipped = np.frombuffer(gaps, np.uint8)
    ends = np.flatnonzero(skipped < 255)
    if len(ends) != count or (len(skipped) and skipped[-1] == 255):
        raise _bad_codes_error(whose, f"{len(ends)} gaps for {count} values")
    positions = np.cumsum(skipped, dtype=np.int64)[ends] + np.arange(count)
    if count and positions[-1] >= parameters:
        raise _bad_codes_error(whose, f"a value at position {positions[-1]} of {parameters}")
    return positions


# --- shared by the codecs ---


def _scale_count(shape: tuple[int, ...]) -> int:
    """Number of scales of a tensor with int8: one per output of a weight, one for a bias."""
    return shape[0] if len(shape) > 1 else 1


def _tensor_ends(spec: TensorLayout) -> npt.NDArray[np.int64]:
    """Position after the last value of each tensor."""
    return np.cumsum([math.prod(shape) for shape in spec.shapes.values()])


def _quantize(values: FlatParams, scale: FlatParams) -> npt.NDArray[np.int8]:
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(scale > 0, values / scale, 0)
    return np.clip(np.rint(steps), -STEPS, STEPS).astype(np.int8)


def _read_scales(raw: memoryview, whose: str) -> FlatParams:
    scales = np.frombuffer(raw, "<f4").astype(np.float32)
    if not (np.isfinite(scales).all() and (scales >= 0).all()):
        raise _bad_codes_error(whose, "a scale is not finite, or below 0")
    return scales


def _read_steps(raw: memoryview, whose: str) -> npt.NDArray[Any]:
    values = np.frombuffer(raw, np.int8)
    if values.size and values.min() < -STEPS:
        raise _bad_codes_error(whose, "a value is -128")
    return values


def _bad_codes_error(whose: str, why: str) -> DataError:
    return DataError(f"{whose}: {why}", code="bad_codes")


_ENCODE = {"fp16": _encode_fp16, "int8": _encode_int8, "sparse_int8": _encode_sparse}
_DECODE = {"fp16": _decode_fp16, "int8": _decode_int8, "sparse_int8": _decode_sparse}
