"""Behaviour that all commands share: one JSON object as the last line, errors with a fix, exit codes."""

from __future__ import annotations

import functools
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, ParamSpec

from .errors import FlamestError, StorageError, printable

P = ParamSpec("P")


def command(function: Callable[P, Mapping[str, Any] | None]) -> Callable[P, None]:
    """Wrap the body of a command.

    The body returns its result as a mapping (or None). With ``--json`` (a parameter ``as_json`` of
    the body) the mapping is printed as one line, the last on stdout; a FlamestError becomes a
    message on stderr, an ``{"error": {code, message, fix}}`` line with ``--json``, and its exit code.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        as_json = bool(kwargs.get("as_json", False))
        try:
            result = function(*args, **kwargs)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except FlamestError as error:
            sys.exit(report_error(error, as_json=as_json))
        except OSError as error:
            named = f"{error.filename}: " if error.filename else ""
            problem = StorageError(f"{named}{error.strerror or error}")
            if os.environ.get("FLAMEST_TRACEBACK"):
                traceback.print_exc()
            sys.exit(report_error(problem, as_json=as_json))
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


def _printable_lines(text: str) -> str:
    """Return ``text`` with control characters escaped, its line breaks kept.

    Only our own messages have line breaks: text from the other side has lost them (agent/client_errors.py).
    """
    return "\n".join(printable(line) for line in text.split("\n"))
