"""An attacker's connections and HTTP/2 frames, without the agent's client.

Frames are written by hand (RFC 9113, HPACK: RFC 7541), since no library writes wrong ones.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from flamest.experiments.raw_caller import PREFACE, SETTINGS, WINDOW_UPDATE, frame

CONTINUATION = 9
FRAME_BYTES = 16384
SERVICE = "/flamest.v1.Coordinator/"


@dataclass
class Attack:
    """The arguments of one attack, and its counts."""

    host: str
    port: int
    connections: int
    seconds: float
    rate: float
    tls: Path | None
    requests: list[bytes]  # of the calls, for example FetchRequests
    kind: str
    until: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, name: str, by: int = 1) -> None:
        with self.lock:
            self.counts[name] = self.counts.get(name, 0) + by

    @property
    def over(self) -> bool:
        return time.monotonic() > self.until

    def plain(self, source: str = "", receive_bytes: int = 0) -> socket.socket:
        """Return a new TCP connection, from the loopback address ``source``."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        made = socket.socket(family, socket.SOCK_STREAM)
        made.settimeout(10)
        if receive_bytes:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        if source:
            made.bind((source, 0))
        made.connect((self.host, self.port))
        self.count("connected")
        return made

    def secure(self, source: str = "", receive_bytes: int = 0) -> ssl.SSLSocket:
        """Return a new connection with the silo's certificate, after the handshake and HTTP/2's preface."""
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(self._tls / "ca.pem"))
        context.check_hostname = False
        context.load_cert_chain(self._tls / "silo.pem", self._tls / "silo.key")
        context.set_alpn_protocols(["h2"])
        made = context.wrap_socket(self.plain(source, receive_bytes), server_hostname="localhost")
        self.count("handshakes")
        window = struct.pack(">HI", 4, 0x7FFFFFFF)  # SETTINGS_INITIAL_WINDOW_SIZE: send me whatever you have
        made.sendall(PREFACE + frame(SETTINGS, 0, 0, window) + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 << 30)))
        return made

    @property
    def _tls(self) -> Path:
        assert self.tls is not None, "this attack needs --tls"
        return self.tls


def integer(value: int, bits: int, first: int = 0) -> bytes:
    """An HPACK integer with a prefix of ``bits``."""
    limit = (1 << bits) - 1
    if value < limit:
        return bytes([first | value])
    out, value = bytearray([first | limit]), value - limit
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def literal(name: bytes, value: bytes, *, indexed: bool = False) -> bytes:
    head = b"\x40" if indexed else b"\x00"
    return head + integer(len(name), 7) + name + integer(len(value), 7) + value


def call_headers(method: str, *, encoding: bytes = b"") -> bytes:
    """The header block of a gRPC call."""
    fields = [
        (b":method", b"POST"),
        (b":scheme", b"https"),
        (b":path", (SERVICE + method).encode()),
        (b":authority", b"localhost"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    ]
    if encoding:
        fields.append((b"grpc-encoding", encoding))
    return b"".join(literal(*each) for each in fields)


def message(payload: bytes, *, compressed: bool = False) -> bytes:
    return bytes([compressed]) + struct.pack(">I", len(payload)) + payload


def hold(attack: Attack, made: socket.socket) -> None:
    """Keep the connection until the other end closes it or time is up; what arrives is thrown away."""
    made.settimeout(0.5)
    while not attack.over:
        with contextlib.suppress(TimeoutError):
            if not made.recv(1 << 16):
                attack.count("closed")
                return


def send(attack: Attack, made: socket.socket, data: bytes) -> None:
    made.sendall(data)
    attack.count("bytes", len(data))


def drain(made: socket.socket) -> None:
    """Read what has arrived, without waiting; OSError at the end of the stream."""
    made.settimeout(0.001)
    try:
        if not made.recv(1 << 16):
            raise ConnectionResetError
    except (TimeoutError, ssl.SSLWantReadError):
        pass
    finally:
        made.settimeout(10)
