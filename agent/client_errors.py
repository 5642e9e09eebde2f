"""Errors of calls to the coordinator: which are worth a retry, which end the work, which need a person."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, cast

from ..base.errors import DataError, FlamestError, IdentityError, printable
from ..fedproto.bounds import shortened
from ..fedproto.calls import CODE_KEY

if TYPE_CHECKING:
    import grpc

DUPLICATE_FIX = (
    "end the other agent, or enrol this one under a name of its own; if the other has ended already, wait: this one "
    "takes over by itself within two minutes"
)
CODE = re.compile(r"[a-z][a-z0-9_]{0,39}")  # of a refusal


class StaleUpdate(DataError):
    """The round no longer needs this work; drop it and ask for the next round.

    Codes: ``stale_round`` (closed, or not open), ``late`` (after the deadline), ``stale_base`` (trained
    from another model), ``already_answered`` (the coordinator holds another update of this silo).
    """

    code = "stale_round"


class RunChanged(DataError):
    """The coordinator serves another run, or other settings: join again."""

    code = "other_run"


class DuplicateIdentity(DataError):
    """Another agent uses this silo's identity: the same certificate on another machine, or in another folder."""

    code = "duplicate_identity"


class ClientStopped(FlamestError):
    """The call was given up because this process was asked to end."""

    code = "stopped"


def permanent_error(error: grpc.RpcError, address: str) -> FlamestError | None:
    """Return the error to raise for a failed call, or None when a retry can help."""
    import grpc

    call = cast("grpc.Call", error)  # of a call, as every error here is
    status, details = call.code(), status_text(call)
    code = refusal_code(call)
    if status is grpc.StatusCode.FAILED_PRECONDITION:
        if code == RunChanged.code:
            return RunChanged(details)
        if code == "protocol":
            return DataError(details, fix="install the version that the coordinator names", code=code)
        return StaleUpdate(details, code=code)
    if status is grpc.StatusCode.ALREADY_EXISTS and code == DuplicateIdentity.code:
        return DuplicateIdentity(details, fix=DUPLICATE_FIX)
    if status is grpc.StatusCode.ALREADY_EXISTS:
        return StaleUpdate(details, code="already_answered")
    if status is grpc.StatusCode.INVALID_ARGUMENT:
        return DataError(
            f"the coordinator refused the message: {details}",
            fix="send this message to the coordinator's operator",
            code=code or "refused",
        )
    if status in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED):
        return IdentityError(
            f"the coordinator at {address} refused this silo: {details}",
            fix="ask the coordinator's operator: flamest-coordinator silo list",
            code=code or "refused_silo",
        )
    if status is grpc.StatusCode.UNIMPLEMENTED:
        return DataError(
            f"the server at {address} is not a FLAMeST coordinator: {details}",
            fix="check coordinator.address in agent.toml, and that both sides have the same version of flamest",
            code="protocol",
        )
    return None


def status_text(call: grpc.Call) -> str:
    """Return the coordinator's message with its status, short and printable: it goes to the log and the status."""
    return shortened(printable(shortened(call.details() or "")))


def refusal_code(call: grpc.Call) -> str | None:
    """Return the stable error code that the coordinator sent with its message; None for what is not one."""
    for key, value in call.trailing_metadata() or ():
        if key == CODE_KEY:
            text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
            return text if CODE.fullmatch(text) else None
    return None
