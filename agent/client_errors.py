"""What a failed call means for a silo: try again, give the work up, or ask a person."""

from __future__ import annotations

import socket
import ssl
import time
from typing import TYPE_CHECKING, cast

from ..base.errors import DataError, FlamestError, IdentityError, SettingsError, printable
from ..fedproto.channel import CODE_KEY
from ..fedproto.tls import TlsFiles

if TYPE_CHECKING:
    import grpc

PROBE_S = 5.0
PROBES = 3
PROBE_PAUSE_S = 0.4


class StaleUpdate(DataError):
    """The round has no use for this work any more; drop it and ask for the next.

    Codes: ``stale_round`` (closed, or not open), ``late`` (after the deadline), ``stale_base`` (trained
    from another model), ``already_answered`` (an earlier update of this silo stands).
    """

    code = "stale_round"


class RunChanged(DataError):
    """The coordinator serves another run, or other settings: join again."""

    code = "other_run"


class DuplicateIdentity(DataError):
    """Another agent speaks for this silo: the same certificate is in use on another machine, or in another folder."""

    code = "duplicate_identity"


class ClientStopped(FlamestError):
    """The call was given up because this process was asked to end."""

    code = "stopped"


def lasting_problem(error: grpc.RpcError, address: str) -> FlamestError | None:
    """The error to raise for a failed call, or None when trying again can help."""
    import grpc

    call = cast("grpc.Call", error)  # of a call, as every error here is
    status, said = call.code(), printable(call.details() or "")
    word = refusal_code(call)
    if status is grpc.StatusCode.FAILED_PRECONDITION:
        if word == RunChanged.code:
            return RunChanged(said)
        if word == "protocol":
            return DataError(said, fix="install the version that the coordinator names", code=word)
        return StaleUpdate(said, code=word)
    if status is grpc.StatusCode.ALREADY_EXISTS and word == DuplicateIdentity.code:
        return DuplicateIdentity(said, fix="end the other agent, or enrol this one under a name of its own")
    if status is grpc.StatusCode.ALREADY_EXISTS:
        return StaleUpdate(said, code="already_answered")
    if status is grpc.StatusCode.INVALID_ARGUMENT:
        return DataError(f"the coordinator refused the message: {said}", code=word or "refused")
    if status in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED):
        return IdentityError(
            f"the coordinator at {address} refused this silo: {said}",
            fix="ask the coordinator's operator: flamest-coordinator silo list",
            code=word or "refused_silo",
        )
    if status is grpc.StatusCode.UNIMPLEMENTED:
        return DataError(f"what listens at {address} is not a FLAMeST coordinator: {said}", code="protocol")
    return None


def refusal_code(call: grpc.Call) -> str | None:
    """The stable word that the coordinator put beside its message."""
    for key, value in call.trailing_metadata() or ():
        if key == CODE_KEY:
            return value.decode("ascii", "replace") if isinstance(value, bytes) else value
    return None


def split_address(address: str) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port``. Raises SettingsError."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise SettingsError(f"coordinator address '{address}': expected host:port, like fl.example.org:7443")
    return host, int(port)


def handshake_problem(address: str, files: TlsFiles) -> IdentityError | None:
    """Why the TLS handshake fails, which gRPC reports as "unavailable"; None when it does not, or no one answers.

    In TLS 1.3 a server looks at the client's certificate after the client's part of the handshake, and
    gRPC's closes without a word when it does not trust it. A coordinator that is just ending does the
    same once: only several times in a row count.
    """
    host, port = split_address(address)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cafile=files.ca)
        context.load_cert_chain(files.certificate, files.key)
        context.set_alpn_protocols(["h2"])
        for attempt in range(PROBES):
            time.sleep(PROBE_PAUSE_S if attempt else 0.0)
            if _is_greeted(context, host, port):
                return None
    except ssl.SSLCertVerificationError as error:
        return IdentityError(
            f"the certificate of what listens at {address} is not trusted: {error.verify_message}",
            fix="check the address, and that ca.pem is this coordinator's and its certificate names this host",
            code="server_certificate",
        )
    except OSError:  # ssl.SSLError is one; whatever else goes wrong is no matter of identity
        return None
    return IdentityError(
        f"the coordinator at {address} closes every connection on seeing this silo's certificate",
        fix="ask the coordinator's operator for a new certificate: flamest-coordinator silo renew, or silo add",
        code="refused_certificate",
    )


def _is_greeted(context: ssl.SSLContext, host: str, port: int) -> bool:
    """Whether the server goes on after the handshake: HTTP/2 lets it speak first."""
    with socket.create_connection((host, port), PROBE_S) as plain:
        with context.wrap_socket(plain, server_hostname=host) as secure:
            try:
                return secure.recv(1) != b""
            except (ssl.SSLError, ConnectionResetError):
                return False
