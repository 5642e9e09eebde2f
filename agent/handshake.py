"""The coordinator's address, this silo's TLS files, and the reason when a TLS handshake fails."""

from __future__ import annotations

import re
import shlex
import socket
import ssl
import time
from pathlib import Path

import msgspec

from ..base.errors import IdentityError, SettingsError
from ..fedproto.tls import TlsFiles

PROBE_TIMEOUT_S = 5.0
PROBES = 3
ADDRESS = re.compile(r"(?:\[(?P<v6>[\w:.%]+)\]|(?P<host>[^\s/:@\[\]]+)):(?P<port>[0-9]{1,5})")
PROBE_PAUSE_S = 0.4


class ConnectionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[coordinator] in agent.toml: the coordinator's address and this silo's identity."""

    address: str  # host:port
    ca: Path  # PEM, from the operator
    certificate: Path  # PEM, from the operator
    key: Path  # PEM, made here by keygen

    @property
    def files(self) -> TlsFiles:
        return TlsFiles(self.ca, self.certificate, self.key)


def key_warning(key: Path) -> str:
    """Return a sentence, with the fix, for a private key that other users of this machine can read; otherwise empty."""
    mode = key.stat().st_mode & 0o777
    if not mode & 0o077:
        return ""
    return f"{key} can be read by others (mode {mode:o}): chmod 600 {shlex.quote(str(key))}"


def split_address(address: str) -> tuple[str, int]:
    """Split ``host:port`` or ``[v6]:port``. Raises SettingsError, also for a URL: no scheme, no path."""
    found = ADDRESS.fullmatch(address)
    if found is None or not 0 < int(found["port"]) < 65536:
        raise SettingsError(
            f"coordinator address '{address}': expected host:port, like fl.example.org:7443",
            fix="set coordinator.address in agent.toml to the host and port that the operator named, without https://",
        )
    return found["v6"] or found["host"], int(found["port"])


def connection_problem(address: str) -> str | None:
    """Reason why no TCP connection to ``address`` opens, or None; nothing is sent over it. Raises SettingsError."""
    try:
        socket.create_connection(split_address(address), PROBE_TIMEOUT_S).close()
    except (OSError, UnicodeError) as error:
        return getattr(error, "strerror", None) or str(error)
    return None


def handshake_problem(address: str, files: TlsFiles) -> IdentityError | None:
    """Find out why the TLS handshake fails, which gRPC reports as "unavailable".

    Returns None when the handshake succeeds, or when no one answers. In TLS 1.3 a server checks the client's
    certificate after the client has finished its part of the handshake, and gRPC's server closes the connection
    without an alert when it does not trust it. A coordinator that is just stopping does the same once, so only
    several failures in a row count.
    """
    host, port = split_address(address)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cafile=files.ca)
        context.load_cert_chain(files.certificate, files.key)
        context.set_alpn_protocols(["h2"])
        for attempt in range(PROBES):
            time.sleep(PROBE_PAUSE_S if attempt else 0.0)
            if _server_answers(context, host, port):
                return None
    except ssl.SSLCertVerificationError as error:
        return IdentityError(
            f"the certificate of the server at {address} is not trusted: {error.verify_message}",
            fix="check the address, and that ca.pem is this coordinator's and its certificate names this host",
            code="server_certificate",
        )
    except OSError:  # ssl.SSLError is one; any other failure has nothing to do with identity
        return None
    return IdentityError(
        f"the coordinator at {address} closes every connection after it has seen this silo's certificate",
        fix="ask the coordinator's operator for a new certificate: flamest-coordinator silo renew, or silo add",
        code="refused_certificate",
    )


def _server_answers(context: ssl.SSLContext, host: str, port: int) -> bool:
    """Connect and return True when the server sends data after the handshake: in HTTP/2 it may send first."""
    with socket.create_connection((host, port), PROBE_TIMEOUT_S) as plain:
        with context.wrap_socket(plain, server_hostname=host) as secure:
            try:
                return secure.recv(1) != b""
            except (ssl.SSLError, ConnectionResetError):
                return False
