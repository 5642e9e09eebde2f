"""Messages of SubmitUpdate: a header, then the update's bytes in pieces; answered with a receipt."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...base.errors import DataError
from ..codecs import Codec
from ..records import Evaluation, Receipt
from .evaluations import decode_evaluation, encode_evaluation
from .parsing import (
    MAX_EXAMPLES,
    SHA256_BYTES,
    UPDATE_ID_BYTES,
    codec_value,
    digest_hex,
    encode_data,
    malformed_error,
    parse,
    plain_data,
    read_codec,
)

if TYPE_CHECKING:
    from .. import flamest_v1_pb2 as pb

MAX_TENSORS = 256
MAX_DIMS = 8


@dataclass(frozen=True)
class UpdateHeader:
    """Everything in an update except its values."""

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
    shared: bool = False  # the silo agrees that other silos evaluate it


def encode_update_header(header: UpdateHeader) -> bytes:
    from .. import flamest_v1_pb2 as pb

    message = pb.UpdateHeader(
        settings_sha256=bytes.fromhex(header.settings_sha256),
        round=header.round,
        base_sha256=bytes.fromhex(header.base_sha256),
        update_id=bytes.fromhex(header.update_id),
        examples=header.examples,
        codec=codec_value(header.codec),
        codec_error=header.codec_error,
        tensors=[pb.TensorShape(index=index, dims=dims) for index, dims in enumerate(header.shapes)],
        payload_bytes=header.payload_bytes,
        payload_sha256=bytes.fromhex(header.payload_sha256),
        shared=header.shared,
    )
    if header.evaluation is not None:
        message.evaluation.CopyFrom(encode_evaluation(header.evaluation))
    return pb.UpdatePart(header=message).SerializeToString()


def encode_update_data(data: bytes | memoryview) -> bytes:
    return encode_data(data)


def decode_update_part(raw: bytes) -> UpdateHeader | bytes | memoryview:
    """Return a header, checked as far as possible without the run; or a piece of the payload.

    DataError codes besides ``malformed``: ``examples``, ``evaluation``.
    """
    if (data := plain_data(raw)) is not None:
        return data
    from .. import flamest_v1_pb2 as pb

    part = parse(pb.UpdatePart(), raw)
    which = part.WhichOneof("part")
    if which == "data":
        return part.data
    if which is None:
        raise malformed_error("UpdatePart", "it holds neither header nor data")
    header = part.header
    codec = read_codec(header.codec)
    if not (math.isfinite(header.codec_error) and header.codec_error >= 0.0):
        raise malformed_error("UpdateHeader", f"a codec error of {header.codec_error}")
    if not 1 <= header.examples < MAX_EXAMPLES:
        raise DataError(f"an update of {header.examples} examples, expected 1 to {MAX_EXAMPLES - 1}", code="examples")
    return UpdateHeader(
        settings_sha256=digest_hex(header.settings_sha256, SHA256_BYTES, "settings_sha256"),
        round=header.round,
        base_sha256=digest_hex(header.base_sha256, SHA256_BYTES, "base_sha256"),
        update_id=digest_hex(header.update_id, UPDATE_ID_BYTES, "update_id"),
        examples=header.examples,
        shapes=_shapes(header),
        payload_bytes=header.payload_bytes,
        payload_sha256=digest_hex(header.payload_sha256, SHA256_BYTES, "payload_sha256"),
        evaluation=decode_evaluation(header.evaluation) if header.HasField("evaluation") else None,
        codec=codec,
        codec_error=header.codec_error,
        shared=header.shared,
    )


def encode_receipt(receipt: Receipt) -> bytes:
    from .. import flamest_v1_pb2 as pb

    return pb.Receipt(
        round=receipt.round,
        update_id=bytes.fromhex(receipt.update_id),
        payload_sha256=bytes.fromhex(receipt.sha256),
    ).SerializeToString()


def decode_receipt(data: bytes) -> Receipt:
    from .. import flamest_v1_pb2 as pb

    receipt = parse(pb.Receipt(), data)
    return Receipt(
        round=receipt.round,
        update_id=digest_hex(receipt.update_id, UPDATE_ID_BYTES, "update_id"),
        sha256=digest_hex(receipt.payload_sha256, SHA256_BYTES, "payload_sha256"),
    )


def _shapes(header: pb.UpdateHeader) -> tuple[tuple[int, ...], ...]:
    if len(header.tensors) > MAX_TENSORS or any(len(tensor.dims) > MAX_DIMS for tensor in header.tensors):
        raise malformed_error("UpdateHeader", f"expected at most {MAX_TENSORS} tensors of {MAX_DIMS} dimensions")
    if [tensor.index for tensor in header.tensors] != list(range(len(header.tensors))):
        raise malformed_error("UpdateHeader", "its tensors are not numbered 0, 1, 2, …")
    return tuple(tuple(tensor.dims) for tensor in header.tensors)
