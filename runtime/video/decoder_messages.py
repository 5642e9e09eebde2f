"""What the extractor asks of the decoder process and what it answers.

A message is a fixed header (two little-endian integers: bytes of JSON, bytes of payload), the JSON
of one of the records below, and the payload: raw array values. The file to decode travels as an
open file descriptor beside the header of ``OpenClip``, so that the decoder never sees a name.
"""

from __future__ import annotations

import socket
import struct

import msgspec

from ..bundle.manifest import FramePreprocessing

HEADER = struct.Struct("<IQ")
LARGEST_JSON = 1 << 20  # bytes
BROKEN = "decoder_broken"  # the code of a refusal that is no clip's fault


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Strict and immutable; the JSON names its kind in ``type``."""


class OpenClip(_Message, frozen=True):
    """Decode the clip in the attached descriptor; answer with ``Opened`` or ``Refused``."""

    candidates: int
    preprocessing: FramePreprocessing
    largest_frame: int  # pixels
    held_bytes: int  # decoded frames may be kept up to this
    cpu_s: int  # processor seconds that the clip may take


class ReadFrames(_Message, frozen=True):
    """Give frames of the open clip at full size; answer with ``FramesRead`` or ``Refused``."""

    candidates: tuple[int, ...]  # numbers of candidates, not decreasing
    cpu_s: int


class Ready(_Message, frozen=True):
    """Said once, unasked, before the first request is read: PyAV is loaded and the limits are set."""


class Opened(_Message, frozen=True):
    """Payload: the candidates, float32 [N, 3, S, S], prepared for the keyframe graph."""

    t_s: tuple[float, ...]  # seconds from the first frame, one per candidate
    frames: int  # decoded in all
    warnings: tuple[str, ...]
    peak_kb: int


class FramesRead(_Message, frozen=True):
    """Payload: uint8 [count, height, width, 3], RGB."""

    count: int
    height: int
    width: int
    peak_kb: int


class Refused(_Message, frozen=True):
    """The clip cannot be used: a code and a sentence that follows the clip's name."""

    code: str
    message: str


Request = OpenClip | ReadFrames
Answer = Ready | Opened | FramesRead | Refused


def send(
    to: socket.socket, message: Request | Answer, payload: memoryview | bytes = b"", fd: int | None = None
) -> None:
    """Write one message; raises OSError when the other side is gone."""
    body = msgspec.json.encode(message)
    header = HEADER.pack(len(body), len(payload))
    if fd is None:
        to.sendall(header)
    else:
        socket.send_fds(to, [header], [fd])  # 12 bytes: never a part of them
    to.sendall(body)
    if len(payload):
        to.sendall(payload)


def receive_answer(source: socket.socket, largest_payload: int) -> tuple[Answer, bytearray]:
    """The decoder's next answer and its payload.

    Raises EOFError when the other side is gone, ValueError when what came is no such message, or
    its payload has more than ``largest_payload`` bytes.
    """
    body_bytes, payload_bytes = HEADER.unpack(_read(source, HEADER.size))
    if body_bytes > LARGEST_JSON or payload_bytes > largest_payload:
        raise ValueError(f"message of {body_bytes} + {payload_bytes} bytes, at most {LARGEST_JSON} + {largest_payload}")
    answer = msgspec.json.decode(_read(source, body_bytes), type=Answer)  # its ValidationError is a ValueError
    return answer, _read(source, payload_bytes)


def receive_request(source: socket.socket) -> tuple[Request, int | None]:
    """The extractor's next request and the file descriptor that came with it, if one did.

    Raises EOFError when the other side is gone.
    """
    header, descriptors, _, _ = socket.recv_fds(source, HEADER.size, 1)
    if not header:
        raise EOFError
    body_bytes, _ = HEADER.unpack(header + bytes(_read(source, HEADER.size - len(header))))
    request = msgspec.json.decode(_read(source, body_bytes), type=Request)
    return request, descriptors[0] if descriptors else None


def _read(source: socket.socket, count: int) -> bytearray:
    data = bytearray(count)
    view = memoryview(data)
    while view:
        got = source.recv_into(view)
        if not got:
            raise EOFError
        view = view[got:]
    return data
