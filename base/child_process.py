"""Start a Python process of this package, exchange messages with it, bound its time and describe its end.

A decoder, a runtime or a compiled engine may crash, hang or keep gigabytes. It works in a child then: the child's end
is an answer like any other, and this process goes on.

Parent and child hold the two ends of a socket pair (channel.py). The child's stdout and stderr are a pipe, which is
read whenever this process waits for the child; the end of what came explains a crash, the rest is dropped. With
``FLAMEST_TRACEBACK`` in the environment they go to this process's stderr instead. When the parent ends, the child's
connection does too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from .channel import Channel, Message, Output
from .environment import PYTHON_PATH, TRACEBACK

END_WITHIN_S = 2.0
SEND_WITHIN_S = 60.0  # a child that has not read a message by then never will


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
        verbose = bool(TRACEBACK.value())
        try:
            read, written = os.pipe()
        except OSError as error:
            raise _not_started(error) from error
        self._output = Output(read)
        self._timeout: ChildTimeout | None = None  # a message that the child did not take
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            self._output.close()
            os.close(written)
            raise _not_started(error) from error
        self.channel = Channel(ours, self._output)
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, *flags, *run, str(theirs.fileno()), *arguments],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=2 if verbose else written,
                    stderr=None if verbose else written,
                    env={**child_environment(), **(environment or {})},
                )
        except OSError as error:
            self.channel.close()
            self._output.close()
            raise _not_started(error) from error
        finally:
            os.close(written)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def send(self, message: Message, *, descriptor: int | None = None, timeout_s: float = SEND_WITHIN_S) -> None:
        """Send a message. A child that is gone, or does not read it in time, is reported by ``receive``."""
        try:
            self.channel.send(message, descriptor=descriptor, deadline=time.monotonic() + timeout_s)
        except (BrokenPipeError, ConnectionResetError):
            pass
        except TimeoutError:
            self._timeout = ChildTimeout(f"it read no message within {timeout_s:g} s", output=self.kill())

    def receive(self, kind: Any, *, timeout_s: float | None = None, largest_payload: int = 0) -> tuple[Any, bytearray]:
        """The next message of ``kind`` and its payload. Raises ChildEnded, ChildTimeout or ChildProtocolError; the
        child is gone then."""
        if self._timeout is not None:
            raise self._timeout
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
        self._wait_for_end(within_s)
        self.kill()

    def interrupt(self) -> None:
        """Kill it from another thread than the one that waits for its answer, which then raises ChildEnded."""
        self._process.kill()

    def kill(self) -> str:
        """End it at once; the end of its output."""
        self.channel.close()
        self._process.kill()
        self._process.wait()
        self._output.drain()
        return self._output.close()

    def _wait_for_end(self, within_s: float) -> int | None:
        """The status of a child that ends in time; its output is read meanwhile, so that it can."""
        deadline = time.monotonic() + within_s
        while self._process.poll() is None and time.monotonic() < deadline:
            self._output.drain()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(min(0.1, within_s))
        return self._process.poll()

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
        status = self._wait_for_end(END_WITHIN_S)
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


def child_environment() -> dict[str, str]:
    """This process's, with its import path: the child imports what this process imports, wherever it starts."""
    root = str(Path(__file__).resolve().parents[2])
    current = ""
    with contextlib.suppress(FileNotFoundError):  # a removed folder
        current = os.getcwd()
    chosen = PYTHON_PATH.value().split(os.pathsep)  # the current folder counts only when it is named
    known = [path for path in sys.path if path and (path != current or path in chosen)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys([*known, root]))}
