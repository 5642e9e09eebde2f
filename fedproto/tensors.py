"""The payload of the fp32 codec: a head's parameters as bytes, and back.

Every tensor of the head in its order, values little-endian float32, nothing between them (CODEC_FP32 of
flamest_v1.proto).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..base.errors import DataError
from .bounds import MAX_PARAMETERS
from .calls import CHUNK_BYTES
from .head import Params, TensorLayout, check_params, split_params

MAX_PAYLOAD_BYTES = 4 * MAX_PARAMETERS

Shapes = tuple[tuple[int, ...], ...]


def payload_bytes(spec: TensorLayout) -> int:
    """Return the size of the head's payload: at most ``MAX_PAYLOAD_BYTES``, as a ``HeadSpec`` is bounded."""
    return 4 * spec.parameters


def shapes(spec: TensorLayout) -> Shapes:
    """Return the shapes of the head's tensors by position, as an update's header lists them."""
    return tuple(spec.shapes.values())


def check_shapes(spec: TensorLayout, found: Sequence[tuple[int, ...]], *, whose: str) -> None:
    """Raise DataError (``tensor_names``, ``tensor_shape``) unless ``found`` is the head's list of shapes."""
    if len(found) != len(spec.shapes):
        raise DataError(f"{whose}: {len(found)} tensors, expected {len(spec.shapes)}", code="tensor_names")
    for (name, expected), shape in zip(spec.shapes.items(), found, strict=True):
        if tuple(shape) != expected:
            raise DataError(f"{whose}: {name} is {list(shape)}, expected {list(expected)}", code="tensor_shape")


def encode_params(spec: TensorLayout, params: Params) -> bytes:
    """Return the payload. Raises DataError as ``check_params``."""
    return b"".join(param_views(spec, params))


def param_views(spec: TensorLayout, params: Params) -> list[memoryview]:
    """Return the payload as views of each tensor's bytes; nothing is copied. Raises DataError as ``check_params``."""
    check_params(spec, params, whose="parameters to send")
    return [np.ascontiguousarray(tensor, dtype="<f4").data.cast("B") for tensor in params.values()]


def decode_params(spec: TensorLayout, payload: bytes | bytearray | memoryview, *, whose: str) -> Params:
    """Return the parameters as read-only views of ``payload``; nothing is copied.

    ``whose`` begins the message: ``update from silo 'b'``. Raises DataError: ``payload_size`` when the
    length is not the head's, ``not_finite`` for NaN or infinity.
    """
    expected = payload_bytes(spec)
    if len(payload) != expected:
        raise DataError(f"{whose}: payload of {len(payload)} bytes, expected {expected}", code="payload_size")
    values = np.frombuffer(payload, dtype="<f4").astype(np.float32, copy=False)
    values.flags.writeable = False
    params = split_params(spec, values)
    check_params(spec, params, whose=whose)
    return params


def chunks(payload: bytes | memoryview, size: int = CHUNK_BYTES) -> Iterator[memoryview]:
    """Yield the payload in pieces of ``size`` bytes, the last one shorter; views, nothing is copied."""
    view = memoryview(payload)
    for start in range(0, len(view), size):
        yield view[start : start + size]
