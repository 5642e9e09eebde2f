"""How a message is read strictly, and how pieces of a payload pass by protobuf."""

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
    """``message`` filled from ``data``; DataError (``malformed``), also for a field that is not known here."""
    from google.protobuf.message import DecodeError

    kind = message.DESCRIPTOR.name
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise malformed(kind, "it does not parse") from error
    size = message.ByteSize()
    message.DiscardUnknownFields()
    if message.ByteSize() != size:
        raise malformed(kind, "it has a field that this protocol does not know")
    return message


def malformed(kind: str, why: str) -> DataError:
    """The error for bytes that are not the message ``kind``."""
    return DataError(f"malformed {kind}: {why}", code="malformed")


def digest_hex(digest: bytes, length: int, name: str) -> str:
    """As hexadecimal digits; DataError (``malformed``) for another length."""
    if len(digest) != length:
        raise DataError(f"malformed message: {name} has {len(digest)} bytes, expected {length}", code="malformed")
    return digest.hex()


def milliseconds(seconds: float) -> int:
    """Rounded up, within what a field holds."""
    return min(max(math.ceil(seconds * 1000), 0), MAX_MS)


def codec_value(codec: Codec) -> Any:
    """The number of the enum."""
    from .. import flamest_v1_pb2 as pb

    return pb.Codec.Value(f"CODEC_{codec.upper()}")


def read_codec(value: Any) -> Codec:
    """The codec of an enum's number; DataError (``malformed``) for one without a name."""
    for codec in CODECS:
        if value == codec_value(codec):
            return codec
    raise DataError(f"codec {value} is not known here, expected one of {', '.join(CODECS)}", code="malformed")


# --- pieces of a payload: nearly all bytes of a round, so they are not copied through protobuf ---

_DATA_TAG = 0x12  # field 2, length-delimited: ``data`` of ModelPart and of UpdatePart


def encode_data(data: bytes | memoryview) -> bytes:
    """``Part(data=data).SerializeToString()``, in one copy."""
    size, length = len(data), bytearray((_DATA_TAG,))
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return b"".join((length, data))


def plain_data(raw: bytes) -> memoryview | None:
    """The piece in a message of exactly one ``data`` field, as a view; None for any other message."""
    if not raw or raw[0] != _DATA_TAG:
        return None
    size = shift = 0
    for place in range(1, min(len(raw), 6)):
        size |= (raw[place] & 0x7F) << shift
        shift += 7
        if raw[place] < 0x80:
            return memoryview(raw)[place + 1 :] if len(raw) - place - 1 == size else None
    return None
