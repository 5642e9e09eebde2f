"""Behaviour that all commands share: one JSON object as the last line, errors with a fix, exit codes, signals."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, NoReturn, ParamSpec

from .environment import TRACEBACK
from .errors import FlamestError, Interrupted, MissingExtra, StorageError, interruption, printable
from .extras import extra_of_module
from .process import error_location

P = ParamSpec("P")
# A terminal sends Ctrl-C to a command and its parent, which ends the command too: that is one interruption.
REPEATED_S = 1.0


class _Interrupt(KeyboardInterrupt):
    """A signal as an exception.

    Python ends by SIGINT where a KeyboardInterrupt itself has left code given as text (``exec``), as dataclasses and
    PyTorch make it, whatever the exit code is: ``run_eval_code_obj`` in
    https://github.com/python/cpython/blob/3.11/Python/pythonrun.c. A class of its own is none.
    """


class _Interruption:
    """SIGINT and SIGTERM raise KeyboardInterrupt in the block, so that what is half done is removed and children end.

    A handler that the program has set already stays, as does a signal that it was started to ignore.
    """

    def __init__(self) -> None:
        self.signal = 0  # the one that came
        self._at = 0.0
        self._before: dict[int, Any] = {}

    def _raise(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal and now - self._at < REPEATED_S:
            return
        self.signal, self._at = number, now
        raise _Interrupt

    def __enter__(self) -> _Interruption:
        if threading.current_thread() is threading.main_thread():
            for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
                if signal.getsignal(number) == usual:
                    self._before[number] = signal.signal(number, self._raise)
        return self

    def __exit__(self, *_: object) -> None:
        for number, usual in self._before.items():
            signal.signal(number, usual)

    def error(self) -> Interrupted:
        name = "SIGTERM" if self.signal == signal.SIGTERM else "Ctrl-C (SIGINT)"
        return interruption(
            self.signal,
            f"stopped by {name} before it was done",
            fix="run the same command again: nothing half done is left",
        )


def command(function: Callable[P, Mapping[str, Any] | None]) -> Callable[P, None]:
    """Wrap the body of a command.

    The body returns its result as a mapping (or None). With ``--json`` (a parameter ``as_json`` of
    the body) the mapping is printed as one line, the last on stdout; a FlamestError becomes a
    message on stderr, an ``{"error": {code, message, fix}}`` line with ``--json``, and its exit code.
    SIGINT and SIGTERM end the body as an exception does, with 130 and 143; a daemon handles them itself
    (:class:`base.process.Shutdown`) and returns.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        as_json = bool(kwargs.get("as_json", False))
        signals = _Interruption()
        try:
            with signals:
                result = function(*args, **kwargs)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except KeyboardInterrupt:
            sys.exit(report_error(signals.error(), as_json=as_json))
        except Exception as error:
            # A library may make another error of a signal: an import, say, fails.
            sys.exit(_report(signals.error() if signals.signal else error, as_json=as_json))
        if as_json and result is not None:
            print(json.dumps(result, default=str), flush=True)

    return run


def _report(error: Exception, *, as_json: bool) -> int:
    """Report the error that ended a command; return the exit code. Raises an error that is none of ours."""
    if isinstance(error, FlamestError):
        return report_error(error, as_json=as_json)
    if isinstance(error, ModuleNotFoundError) and (missing := extra_of_module(error.name or "")):
        return report_error(MissingExtra(missing[0], extra=missing[1]), as_json=as_json)
    if isinstance(error, OSError):
        named = f"{error.filename}: " if error.filename else ""
        if TRACEBACK.value():
            traceback.print_exception(error)
        problem = StorageError(
            f"{named}{error.strerror or error}", fix="check that the path is right, its permissions and the free space"
        )
        return report_error(problem, as_json=as_json)
    if as_json:  # the person gets Python's traceback
        body = {"code": FlamestError.code, "message": error_location(error), "fix": "please report it"}
        print(json.dumps({"error": body, "exit_code": FlamestError.exit_code}), flush=True)
    raise error


def counted(number: int, noun: str) -> str:
    """Return ``1 update`` or ``20 updates``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def say(text: str) -> None:
    """Print a line for the person, its control characters escaped: names in it may come from elsewhere."""
    print(printable(text))


def report_error(error: FlamestError, *, as_json: bool) -> int:
    """Print ``error`` for the person (stderr) and, with ``as_json``, for a program (stdout); return its exit code."""
    print(f"error: {_printable_lines(error.message)}", file=sys.stderr)
    if error.fix:
        print(f"  fix: {_printable_lines(error.fix)}", file=sys.stderr)
    if as_json:
        body = {"code": error.code, "message": error.message, "fix": error.fix}
        print(json.dumps({"error": body, "exit_code": error.exit_code}), flush=True)
    return error.exit_code


def end_with(error: FlamestError, result: Mapping[str, Any], *, as_json: bool) -> NoReturn:
    """End a command that has a result and an error: the last line of ``--json`` is one object with both."""
    code = report_error(error, as_json=False)
    if as_json:
        body = {"code": error.code, "message": error.message, "fix": error.fix}
        print(json.dumps({**result, "error": body, "exit_code": code}, default=str), flush=True)
    sys.exit(code)


def _printable_lines(text: str) -> str:
    """Return ``text`` with control characters escaped, its line breaks kept.

    Only our own messages have line breaks: text from the other side has lost them (agent/client_errors.py).
    """
    return "\n".join(printable(line) for line in text.split("\n"))
