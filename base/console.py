"""Behaviour that all commands share: one JSON object as the last line, errors with a fix, exit codes, signals."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, NoReturn, ParamSpec

from .environment import TRACEBACK
from .errors import FlamestError, MissingExtra, StorageError, interruption, printable
from .extras import extra_of_module
from .process import error_location

P = ParamSpec("P")


class _Signalled(KeyboardInterrupt):
    """SIGTERM, raised like Ctrl-C: what has to be removed or ended at an exit is."""


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
        try:
            with _sigterm_raises():
                result = function(*args, **kwargs)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except KeyboardInterrupt as error:
            sys.exit(report_error(_interrupted(error), as_json=as_json))
        except FlamestError as error:
            sys.exit(report_error(error, as_json=as_json))
        except ModuleNotFoundError as error:
            if (missing := extra_of_module(error.name or "")) is None:
                _report_unexpected(error, as_json=as_json)
                raise
            sys.exit(report_error(MissingExtra(missing[0], extra=missing[1]), as_json=as_json))
        except OSError as error:
            named = f"{error.filename}: " if error.filename else ""
            problem = StorageError(
                f"{named}{error.strerror or error}",
                fix="check that the path is right, its permissions and the free space",
            )
            if TRACEBACK.value():
                traceback.print_exc()
            sys.exit(report_error(problem, as_json=as_json))
        except Exception as error:
            _report_unexpected(error, as_json=as_json)
            raise
        if as_json and result is not None:
            print(json.dumps(result, default=str), flush=True)

    return run


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


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Raise for SIGTERM in the block where it would end the process on the spot, as Python does for SIGINT."""

    def end(number: int, frame: FrameType | None) -> None:
        raise _Signalled

    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _interrupted(error: KeyboardInterrupt) -> FlamestError:
    number = signal.SIGTERM if isinstance(error, _Signalled) else signal.SIGINT
    name = "SIGTERM" if number == signal.SIGTERM else "Ctrl-C (SIGINT)"
    return interruption(
        number, f"stopped by {name} before it was done", fix="run the same command again; what was half done is removed"
    )


def _report_unexpected(error: Exception, *, as_json: bool) -> None:
    """Print an error that is none of ours for a program; the person gets Python's traceback."""
    if as_json:
        body = {"code": FlamestError.code, "message": error_location(error), "fix": "please report it"}
        print(json.dumps({"error": body, "exit_code": FlamestError.exit_code}), flush=True)


def _printable_lines(text: str) -> str:
    """Return ``text`` with control characters escaped, its line breaks kept.

    Only our own messages have line breaks: text from the other side has lost them (agent/client_errors.py).
    """
    return "\n".join(printable(line) for line in text.split("\n"))
