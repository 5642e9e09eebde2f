"""The connection between a parent and its child process (child_process.py): messages, and the child's output.

A message is a header (two little-endian integers: bytes of JSON, bytes of payload), the JSON of one record, and the
payload. An open file descriptor may travel with the header.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import sys
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from .errors import FlamestError, error_of_kind

HEADER = struct.Struct("<IQ")
MAX_JSON_BYTES = 1 << 20  # bytes
OUTPUT_KEPT = 2000  # characters of a child's output that explain its end
_CHUNK = 1 << 16  # bytes; a pipe's size


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Base of all messages: strict and immutable; the JSON names its kind in ``type``."""


class Failed(Message, frozen=True):
    """A FlamestError of the child."""

    code: str
    message: str
    fix: str
    kind: str = "FlamestError"  # its class

    @classmethod
    def of(cls, error: FlamestError) -> Failed:
        return cls(error.code, error.message, error.fix, type(error).__name__)

    def error(self) -> FlamestError:
        """The error, of the same class, so that a command ends with the same status."""
        return error_of_kind(self.kind, self.message, fix=self.fix, code=self.code)


class Output:
    """The end of what a child wrote to stdout and stderr, read from a pipe."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe  # -1 once it has ended
        self._tail = bytearray()
        os.set_blocking(pipe, False)

    def drain(self, chunks: int = 16) -> None:
        """Read what is there now, at most ``chunks`` times a pipe's size, and keep its end."""
        for _ in range(chunks):
            if self.pipe < 0:
                return
            try:
                data = os.read(self.pipe, _CHUNK)
            except BlockingIOError:
                return
            self._tail += data
            del self._tail[: -4 * OUTPUT_KEPT]
            if not data:
                self.close()

    def close(self) -> str:
        """Close the pipe; the text that was kept."""
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1
        return self._tail.decode(errors="replace").strip()[-OUTPUT_KEPT:]


class Channel:
    """One end of the connection between parent and child. One thread at a time."""

    def __init__(self, connection: socket.socket, output: Output | None = None) -> None:
        self._connection = connection
        self._output = output

    @classmethod
    def to_parent(cls) -> Channel:
        """The child's end; its descriptor is the program's first argument."""
        return cls(socket.socket(fileno=int(sys.argv[1])))

    def send(
        self,
        message: Message,
        payload: memoryview | bytes = b"",
        *,
        descriptor: int | None = None,
        deadline: float | None = None,
    ) -> None:
        """Write one message. ``deadline``: on ``time.monotonic``; None waits for ever.

        Raises BrokenPipeError or ConnectionResetError when the other side is gone, TimeoutError when it does not read.
        """
        body = msgspec.json.encode(message)
        header = HEADER.pack(len(body), len(payload))
        if descriptor is None:
            self._write(header, deadline)
        else:
            self._wait(select.POLLOUT, deadline)
            socket.send_fds(self._connection, [header], [descriptor])  # 12 bytes are never sent in part
        self._write(body, deadline)
        self._write(payload, deadline)

    def receive(self, kind: Any, *, largest_payload: int = 0, deadline: float | None = None) -> tuple[Any, bytearray]:
        """The next message, decoded as ``kind`` (a record or a union of records), and its payload.

        ``deadline``: on ``time.monotonic``; None waits for ever. Raises EOFError when the other side is gone,
        TimeoutError, and ValueError for a message that is not of ``kind`` or larger than allowed.
        """
        return self._receive_rest(self._read(HEADER.size, deadline), kind, largest_payload, deadline)

    def receive_with_descriptor(self, kind: Any) -> tuple[Any, int | None]:
        """The next message and the file descriptor that came with it, if one did. Raises EOFError, ValueError."""
        self._wait(select.POLLIN, None)
        start, descriptors, _, _ = socket.recv_fds(self._connection, HEADER.size, 1)
        if not start:
            raise EOFError
        header = bytearray(start) + self._read(HEADER.size - len(start), None)
        message, _ = self._receive_rest(header, kind, 0, None)
        return message, descriptors[0] if descriptors else None

    def close(self) -> None:
        self._connection.close()

    def _receive_rest(
        self, header: bytearray, kind: Any, largest_payload: int, deadline: float | None
    ) -> tuple[Any, bytearray]:
        body, payload = HEADER.unpack(header)
        if body > MAX_JSON_BYTES or payload > largest_payload:
            raise ValueError(f"message of {body} + {payload} bytes, at most {MAX_JSON_BYTES} + {largest_payload}")
        try:
            message = msgspec.json.decode(self._read(body, deadline), type=kind)  # its ValidationError is a ValueError
        except RecursionError as error:
            raise ValueError("nested too deeply") from error
        return message, self._read(payload, deadline)

    def _read(self, count: int, deadline: float | None) -> bytearray:
        data = bytearray(count)
        view = memoryview(data)
        while view:
            try:
                got = self._connection.recv_into(view, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._wait(select.POLLIN, deadline)
                continue
            if not got:
                raise EOFError
            view = view[got:]
        return data

    def _write(self, data: memoryview | bytes, deadline: float | None) -> None:
        view = memoryview(data).cast("B")
        while view:
            try:
                view = view[self._connection.send(view, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                self._wait(select.POLLOUT, deadline)

    def _wait(self, event: int, deadline: float | None) -> None:
        """Wait until the connection is ready for ``event``; the child's output is read meanwhile."""
        while True:
            waiting = select.poll()
            waiting.register(self._connection, event)
            if self._output is not None and self._output.pipe >= 0:
                waiting.register(self._output.pipe, select.POLLIN)
            remaining = None if deadline is None else 1000 * (deadline - time.monotonic())
            ready = {handle for handle, _ in waiting.poll(remaining if remaining is None else max(0.0, remaining))}
            if self._connection.fileno() in ready:
                return
            if remaining is not None and remaining <= 0:
                raise TimeoutError
            if self._output is not None and ready:
                self._output.drain()


def ready_channels(channels: Sequence[Channel], timeout_s: float) -> list[Channel]:
    """The channels with something to receive, or whose other side is gone; waits for one at most ``timeout_s``.

    What the children write to stdout and stderr is read meanwhile.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        waiting, outputs = select.poll(), dict[int, Output]()
        for channel in channels:
            waiting.register(channel._connection, select.POLLIN)
            if channel._output is not None and channel._output.pipe >= 0:
                outputs[channel._output.pipe] = channel._output
                waiting.register(channel._output.pipe, select.POLLIN)
        handles = {handle for handle, _ in waiting.poll(max(0.0, 1000 * (deadline - time.monotonic())))}
        for handle in handles & outputs.keys():
            outputs[handle].drain()
        ready = [channel for channel in channels if channel._connection.fileno() in handles]
        if ready or time.monotonic() >= deadline:
            return ready
