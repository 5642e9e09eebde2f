"""Messages of Join and WaitForRound: a silo asks for the run's settings and for work."""

from __future__ import annotations

from dataclasses import dataclass

from ...base.errors import DataError
from ..bounds import POLL_S
from ..records import Phase, RunSettings, TaskStatus, decode_run_settings
from .parsing import INSTANCE_BYTES, SHA256_BYTES, digest_hex, malformed_error, milliseconds, parse


@dataclass(frozen=True)
class WaitRequest:
    """A silo's question for work."""

    settings_sha256: str
    answered_round: int  # the last round that the silo answered or declined, 0 for none
    max_wait_s: float
    instance: str = ""  # 32 hexadecimal digits; empty: the silo does not say


# --- Join ---


def encode_join_request(protocol: int) -> bytes:
    from .. import flamest_v1_pb2 as pb

    return pb.JoinRequest(protocol=protocol).SerializeToString()


def decode_join_request(data: bytes) -> int:
    from .. import flamest_v1_pb2 as pb

    return parse(pb.JoinRequest(), data).protocol


def encode_join_reply(protocol: int, settings: RunSettings) -> bytes:
    from .. import flamest_v1_pb2 as pb

    reply = pb.JoinReply(protocol=protocol, settings=settings.encode(), settings_sha256=bytes.fromhex(settings.sha256))
    return reply.SerializeToString()


def decode_join_reply(data: bytes) -> tuple[int, RunSettings]:
    """Return protocol and settings. Raises DataError (``digest``) when the settings do not have their digest."""
    from .. import flamest_v1_pb2 as pb

    reply = parse(pb.JoinReply(), data)
    settings = decode_run_settings(reply.settings)
    if digest_hex(reply.settings_sha256, SHA256_BYTES, "settings_sha256") != settings.sha256:
        raise DataError("the run's settings do not have the digest that came with them", code="digest")
    return reply.protocol, settings


# --- WaitForRound ---


def encode_wait_request(request: WaitRequest) -> bytes:
    from .. import flamest_v1_pb2 as pb

    return pb.WaitRequest(
        settings_sha256=bytes.fromhex(request.settings_sha256),
        answered_round=request.answered_round,
        max_wait_ms=milliseconds(request.max_wait_s),
        instance=bytes.fromhex(request.instance),
    ).SerializeToString()


def decode_wait_request(data: bytes) -> WaitRequest:
    from .. import flamest_v1_pb2 as pb

    request = parse(pb.WaitRequest(), data)
    return WaitRequest(
        settings_sha256=digest_hex(request.settings_sha256, SHA256_BYTES, "settings_sha256"),
        answered_round=request.answered_round,
        max_wait_s=request.max_wait_ms / 1000,
        instance=digest_hex(request.instance, INSTANCE_BYTES, "instance") if request.instance else "",
    )


def encode_task_status(status: TaskStatus) -> bytes:
    from .. import flamest_v1_pb2 as pb

    return pb.WaitReply(
        phase=f"PHASE_{status.phase.name}",
        round=status.round,
        model_sha256=bytes.fromhex(status.model_sha256),
        deadline_ms=milliseconds(status.deadline_s),
        poll_after_ms=milliseconds(status.poll_after_s),
        counted_round=status.counted_round,
        subjects=status.subjects,
        temperature=status.temperature,
    ).SerializeToString()


def decode_task_status(data: bytes, run: RunSettings) -> TaskStatus:
    """Decode an answer to a silo of ``run``; the pause and the time to the deadline are taken within their bounds.

    Raises DataError (``malformed``) for an answer that contradicts itself or the run.
    """
    from .. import flamest_v1_pb2 as pb

    reply = parse(pb.WaitReply(), data)
    phases: dict[int, Phase] = {pb.Phase.Value(f"PHASE_{phase.name}"): phase for phase in Phase}
    if reply.phase not in phases:
        raise malformed_error("WaitReply", f"phase {reply.phase} has no meaning")
    status = TaskStatus(
        phase=phases[reply.phase],
        round=reply.round,
        model_sha256=digest_hex(reply.model_sha256, SHA256_BYTES, "model_sha256"),
        deadline_s=min(reply.deadline_ms / 1000, run.deadline_s),
        poll_after_s=min(max(reply.poll_after_ms / 1000, POLL_S[0]), POLL_S[1]),
        counted_round=reply.counted_round,
        subjects=reply.subjects,
        temperature=reply.temperature,
    )
    if wrong := status.problems(run):
        raise malformed_error("WaitReply", "; ".join(wrong))
    return status
