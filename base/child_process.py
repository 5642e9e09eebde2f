"""Start a Python process of this package, exchange messages with it, bound its time and describe its end.

A decoder, a runtime or a compiled engine may crash, hang or keep gigabytes. It works in a child then: the child's end
is an answer like any other, and this process goes on.

Parent and child hold the two ends of a socket pair. A message is a header (two little-endian integers: bytes of JSON,
bytes of payload), the JSON of one record, and the payload. An open file descriptor may travel with the header. The
child's stdout and stderr are kept in memory, and their end explains a crash; with ``FLAMEST_TRACEBACK`` in the
environment they go to this process's stderr instead. When the parent ends, the child's connection does too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from .errors import FlamestError

HEADER = struct.Struct("<IQ")
MAX_JSON_BYTES = 1 << 20  # bytes
OUTPUT_KEPT = 2000  # characters of a child's output that explain its end
END_WITHIN_S = 2.0


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Base of all messages: strict and immutable; the JSON names its kind in ``type``."""


class Failed(Message, frozen=True):
    """A FlamestError of the child."""

    code: str
    message: str
    fix: str

    @classmethod
    def of(cls, error: FlamestError) -> Failed:
        return cls(error.code, error.message, error.fix)

    def error(self) -> FlamestError:
        return FlamestError(self.message, fix=self.fix, code=self.code)


class ChildEnded(Exception):
    """The child gave no answer: it ended by itself. ``str`` is for a message: "signal SIGSEGV: its last output"."""

    def __init__(self, reason: str, *, status: int | None = None, output: str = "") -> None:
        super().__init__(f"{reason}: {output}" if output else reason)
        self.reason = reason  # "signal SIGSEGV", "status 1", "no answer"
        self.status = status  # as subprocess has it: negative for a signal; None where this process ended the child
        self.output = output  # the end of what it wrote to stdout and stderr


class ChildTimeout(ChildEnded):
    """The child gave no answer in time and was killed."""


class ChildProtocolError(ChildEnded):
    """The child answered what cannot be, and was killed."""


