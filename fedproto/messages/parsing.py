"""Strict parsing of messages; pieces of a payload without protobuf's copies."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar

from ...base.errors import DataError
from ..codecs import CODECS, Codec

if TYPE_CHECKING:
    from google.protobuf.message import Message

M = TypeVar("M", bound="Message")
SHA256_BYTES = 32
UPDATE_ID_BYTES = 16
INSTANCE_BYTES = 16
MAX_MS = (1 << 32) - 1
MAX_EXAMPLES = 1 << 31  # of one update; more is a mistake or an attack on the weights


def parse(message: M, data: bytes) -> M:
    """Fill ``message`` from ``data``. Raises DataError (``malformed``), also for an unknown field."""
    from google.protobuf.message import DecodeError

    kind = message.DESCRIPTOR.name
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise malformed_error(kind, "it does not parse") from error
    size = message.ByteSize()
    message.DiscardUnknownFields()
    if message.ByteSize() != size:
        raise malformed_error(kind, "it has a field that this protocol does not know")
    return message


def malformed_error(kind: str, why: str) -> DataError:
    """Make the error for bytes that are not the message ``kind``."""
    return DataError(f"malformed {kind}: {why}", code="malformed")


def digest_hex(digest: bytes, length: int, name: str) -> str:
    """Return a digest as hexadecimal digits. Raises DataError (``malformed``) for another length."""
    if len(digest) != length:
        raise DataError(f"malformed message: {name} has {len(digest)} bytes, expected {length}", code="malformed")
    return digest.hex()


def milliseconds(seconds: float) -> int:
    """Return milliseconds, rounded up, within the range of the field."""
    return min(max(math.ceil(seconds * 1000), 0), MAX_MS)


def codec_value(codec: Codec) -> Any:
    """Return the number of a codec in the enum."""
    from .. import flamest_v1_pb2 as pb

    return pb.Codec.Value(f"CODEC_{codec.upper()}")


def read_codec(value: Any) -> Codec:
    """Return the codec of a number in the enum. Raises DataError (``malformed``) for an unknown one."""
    for codec in CODECS:
        if value == codec_value(codec):
            return codec
    raise DataError(f"codec {value} is unknown, expected one of {', '.join(CODECS)}", code="malformed")


# --- pieces of a payload: nearly all bytes of a round, so they are not copied through protobuf ---

_DATA_TAG = 0x12  # field 2, length-delimited: ``data`` of ModelPart and of UpdatePart


def encode_data(data: bytes | memoryview) -> bytes:
    """Return ``Part(data=data).SerializeToString()``, with a single copy of the data."""
    size, length = len(data), bytearray((_DATA_TAG,))
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return b"".join((length, data))


def plain_data(raw: bytes) -> memoryview | None:
    """Return the piece in a message of exactly one ``data`` field, as a view; None for any other message."""
    if not raw or raw[0] != _DATA_TAG:
        return None
    size = shift = 0
    for place in range(1, min(len(raw), 6)):
        size |= (raw[place] & 0x7F) << shift
        shift += 7
        if raw[place] < 0x80:
            return memoryview(raw)[place + 1 :] if len(raw) - place - 1 == size else None
    return None
