"""Every error that FLAMeST raises on purpose, each with its exit code.

    FlamestError            1   something unexpected
    ├── UsageError          2   the command line asks for something impossible
    ├── DataError          65   a file, a bundle, a store or a message is not as expected
    ├── GraphError         65   a graph of a bundle failed as it ran, or took too long or too much
    ├── UnreachableError   69   the other side, or a hub, cannot be reached
    ├── InvariantError     70   an internal invariant is broken: a bug
    ├── StorageError       74   reading or writing failed: disk full, no permission
    ├── LockedError        75   another process has locked what this one needs
    ├── IdentityError      77   a certificate was refused
    ├── SettingsError      78   a settings file or the installation is wrong
    │   └── MissingExtra        a package of an optional extra is not installed
    └── Interrupted       130   Ctrl-C (SIGINT) ended a command before it was done; daemons end with 0
        └── Terminated    143   the same for SIGTERM, which kill, systemd and containers send

A message says who, what and what was expected; ``fix`` is the next command to type, or thing to do.
docs/reference/exit-codes.md lists the same codes for administrators.
"""

from __future__ import annotations

import signal
from typing import Any, ClassVar

from .extras import DISTRIBUTIONS, install_command


class FlamestError(Exception):
    """Base of all errors of this package.

    ``code`` is a stable machine-readable word, ``exit_code`` the status a command ends with,
    ``fix`` what the person can do about it (may be empty).
    """

    exit_code: ClassVar[int] = 1
    code: str = "unexpected"

    def __init__(self, message: str, *, fix: str = "", code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        if fix:
            self.add_note(f"fix: {fix}")  # shown in a traceback, as in a notebook
        if code is not None:
            self.code = code

    @property
    def with_fix(self) -> str:
        """Message and fix on one line, for a status or a log: ``the disk is full (fix: free some space)``."""
        return f"{self.message} (fix: {self.fix})" if self.fix else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors cross from the worker process to the daemon, whatever arguments their constructors have.
        return _rebuild, (type(self), self.__dict__)


def printable(text: str) -> str:
    """Return ``text`` with every character that is not printable escaped, newlines included.

    For text from elsewhere that goes into a message, a log or a terminal.
    """
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _rebuild(kind: type[FlamestError], fields: dict[str, Any]) -> FlamestError:
    error = kind.__new__(kind, fields["message"])
    error.__dict__.update(fields)
    return error


def error_of_kind(kind: str, message: str, *, fix: str, code: str) -> FlamestError:
    """Make an error of the class called ``kind``, whatever its constructor takes; FlamestError where there is none."""
    kinds = [FlamestError]
    for each in kinds:  # grows meanwhile
        kinds += each.__subclasses__()
    found = next((each for each in kinds if each.__name__ == kind), FlamestError)
    error = found.__new__(found, message)
    FlamestError.__init__(error, message, fix=fix, code=code)
    return error


class UsageError(FlamestError):
    exit_code = 2
    code = "usage"


class DataError(FlamestError):
    exit_code = 65
    code = "bad_data"


class GraphError(FlamestError):
    """Not a DataError: the next clip would meet the same graph, so it ends an extraction."""

    exit_code = 65
    code = "graph_failed"


class UnreachableError(FlamestError):
    exit_code = 69
    code = "unreachable"


class InvariantError(FlamestError):
    """A bug, so every one has the same fix."""

    exit_code = 70
    code = "invariant"

    def __init__(self, message: str, *, fix: str = "", code: str | None = None) -> None:
        super().__init__(message, fix=fix or "a bug: please report the command and this message", code=code)


class StorageError(FlamestError):
    exit_code = 74
    code = "storage"


class LockedError(FlamestError):
    exit_code = 75
    code = "locked"


class IdentityError(FlamestError):
    exit_code = 77
    code = "identity"


class SettingsError(FlamestError):
    exit_code = 78
    code = "settings"


class MissingExtra(SettingsError):
    """A package that this code needs is not installed.

    ``MissingExtra("onnxruntime", extra="agent")`` names the command that installs it, for the program that runs
    (extras.py); several extras are alternatives, one for each role that may come here.
    """

    code = "missing_extra"

    def __init__(self, package: str, *, extra: str | tuple[str, ...]) -> None:
        top = package.partition(".")[0]
        distribution = DISTRIBUTIONS.get(top, top)
        super().__init__(
            f"this needs the Python package '{distribution}', which is not installed",
            fix=install_command(distribution, extra),
        )


class Interrupted(FlamestError):
    """Not for daemons: being stopped is the way they end."""

    exit_code = 130
    code = "interrupted"


class Terminated(Interrupted):
    exit_code = 143
    code = "terminated"


def interruption(number: int, message: str, *, fix: str) -> Interrupted:
    """Return the error of a command that signal ``number``, SIGINT or SIGTERM, ended."""
    return (Terminated if number == signal.SIGTERM else Interrupted)(message, fix=fix)
