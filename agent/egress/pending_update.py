"""The update that is being sent, as a file: after a crash the same bytes are sent again, or nothing.

    STATE/outgoing.update       one line of JSON, then the values as they are sent

The file is durable before the ledger's line is, and the line before anything is sent. A later update replaces it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ...base.errors import DataError, StorageError
from ...base.files import read_regular, sha256_bytes, write_atomic
from ...fedproto.codecs import Codec
from ...fedproto.head import HeadSpec
from ...fedproto.records import EncodedUpdate, Evaluation, Update
from ...fedproto.tensors import decode_params, encode_params, payload_bytes
from .accountant import Spend

PENDING_FILE = "outgoing.update"
MAX_HEADER = 1 << 20  # bytes of the line of JSON


@dataclass(frozen=True, eq=False)
class PendingUpdate:
    """An update that is ready to be sent, and what it was made for."""

    run_sha256: str  # of the run's settings
    policy_sha256: str
    clips: int  # that it was trained on; ``update.examples`` may be rounded
    spend: Spend | None  # of the privacy budget, with record-dp
    update: Update


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
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


def write_pending(state: Path, head: HeadSpec, pending: PendingUpdate) -> None:
    """Write the file, unless it holds this very update already; durable when it returns. Raises StorageError."""
    path, content = state / PENDING_FILE, _encode(head, pending)
    try:
        if read_regular(path, largest=len(content)) == content:
            return
    except (DataError, StorageError):  # there is none, or it is something else: it is replaced
        pass
    write_atomic(path, content, mode=0o600)


def _encode(head: HeadSpec, pending: PendingUpdate) -> bytes:
    update = pending.update
    encoded = update.encoded
    payload = encode_params(head, update.params or {}) if encoded is None else encoded.payload
    header = _Header(
        run_sha256=pending.run_sha256,
        policy_sha256=pending.policy_sha256,
        clips=pending.clips,
        spend=pending.spend,
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
    return msgspec.json.encode(header) + b"\n" + payload


def read_pending(state: Path, head: HeadSpec) -> PendingUpdate | None:
    """Read the last update that was to be sent, if any.

    Raises DataError (``damaged``; ``not_a_file`` or ``too_large`` for what cannot be it), StorageError.
    """
    path = state / PENDING_FILE
    if not os.path.lexists(path):
        return None
    first, _, payload = read_regular(path, largest=MAX_HEADER + payload_bytes(head)).partition(b"\n")
    try:
        header = msgspec.json.decode(first, type=_Header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(
            f"{path} is damaged: {error}", fix="nothing to do: the round is trained again, or left out", code="damaged"
        ) from error
    if sha256_bytes(payload) != header.sha256:
        raise DataError(
            f"{path} is damaged: its values do not match their hash",
            fix="nothing to do: the round is trained again, or left out",
            code="damaged",
        )
    exact = header.codec == "fp32"
    update = Update(
        round=header.round,
        base_sha256=header.base_sha256,
        update_id=header.update_id,
        examples=header.examples,
        params=decode_params(head, payload, whose=str(path)) if exact else None,
        evaluation=header.evaluation,
        shared=header.shared,
        encoded=None if exact else EncodedUpdate(header.codec, payload, header.codec_error),
    )
    return PendingUpdate(header.run_sha256, header.policy_sha256, header.clips, header.spend, update)