class Channel:
    """One end of the connection between parent and child. One thread at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    @classmethod
    def to_parent(cls) -> Channel:
        """The child's end; its descriptor is the program's first argument."""
        return cls(socket.socket(fileno=int(sys.argv[1])))

    def send(self, message: Message, payload: memoryview | bytes = b"", *, descriptor: int | None = None) -> None:
        """Write one message. Raises BrokenPipeError or ConnectionResetError when the other side is gone."""
        body = msgspec.json.encode(message)
        header = HEADER.pack(len(body), len(payload))
        self._connection.settimeout(None)
        if descriptor is None:
            self._connection.sendall(header)
        else:
            socket.send_fds(self._connection, [header], [descriptor])  # 12 bytes are never sent in part
        self._connection.sendall(body)
        if len(payload):
            self._connection.sendall(payload)

    def receive(self, kind: Any, *, largest_payload: int = 0, deadline: float | None = None) -> tuple[Any, bytearray]:
        """The next message, decoded as ``kind`` (a record or a union of records), and its payload.

        ``deadline``: on ``time.monotonic``; None waits for ever. Raises EOFError when the other side is gone,
        TimeoutError, and ValueError for a message that is not of ``kind`` or larger than allowed.
        """
        return self._receive_rest(self._read(HEADER.size, deadline), kind, largest_payload, deadline)

    def receive_with_descriptor(self, kind: Any) -> tuple[Any, int | None]:
        """The next message and the file descriptor that came with it, if one did. Raises EOFError, ValueError."""
        self._connection.settimeout(None)
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
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                raise TimeoutError
            self._connection.settimeout(remaining)
            got = self._connection.recv_into(view)
            if not got:
                raise EOFError
            view = view[got:]
        return data


class ChildProcess:
    """A running child. One thread at a time; a context manager that ends it.

    ``program``: a module's dotted name, run with ``-m``, or a script's path. The program calls ``Channel.to_parent``;
    ``arguments`` follow the descriptor in its ``sys.argv``. ``isolated``: without site-packages and without the
    environment's Python settings, for a script that needs only the standard library and starts in 20 ms.
    Raises ChildEnded when it cannot be started.
    """

    def __init__(
        self,
        program: str | Path,
        *arguments: str,
        isolated: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        # -P: a file of a package's name in the current folder is not that package. -B: it writes no bytecode.
        flags = ["-I", "-S", "-B"] if isolated else ["-P", "-B"]
        run = [str(program)] if isinstance(program, Path) else ["-m", program]
        verbose = bool(os.environ.get("FLAMEST_TRACEBACK"))
        try:
            self._output = os.memfd_create("flamest-child-output")
        except OSError as error:
            raise _not_started(error) from error
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            os.close(self._output)
            raise _not_started(error) from error
        self.channel = Channel(ours)
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, *flags, *run, str(theirs.fileno()), *arguments],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=2 if verbose else self._output,
                    stderr=None if verbose else self._output,
                    env={**_environment(), **(environment or {})},
                )
        except OSError as error:
            self.channel.close()
            os.close(self._output)
            raise _not_started(error) from error

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def send(self, message: Message, *, descriptor: int | None = None) -> None:
        """Send a message. A child that is gone is reported by ``receive``, with its reason."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.channel.send(message, descriptor=descriptor)

    def receive(self, kind: Any, *, timeout_s: float | None = None, largest_payload: int = 0) -> tuple[Any, bytearray]:
        """The next message of ``kind`` and its payload. Raises ChildEnded, ChildTimeout or ChildProtocolError; the
        child is gone then."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            return self.channel.receive(kind, largest_payload=largest_payload, deadline=deadline)
        except TimeoutError as error:
            raise ChildTimeout(f"no answer within {timeout_s:g} s", output=self.kill()) from error
        except (EOFError, ConnectionError) as error:
            raise self._ended() from error
        except ValueError as error:
            self.kill()
            raise ChildProtocolError(f"an invalid answer: {error}") from error

    def close(self, *, within_s: float = END_WITHIN_S) -> None:
        """Close the connection, which asks the child to end; kill it after ``within_s``."""
        self.channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(within_s)
        self.kill()

    def kill(self) -> str:
        """End it at once; the end of its output."""
        self.channel.close()
        self._process.kill()
        self._process.wait()
        if self._output < 0:
            return ""
        start = max(0, os.fstat(self._output).st_size - 4 * OUTPUT_KEPT)
        output = os.pread(self._output, 4 * OUTPUT_KEPT, start).decode(errors="replace")
        os.close(self._output)
        self._output = -1
        return output.strip()[-OUTPUT_KEPT:]

    def __enter__(self) -> ChildProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.kill()

    def _ended(self) -> ChildEnded:
        """The child has closed its connection: its status, where it ends soon afterwards."""
        status = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self._process.wait(END_WITHIN_S)
        reason = describe_status(status) if status else "no answer"
        return ChildEnded(reason, status=status, output=self.kill())


def ask_child(
    program: str | Path,
    question: Message | None,
    kind: Any,
    *,
    timeout_s: float,
    arguments: tuple[str, ...] = (),
    isolated: bool = False,
) -> Any:
    """Start a child, send it ``question`` and return its one answer, of ``kind``. Raises ChildEnded."""
    with ChildProcess(program, *arguments, isolated=isolated) as child:
        if question is not None:
            child.send(question)
        answer, _ = child.receive(kind, timeout_s=timeout_s)
    return answer


def describe_status(status: int) -> str:
    """A process's exit status as subprocess has it, in words: "status 1", "signal SIGSEGV"."""
    if status >= 0:
        return f"status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"


def _not_started(error: OSError) -> ChildEnded:
    return ChildEnded(f"cannot start {sys.executable}: {error.strerror}")


def _environment() -> dict[str, str]:
    """This process's, with its import path: the child imports what this process imports, wherever it starts."""
    root = str(Path(__file__).resolve().parents[2])
    current = ""
    with contextlib.suppress(FileNotFoundError):  # a removed folder
        current = os.getcwd()
    chosen = os.environ.get("PYTHONPATH", "").split(os.pathsep)  # the current folder counts only when it is named
    known = [path for path in sys.path if path and (path != current or path in chosen)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys([*known, root]))}
