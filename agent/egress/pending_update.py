"""The update that is on its way out, as a file: after a crash the very same bytes are sent again, or nothing.

    STATE/outgoing.update       one line of JSON, then the values as they are sent

It is durable before the ledger's line is, and that before anything is sent. A later update takes its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from ...base.errors import DataError, StorageError
from ...base.files import sha256_bytes, write_atomic
from ...fedproto.codecs import Codec
from ...fedproto.head import HeadSpec
from ...fedproto.records import EncodedUpdate, Evaluation, Update
from ...fedproto.tensors import decode_params, encode_params
from .accountant import Spend

FILE = "outgoing.update"


@dataclass(frozen=True, eq=False)
class Outgoing:
    """An update, and under which circumstances this silo let it out."""

    run_sha256: str  # of the run's settings
    policy_sha256: str
    clips: int  # that it was trained on; the coordinator may be told another number
    spend: Spend | None
    update: Update


class _Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    run_sha256: str
    policy_sha256: str
    clips: int
    spend: Spend | None
    round: int
    base_sha256: str
    update_id: str
    examples: int
    codec: Codec
    codec_error: float
    evaluation: Evaluation | None
    shared: bool
    sha256: str  # of the values


def write_outgoing(state: Path, head: HeadSpec, outgoing: Outgoing) -> None:
    """Durable when it returns. Raises StorageError."""
    update = outgoing.update
    encoded = update.encoded
    payload = encode_params(head, update.params or {}) if encoded is None else encoded.payload
    told = _Head(
        run_sha256=outgoing.run_sha256,
        policy_sha256=outgoing.policy_sha256,
        clips=outgoing.clips,
        spend=outgoing.spend,
        round=update.round,
        base_sha256=update.base_sha256,
        update_id=update.update_id,
        examples=update.examples,
        codec=encoded.codec if encoded else "fp32",
        codec_error=encoded.error if encoded else 0.0,
        evaluation=update.evaluation,
        shared=update.shared,
        sha256=sha256_bytes(payload),
    )
    write_atomic(state / FILE, msgspec.json.encode(told) + b"\n" + payload, mode=0o600)


def read_outgoing(state: Path, head: HeadSpec) -> Outgoing | None:
    """What was on its way out; None when nothing was. Raises DataError (``damaged``), StorageError."""
    path = state / FILE
    try:
        first, _, payload = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    try:
        told = msgspec.json.decode(first, type=_Head)
    except msgspec.DecodeError as error:
        raise DataError(f"{path} is damaged: {error}", code="damaged") from error
    if sha256_bytes(payload) != told.sha256:
        raise DataError(f"{path} is damaged: its values are not the ones written", code="damaged")
    exact = told.codec == "fp32"
    update = Update(
        round=told.round,
        base_sha256=told.base_sha256,
        update_id=told.update_id,
        examples=told.examples,
        params=decode_params(head, payload, whose=str(path)) if exact else None,
        evaluation=told.evaluation,
        shared=told.shared,
        encoded=None if exact else EncodedUpdate(told.codec, payload, told.codec_error),
    )
    return Outgoing(told.run_sha256, told.policy_sha256, told.clips, told.spend, update)
