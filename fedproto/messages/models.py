"""Messages of FetchModel: a header, then the model's bytes in pieces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from ..bounds import MAX_LABELS, shortened
from ..calibration import Calibration
from ..codecs import Codec
from .parsing import SHA256_BYTES, codec_value, digest_hex, encode_data, malformed_error, parse, plain_data, read_codec

if TYPE_CHECKING:
    from .. import flamest_v1_pb2 as pb


@dataclass(frozen=True)
class FetchRequest:
    settings_sha256: str
    round: int
    held_sha256: str = ""  # of the model that the silo has; empty: none
    subject: int = 0  # of a final evaluation: which model


@dataclass(frozen=True)
class ModelHeader:
    round: int
    model_sha256: str
    payload_bytes: int  # 0: the silo has this model
    codec: Codec = "fp32"
    calibration: Calibration | None = None  # of a run's final model


def encode_fetch_request(request: FetchRequest) -> bytes:
    from .. import flamest_v1_pb2 as pb

    digest, held = bytes.fromhex(request.settings_sha256), bytes.fromhex(request.held_sha256)
    asked = pb.FetchRequest(settings_sha256=digest, round=request.round, held_sha256=held, subject=request.subject)
    return asked.SerializeToString()


def decode_fetch_request(data: bytes) -> FetchRequest:
    from .. import flamest_v1_pb2 as pb

    request = parse(pb.FetchRequest(), data)
    held = digest_hex(request.held_sha256, SHA256_BYTES, "held_sha256") if request.held_sha256 else ""
    settings = digest_hex(request.settings_sha256, SHA256_BYTES, "settings_sha256")
    return FetchRequest(settings, request.round, held, request.subject)


def encode_model_header(header: ModelHeader) -> bytes:
    from .. import flamest_v1_pb2 as pb

    message = pb.ModelHeader(
        round=header.round,
        model_sha256=bytes.fromhex(header.model_sha256),
        codec=codec_value(header.codec),
        payload_bytes=header.payload_bytes,
        calibration=None if header.calibration is None else _calibration_message(header.calibration),
    )
    return pb.ModelPart(header=message).SerializeToString()


def encode_model_data(data: bytes | memoryview) -> bytes:
    return encode_data(data)


def decode_model_part(raw: bytes) -> ModelHeader | bytes | memoryview:
    """Return a header, or a piece of the payload."""
    if (data := plain_data(raw)) is not None:
        return data
    from .. import flamest_v1_pb2 as pb

    part = parse(pb.ModelPart(), raw)
    which = part.WhichOneof("part")
    if which == "data":
        return part.data
    if which is None:
        raise malformed_error("ModelPart", "it holds neither header nor data")
    header = part.header
    return ModelHeader(
        round=header.round,
        model_sha256=digest_hex(header.model_sha256, SHA256_BYTES, "model_sha256"),
        payload_bytes=header.payload_bytes,
        codec=read_codec(header.codec),
        calibration=_read_calibration(header.calibration) if header.HasField("calibration") else None,
    )


def _calibration_message(found: Calibration) -> pb.Calibration:
    from .. import flamest_v1_pb2 as pb

    return pb.Calibration(**msgspec.structs.asdict(found))


def _read_calibration(message: pb.Calibration) -> Calibration:
    """Return the calibration of a message. Raises DataError (``malformed``) for one that no model has."""
    if len(message.thresholds) > MAX_LABELS:
        raise malformed_error("Calibration", f"thresholds: {len(message.thresholds)}, expected at most {MAX_LABELS:,}")
    found = Calibration(
        temperature=message.temperature,
        thresholds=tuple(message.thresholds),
        coverage=message.coverage,
        softening=message.softening,
        clips=message.clips,
        classes=tuple(message.classes),
        silos=message.silos,
    )
    if problems := found.problems(len(found.thresholds)):
        raise malformed_error("Calibration", shortened("; ".join(problems)))
    return found
