"""Records as protobuf messages, and back, strictly.

Handlers and clients see raw bytes and call these functions, so that a message that does not parse is
refused with a reason (gRPC alone would answer INTERNAL). Every decoder raises DataError
(``malformed``) for bytes that are not the message, unknown fields, digests of a wrong length, enum
values without a name and numbers out of range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ..base.errors import DataError
from .codecs import CODECS, Codec
from .records import Evaluation, Phase, Receipt, RunSettings, Standing, decode_run_settings

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from . import flamest_v1_pb2 as pb

M = TypeVar("M", bound="Message")
SHA256_BYTES = 32
UPDATE_ID_BYTES = 16
MAX_EXAMPLES = 1 << 31  # of one update; more is a mistake or an attack on the weights
MAX_TENSORS = 256
MAX_DIMS = 8
MAX_MS = (1 << 32) - 1


@dataclass(frozen=True)
class WaitRequest:
    settings_sha256: str
    answered_round: int  # the last round that the silo answered or declined, 0 for none
    max_wait_s: float


@dataclass(frozen=True)
class FetchRequest:
    settings_sha256: str
    round: int
    held_sha256: str = ""  # of the model that the silo has; empty: none


@dataclass(frozen=True)
class ModelHeader:
    round: int
    model_sha256: str
    payload_bytes: int  # 0: the silo has this model
    codec: Codec = "fp32"


@dataclass(frozen=True)
class UpdateHeader:
    """Everything of an update but its values."""

    settings_sha256: str
    round: int
    base_sha256: str
    update_id: str  # 32 hexadecimal digits
    examples: int
    shapes: tuple[tuple[int, ...], ...]  # by position in the head's tensor list
    payload_bytes: int
    payload_sha256: str
    evaluation: Evaluation | None
    codec: Codec = "fp32"
    codec_error: float = 0.0


# --- Join ---


def encode_join_request(protocol: int) -> bytes:
    from . import flamest_v1_pb2 as pb

    return pb.JoinRequest(protocol=protocol).SerializeToString()


def decode_join_request(data: bytes) -> int:
    from . import flamest_v1_pb2 as pb

    return _parse(pb.JoinRequest(), data).protocol


def encode_join_reply(protocol: int, settings: RunSettings) -> bytes:
    from . import flamest_v1_pb2 as pb

    reply = pb.JoinReply(protocol=protocol, settings=settings.encode(), settings_sha256=bytes.fromhex(settings.sha256))
    return reply.SerializeToString()


def decode_join_reply(data: bytes) -> tuple[int, RunSettings]:
    """Protocol and settings; DataError (``digest``) when the settings are not the ones hashed."""
    from . import flamest_v1_pb2 as pb

    reply = _parse(pb.JoinReply(), data)
    settings = decode_run_settings(reply.settings)
    if _hex(reply.settings_sha256, SHA256_BYTES, "settings_sha256") != settings.sha256:
        raise DataError("the run's settings do not have the digest that came with them", code="digest")
    return reply.protocol, settings


# --- WaitForRound ---


def encode_wait_request(request: WaitRequest) -> bytes:
    from . import flamest_v1_pb2 as pb

    return pb.WaitRequest(
        settings_sha256=bytes.fromhex(request.settings_sha256),
        answered_round=request.answered_round,
        max_wait_ms=_ms(request.max_wait_s),
    ).SerializeToString()


def decode_wait_request(data: bytes) -> WaitRequest:
    from . import flamest_v1_pb2 as pb

    request = _parse(pb.WaitRequest(), data)
    return WaitRequest(
        settings_sha256=_hex(request.settings_sha256, SHA256_BYTES, "settings_sha256"),
        answered_round=request.answered_round,
        max_wait_s=request.max_wait_ms / 1000,
    )


def encode_standing(standing: Standing) -> bytes:
    from . import flamest_v1_pb2 as pb

    return pb.WaitReply(
        phase=f"PHASE_{standing.phase.name}",
        round=standing.round,
        model_sha256=bytes.fromhex(standing.model_sha256),
        deadline_ms=_ms(standing.deadline_s),
        poll_after_ms=_ms(standing.poll_after_s),
        counted_round=standing.counted_round,
    ).SerializeToString()


def decode_standing(data: bytes) -> Standing:
    from . import flamest_v1_pb2 as pb

    reply = _parse(pb.WaitReply(), data)
    phases: dict[int, Phase] = {pb.Phase.Value(f"PHASE_{phase.name}"): phase for phase in Phase}
    if reply.phase not in phases:
        raise _malformed("WaitReply", f"phase {reply.phase} has no meaning")
    return Standing(
        phase=phases[reply.phase],
        round=reply.round,
        model_sha256=_hex(reply.model_sha256, SHA256_BYTES, "model_sha256"),
        deadline_s=reply.deadline_ms / 1000,
        poll_after_s=reply.poll_after_ms / 1000,
        counted_round=reply.counted_round,
    )


# --- FetchModel ---


def encode_fetch_request(request: FetchRequest) -> bytes:
    from . import flamest_v1_pb2 as pb

    digest, held = bytes.fromhex(request.settings_sha256), bytes.fromhex(request.held_sha256)
    return pb.FetchRequest(settings_sha256=digest, round=request.round, held_sha256=held).SerializeToString()


def decode_fetch_request(data: bytes) -> FetchRequest:
    from . import flamest_v1_pb2 as pb

    request = _parse(pb.FetchRequest(), data)
    held = _hex(request.held_sha256, SHA256_BYTES, "held_sha256") if request.held_sha256 else ""
    return FetchRequest(_hex(request.settings_sha256, SHA256_BYTES, "settings_sha256"), request.round, held)


def encode_model_header(header: ModelHeader) -> bytes:
    from . import flamest_v1_pb2 as pb

    message = pb.ModelHeader(
        round=header.round,
        model_sha256=bytes.fromhex(header.model_sha256),
        codec=_codec_value(header.codec),
        payload_bytes=header.payload_bytes,
    )
    return pb.ModelPart(header=message).SerializeToString()


def encode_model_data(data: bytes | memoryview) -> bytes:
    return _encode_data(data)


def decode_model_part(raw: bytes) -> ModelHeader | bytes | memoryview:
    """A header, or a piece of the payload."""
    if (data := _plain_data(raw)) is not None:
        return data
    from . import flamest_v1_pb2 as pb

    part = _parse(pb.ModelPart(), raw)
    which = part.WhichOneof("part")
    if which == "data":
        return part.data
    if which is None:
        raise _malformed("ModelPart", "it holds neither header nor data")
    header = part.header
    return ModelHeader(
        round=header.round,
        model_sha256=_hex(header.model_sha256, SHA256_BYTES, "model_sha256"),
        payload_bytes=header.payload_bytes,
        codec=_codec(header.codec),
    )


# --- SubmitUpdate ---


def encode_update_header(header: UpdateHeader) -> bytes:
    from . import flamest_v1_pb2 as pb

    message = pb.UpdateHeader(
        settings_sha256=bytes.fromhex(header.settings_sha256),
        round=header.round,
        base_sha256=bytes.fromhex(header.base_sha256),
        update_id=bytes.fromhex(header.update_id),
        examples=header.examples,
        codec=_codec_value(header.codec),
        codec_error=header.codec_error,
        tensors=[pb.TensorShape(index=index, dims=dims) for index, dims in enumerate(header.shapes)],
        payload_bytes=header.payload_bytes,
        payload_sha256=bytes.fromhex(header.payload_sha256),
    )
    if (told := header.evaluation) is not None:
        message.evaluation.CopyFrom(pb.Evaluation(loss=told.loss, correct=told.correct, count=told.count))
    return pb.UpdatePart(header=message).SerializeToString()


def encode_update_data(data: bytes | memoryview) -> bytes:
    return _encode_data(data)


def decode_update_part(raw: bytes) -> UpdateHeader | bytes | memoryview:
    """A header, checked for what can be checked without the run; or a piece of the payload.

    DataError codes besides ``malformed``: ``examples``, ``evaluation``.
    """
    if (data := _plain_data(raw)) is not None:
        return data
    from . import flamest_v1_pb2 as pb

    part = _parse(pb.UpdatePart(), raw)
    which = part.WhichOneof("part")
    if which == "data":
        return part.data
    if which is None:
        raise _malformed("UpdatePart", "it holds neither header nor data")
    header = part.header
    codec = _codec(header.codec)
    if not (math.isfinite(header.codec_error) and header.codec_error >= 0.0):
        raise _malformed("UpdateHeader", f"a codec error of {header.codec_error}")
    if not 1 <= header.examples < MAX_EXAMPLES:
        raise DataError(f"an update of {header.examples} examples, expected 1 to {MAX_EXAMPLES - 1}", code="examples")
    return UpdateHeader(
        settings_sha256=_hex(header.settings_sha256, SHA256_BYTES, "settings_sha256"),
        round=header.round,
        base_sha256=_hex(header.base_sha256, SHA256_BYTES, "base_sha256"),
        update_id=_hex(header.update_id, UPDATE_ID_BYTES, "update_id"),
        examples=header.examples,
        shapes=_shapes(header),
        payload_bytes=header.payload_bytes,
        payload_sha256=_hex(header.payload_sha256, SHA256_BYTES, "payload_sha256"),
        evaluation=_evaluation(header.evaluation) if header.HasField("evaluation") else None,
        codec=codec,
        codec_error=header.codec_error,
    )


def encode_receipt(receipt: Receipt) -> bytes:
    from . import flamest_v1_pb2 as pb

    return pb.Receipt(
        round=receipt.round,
        update_id=bytes.fromhex(receipt.update_id),
        payload_sha256=bytes.fromhex(receipt.sha256),
    ).SerializeToString()


def decode_receipt(data: bytes) -> Receipt:
    from . import flamest_v1_pb2 as pb

    receipt = _parse(pb.Receipt(), data)
    return Receipt(
        round=receipt.round,
        update_id=_hex(receipt.update_id, UPDATE_ID_BYTES, "update_id"),
        sha256=_hex(receipt.payload_sha256, SHA256_BYTES, "payload_sha256"),
    )


# --- pieces of a payload: nearly all bytes of a round, so they are not copied through protobuf ---

_DATA_TAG = 0x12  # field 2, length-delimited: ``data`` of ModelPart and of UpdatePart


def _encode_data(data: bytes | memoryview) -> bytes:
    """``Part(data=data).SerializeToString()``, in one copy."""
    size, length = len(data), bytearray((_DATA_TAG,))
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return b"".join((length, data))


def _plain_data(raw: bytes) -> memoryview | None:
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


# --- what they share ---


def _parse(message: M, data: bytes) -> M:
    from google.protobuf.message import DecodeError

    kind = message.DESCRIPTOR.name
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise _malformed(kind, "it does not parse") from error
    size = message.ByteSize()
    message.DiscardUnknownFields()
    if message.ByteSize() != size:
        raise _malformed(kind, "it has a field that this protocol does not know")
    return message


def _malformed(kind: str, why: str) -> DataError:
    return DataError(f"malformed {kind}: {why}", code="malformed")


def _hex(digest: bytes, length: int, name: str) -> str:
    if len(digest) != length:
        raise DataError(f"malformed message: {name} has {len(digest)} bytes, expected {length}", code="malformed")
    return digest.hex()


def _ms(seconds: float) -> int:
    return min(max(math.ceil(seconds * 1000), 0), MAX_MS)


def _codec_value(codec: Codec) -> Any:
    from . import flamest_v1_pb2 as pb

    return pb.Codec.Value(f"CODEC_{codec.upper()}")


def _codec(value: Any) -> Codec:
    for codec in CODECS:
        if value == _codec_value(codec):
            return codec
    raise DataError(f"codec {value} is not known here, expected one of {', '.join(CODECS)}", code="malformed")


def _shapes(header: pb.UpdateHeader) -> tuple[tuple[int, ...], ...]:
    if len(header.tensors) > MAX_TENSORS or any(len(tensor.dims) > MAX_DIMS for tensor in header.tensors):
        raise _malformed("UpdateHeader", f"expected at most {MAX_TENSORS} tensors of {MAX_DIMS} dimensions")
    if [tensor.index for tensor in header.tensors] != list(range(len(header.tensors))):
        raise _malformed("UpdateHeader", "its tensors are not numbered 0, 1, 2, …")
    return tuple(tuple(tensor.dims) for tensor in header.tensors)


def _evaluation(told: pb.Evaluation) -> Evaluation:
    if not (
        math.isfinite(told.loss) and told.loss >= 0 and told.correct <= told.count and 1 <= told.count < MAX_EXAMPLES
    ):
        raise DataError(
            f"an evaluation of loss {told.loss} with {told.correct} of {told.count} correct, "
            "expected a finite loss of at least 0 and no more correct than counted",
            code="evaluation",
        )
    return Evaluation(loss=told.loss, correct=told.correct, count=told.count)
