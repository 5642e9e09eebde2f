"""A caller that writes HTTP/2 frames by hand, for tests: it sends what no gRPC client sends, or nothing at all."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..agent.client import ConnectionSettings

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 2, 3, 4, 6, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
INITIAL_WINDOW = 4


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return an HTTP/2 frame (RFC 9113)."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header field without indexing, shorter than 127 bytes (HPACK)."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def call_headers(path: str) -> bytes:
    """Return the header block of a gRPC call."""
    fields = {
        b":method": b"POST",
        b":scheme": b"https",
        b":path": path.encode(),
        b":authority": b"localhost",
        b"te": b"trailers",
        b"content-type": b"application/grpc",
    }
    return b"".join(literal(*field) for field in fields.items())


def message(body: bytes) -> bytes:
    """Return a gRPC message with its prefix."""
    return b"\x00" + struct.pack(">I", len(body)) + body


class RawCaller:
    """A TLS connection with a silo's certificate, and the frames that came over it."""

    def __init__(self, target: ConnectionSettings, *, window: int = 0x7FFFFFFF, receive_bytes: int = 0) -> None:
        host, port = target.address.rsplit(":", 1)
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(target.ca))
        context.check_hostname = False
        context.load_cert_chain(target.certificate, target.key)
        context.set_alpn_protocols(["h2"])
        plain = socket.socket()
        if receive_bytes:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        plain.settimeout(20)
        plain.connect((host, int(port)))
        self.socket = context.wrap_socket(plain, server_hostname="localhost")
        self.next_stream = 1
        self._unread = b""
        settings = frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW, window))
        self.send(PREFACE + settings + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 << 30)))  # streams' windows only

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def open_stream(self, path: str, body: bytes = b"", *, end: bool = False, end_of_headers: bool = False) -> int:
        """Begin a call with what its stream carries; ``end``: half-close it."""
        stream, self.next_stream = self.next_stream, self.next_stream + 2
        frames = frame(HEADERS, END_HEADERS | (END_STREAM if end_of_headers else 0), stream, call_headers(path))
        if body or end:
            frames += frame(DATA, END_STREAM if end else 0, stream, body)
        self.send(frames)
        return stream

    def frames(self, seconds: float, *, until_kind: int | None = None) -> list[tuple[int, int, int, bytes]]:
        """Return the frames (kind, flags, stream, payload) that arrive within ``seconds``; fewer at the end.

        ``until_kind``: the first frame of this kind ends the wait.
        """
        found: list[tuple[int, int, int, bytes]] = []
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and until_kind not in {kind for kind, *_ in found}:
            self.socket.settimeout(left)
            try:
                data = self.socket.recv(1 << 16)
            except (TimeoutError, OSError):
                break
            if not data:
                break
            self._unread += data
            while len(self._unread) >= 9:
                size = int.from_bytes(self._unread[:3], "big")
                if len(self._unread) < 9 + size:
                    break
                head, payload = self._unread[:9], self._unread[9 : 9 + size]
                self._unread = self._unread[9 + size :]
                found.append((head[3], head[4], int.from_bytes(head[5:9], "big") & 0x7FFFFFFF, payload))
        return found

    def ended(self, seconds: float, *, count: int = 0) -> set[int]:
        """Return the streams that the server ended within ``seconds``; with ``count``, as soon as there are so many."""
        found: set[int] = set()
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and (not count or len(found) < count):
            found |= {
                stream
                for kind, flags, stream, _ in self.frames(min(left, 0.1) if count else left)
                if kind == RST_STREAM or (kind == HEADERS and flags & END_STREAM)
            }
        return found

    def is_cut(self, seconds: float) -> bool:
        """Return whether the server closes the connection within ``seconds``; what it sent is not read."""
        closed = select.poll()
        closed.register(self.socket, select.POLLRDHUP)  # a reset shows as well, asked for or not
        return bool(closed.poll(seconds * 1000))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.close()
