"""Parameters as the bytes of a payload, and back.

CODEC_FP32: every tensor of the head in its order, values little-endian float32, nothing between.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..base.errors import DataError
from .channel import CHUNK_BYTES
from .head import HeadSpec, Params, check_params, tensors_of

MAX_PAYLOAD_BYTES = 256 << 20  # a head of 67 million parameters; larger ones do not belong on this wire

Shapes = tuple[tuple[int, ...], ...]


def payload_bytes(spec: HeadSpec) -> int:
    """Size of the head's payload; DataError (``model_too_large``) above MAX_PAYLOAD_BYTES."""
    size = 4 * spec.parameters
    if not 0 < size <= MAX_PAYLOAD_BYTES:
        raise DataError(
            f"a head of {spec.parameters} parameters makes a payload of {size} bytes, "
            f"expected at most {MAX_PAYLOAD_BYTES}",
            code="model_too_large",
        )
    return size


def shapes(spec: HeadSpec) -> Shapes:
    """What an update's header says of its tensors: the shapes, by position."""
    return tuple(spec.shapes.values())


def check_shapes(spec: HeadSpec, told: Sequence[tuple[int, ...]], *, whose: str) -> None:
    """DataError (``tensor_shape``) unless ``told`` is the head's list of shapes."""
    if len(told) != len(spec.shapes):
        raise DataError(f"{whose}: {len(told)} tensors, expected {len(spec.shapes)}", code="tensor_names")
    for (name, expected), shape in zip(spec.shapes.items(), told, strict=True):
        if tuple(shape) != expected:
            raise DataError(f"{whose}: {name} is {list(shape)}, expected {list(expected)}", code="tensor_shape")


def encode_params(spec: HeadSpec, params: Params) -> bytes:
    """The payload; DataError when ``params`` is not the head's, float32 and finite."""
    return b"".join(param_bytes(spec, params))


def param_bytes(spec: HeadSpec, params: Params) -> list[memoryview]:
    """The payload as views of each tensor's bytes, nothing copied; DataError as ``encode_params``."""
    check_params(spec, params, whose="parameters to send")
    return [np.ascontiguousarray(tensor, dtype="<f4").data.cast("B") for tensor in params.values()]


def decode_params(spec: HeadSpec, payload: bytes | bytearray | memoryview, *, whose: str) -> Params:
    """The parameters as read-only views of ``payload``; nothing is copied.

    ``whose`` begins the message: ``update from silo 'b'``. DataError: ``payload_size`` when the
    length is not the head's, ``not_finite`` for NaN or infinity.
    """
    expected = payload_bytes(spec)
    if len(payload) != expected:
        raise DataError(f"{whose}: payload of {len(payload)} bytes, expected {expected}", code="payload_size")
    values = np.frombuffer(payload, dtype="<f4").astype(np.float32, copy=False)
    values.flags.writeable = False
    params = tensors_of(spec, values)
    check_params(spec, params, whose=whose)
    return params


def chunks(payload: bytes | memoryview, size: int = CHUNK_BYTES) -> Iterator[memoryview]:
    """The payload in pieces of ``size`` bytes, the last one shorter; views, nothing is copied."""
    view = memoryview(payload)
    for start in range(0, len(view), size):
        yield view[start : start + size]
