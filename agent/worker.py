"""A process for the heavy work, started when there is some and ended when idle.

The waiting daemon holds no video decoder, no runtime and no scikit-learn: they live here. A crash in
them ends this process, not the daemon. It uses multiprocessing and not base/child_process.py, because its tasks take
and return Python objects (settings, arrays, errors of any class), which JSON messages do not carry.
"""

from __future__ import annotations

import math
import multiprocessing
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Any, TypeVar

from ..base.errors import FlamestError
from ..base.process import Shutdown, error_location

T = TypeVar("T")
WATCH_EVERY_S = 0.2
END_WITHIN_S = 5.0


class WorkerCrashed(FlamestError):
    """The worker process ended in the middle of a task (memory, a broken decoder), or raised an unexpected error."""

    code = "worker_crashed"


class WorkStopped(FlamestError):
    """The daemon was asked to end while a task ran; the task's partial work is dropped."""

    code = "stopped"


class WorkExpired(FlamestError):
    """A task was not done by the time that it was given; its partial work is dropped."""

    code = "too_late"


class Worker:
    """Runs module-level functions in one spawned process, one at a time.

    ``idle_s``: seconds without a task after which ``rest`` ends the process.
    """

    def __init__(self, shutdown: Shutdown, *, idle_s: float = 60.0) -> None:
        self._shutdown = shutdown
        self._idle_s = idle_s
        self._process: SpawnProcess | None = None
        self._pipe: Connection[Any, Any] | None = None
        self._last_used = 0.0

    def call(
        self,
        function: Callable[..., T],
        *arguments: Any,
        until: float = math.inf,
        on_progress: Callable[[Any], None] = lambda _: None,
    ) -> T:
        """``function(*arguments)`` in the worker; its result, or its FlamestError, comes back.

        ``until``: on the clock of ``time.monotonic``. ``on_progress`` is called here with what the function gives to
        ``report_progress``. Raises WorkerCrashed when the process dies, WorkStopped when the daemon is asked to end,
        WorkExpired when there is no result by ``until``; the process is ended then.
        """
        pipe = self._started()
        try:
            pipe.send((function, arguments))
            succeeded = None
            while succeeded is None:
                if pipe.poll(WATCH_EVERY_S):
                    succeeded, result = pipe.recv()
                    if succeeded is None:
                        on_progress(result)
                if succeeded is None and self._shutdown.requested:
                    raise WorkStopped("asked to end while work was running")
                if succeeded is None and time.monotonic() >= until:
                    raise WorkExpired("the work was not done in the time that there was for it")
        except FlamestError:  # an error of ``on_progress`` too: the answer that is still to come must not be the next's
            self.close()
            raise
        except (EOFError, OSError) as error:
            status = self._process.exitcode if self._process else None
            self.close()
            raise WorkerCrashed(
                f"the worker process ended with status {status}",
                fix="if it stays, give the machine more memory or set [work] threads = 1; see the log before it",
            ) from error
        self._last_used = time.monotonic()
        if not succeeded:
            raise result
        value: T = result
        return value

    def rest(self) -> None:
        """Call now and then: ends the process when it has had nothing to do for ``idle_s``."""
        if self._process is not None and time.monotonic() - self._last_used > self._idle_s:
            self.close()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def _started(self) -> Connection[Any, Any]:
        if self._process is not None and self._pipe is not None and self._process.is_alive():
            return self._pipe
        self.close()
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), name="flamest-worker", daemon=True)
        self._process.start()
        theirs.close()
        self._pipe = ours
        return ours

    def close(self) -> None:
        """End the process, waiting at most a few seconds."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if self._process is not None:
            self._process.terminate()
            self._process.join(END_WITHIN_S)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
            self._process = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_daemon: Connection[Any, Any] | None = None  # in the worker process


def report_progress(progress: Any) -> None:
    """Send ``progress`` from a function in the worker to the ``on_progress`` of its call; elsewhere nothing happens."""
    if _daemon is not None:
        _daemon.send((None, progress))


def _serve(pipe: Connection[Any, Any]) -> None:
    """The worker's loop: until the daemon closes its end, or dies."""
    global _daemon
    _daemon = pipe
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the daemon, which ends us
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # so does this one, which asks it to read its files again
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while True:
        try:
            function, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer = (True, function(*arguments))
        except FlamestError as error:
            answer = (False, error)
        except MemoryError:
            answer = (
                False,
                WorkerCrashed(
                    "there is not enough memory for the work",
                    fix="give the machine more memory, or set [work] threads = 1",
                    code="out_of_memory",
                ),
            )
        except Exception as error:  # its message may hold data, and goes nowhere
            answer = (
                False,
                WorkerCrashed(f"the worker met an unexpected {error_location(error)}", fix="please report it"),
            )
        try:
            pipe.send(answer)
        except OSError:
            return
