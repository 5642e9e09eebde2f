"""Logs as events with fields: ``event=round_closed round=12 accepted=4 refused=1``.

One line per event on stderr, as logfmt or as JSON. No captions, labels, file names or tensor values at INFO: callers
log counts and identifiers only. A value is cut after ``MAX_VALUE`` characters, whoever it is from; events that others
can cause at will go through ``LimitedLog``.

Level and format: from the command line, else from the environment (environment.py), else from ``[log]`` of the
settings file.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from typing import Any, Literal, get_args

import msgspec

from .clock import utc_text
from .environment import LOG_FORMAT, LOG_LEVEL, Variable
from .errors import SettingsError
from .event_limiter import EventLimiter

_ROOT = logging.getLogger("flamest")
LIBRARIES = ("grpc", "asyncio")  # they log what their callers do, whole tracebacks a call
MAX_VALUE = 400  # characters of one value
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["logfmt", "json"]


class LogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[log] in agent.toml and coordinator.toml: the daemon's events on stderr."""

    level: LogLevel = "info"  # the least serious events to log: "debug", "info", "warning" or "error"
    format: LogFormat = "logfmt"  # "logfmt": key=value words; "json": one object a line, for a log collector


class Log:
    """Logger for the events of one part of the program: ``log = Log("coordinator")``."""

    def __init__(self, name: str) -> None:
        self._logger = _ROOT.getChild(name)

    def log(self, level: int, event: str, /, **fields: Any) -> None:
        """Log an event at a level of the module ``logging``."""
        self._logger.log(level, event, extra={"fields": fields})

    def debug(self, event: str, **fields: Any) -> None:
        self._logger.debug(event, extra={"fields": fields})

    def info(self, event: str, **fields: Any) -> None:
        self._logger.info(event, extra={"fields": fields})

    def warning(self, event: str, **fields: Any) -> None:
        self._logger.warning(event, extra={"fields": fields})

    def error(self, event: str, **fields: Any) -> None:
        self._logger.error(event, extra={"fields": fields})


class LimitedLog:
    """Logger for events that others can cause at will: the first of a kind at once, then how many there were.

    ``who``: the one whose events are counted together; not logged by itself.
    """

    def __init__(self, name: str) -> None:
        self._limiter = EventLimiter(Log(name).log)

    def info(self, event: str, *, who: str, **fields: Any) -> None:
        self._limiter.note(logging.INFO, event, who, fields)

    def warning(self, event: str, *, who: str, **fields: Any) -> None:
        self._limiter.note(logging.WARNING, event, who, fields)

    def error(self, event: str, *, who: str, **fields: Any) -> None:
        self._limiter.note(logging.ERROR, event, who, fields)


class _Libraries(logging.Handler):
    """Messages of libraries as events: an exception's type and place, no text, since that may be a caller's."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._log = LimitedLog("library")

    def emit(self, record: logging.LogRecord) -> None:
        fields = {"library": record.name, "code": f"{record.filename}:{record.lineno}"}
        if record.exc_info and record.exc_info[0] is not None:
            frames = traceback.extract_tb(record.exc_info[2])[-3:]
            places = ", ".join(f"{os.path.basename(frame.filename)}:{frame.lineno}" for frame in frames)
            fields |= {"error": record.exc_info[0].__name__, "at": places}
        self._log.warning("library_message", who=record.name, **fields)


def configure_logging(settings: LogSettings | None = None, *, level: LogLevel | None = None) -> LogSettings:
    """Send events of this process to stderr and return the level and format in use; call once, from a command.

    ``settings``: of the settings file; ``level``: of the command line. Raises SettingsError for a variable of the
    environment that is neither a level nor a format.
    """
    chosen = settings or LogSettings()
    chosen = LogSettings(
        level=level or _from_environment(LOG_LEVEL, LogLevel) or chosen.level,
        format=_from_environment(LOG_FORMAT, LogFormat) or chosen.format,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if chosen.format == "json" else _Logfmt())
    _ROOT.handlers[:] = [handler]
    _ROOT.setLevel(chosen.level.upper())
    _ROOT.propagate = False
    libraries = _Libraries()
    for name in LIBRARIES:
        logging.getLogger(name).handlers[:] = [libraries]
        logging.getLogger(name).propagate = False
    return chosen


def _from_environment(variable: Variable, kind: Any) -> Any:
    """Return the variable's value when it is a word of the Literal ``kind``; None when it is not set."""
    value = variable.value()
    if value and value not in get_args(kind):
        expected = " or ".join((", ".join(get_args(kind)[:-1]), get_args(kind)[-1]))
        raise SettingsError(
            f"{variable.name}={value} in the environment: expected {expected}",
            fix=f"unset {variable.name}, or set it to one of these",
        )
    return value or None


def _record_fields(record: logging.LogRecord) -> dict[str, Any]:
    stamp = f"{utc_text(record.created)[:-1]}.{int(record.msecs):03d}Z"
    part = record.name.removeprefix("flamest.")
    fields = {key: _cut(value) for key, value in getattr(record, "fields", {}).items()}
    return {"ts": stamp, "level": record.levelname.lower(), "part": part, "event": record.getMessage(), **fields}


def _cut(value: Any) -> Any:
    """Return a value that is short enough for a line."""
    text = str(value)
    return value if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}…"


class _Logfmt(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return " ".join(f"{key}={_logfmt_value(value)}" for key, value in _record_fields(record).items())


def _logfmt_value(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    needs_quotes = not text or any(c.isspace() or c in '="' or not c.isprintable() for c in text)
    return json.dumps(text) if needs_quotes else text


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_record_fields(record), default=str)
