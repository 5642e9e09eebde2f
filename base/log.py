"""Logs as events with fields: ``event=round_closed round=12 accepted=4 refused=1``.

One line per event on stderr, as logfmt or (``FLAMEST_LOG=json``) as JSON. No captions, labels,
file names or tensor values at INFO: callers log counts and identifiers only.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any

from .clock import utc_text

_ROOT = logging.getLogger("flamest")


class Log:
    """Logger for the events of one part of the program: ``log = Log("coordinator")``."""

    def __init__(self, name: str) -> None:
        self._logger = _ROOT.getChild(name)

    def debug(self, event: str, **fields: Any) -> None:
        self._logger.debug(event, extra={"fields": fields})

    def info(self, event: str, **fields: Any) -> None:
        self._logger.info(event, extra={"fields": fields})

    def warning(self, event: str, **fields: Any) -> None:
        self._logger.warning(event, extra={"fields": fields})

    def error(self, event: str, **fields: Any) -> None:
        self._logger.error(event, extra={"fields": fields})


def configure_logging(*, level: str = "info") -> None:
    """Send events of this process to stderr; call once, from a command."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if os.environ.get("FLAMEST_LOG") == "json" else _Logfmt())
    _ROOT.handlers[:] = [handler]
    _ROOT.setLevel(level.upper())
    _ROOT.propagate = False


def _record_fields(record: logging.LogRecord) -> dict[str, Any]:
    stamp = f"{utc_text(record.created)[:-1]}.{int(record.msecs):03d}Z"
    part = record.name.removeprefix("flamest.")
    fields = getattr(record, "fields", {})
    return {"ts": stamp, "level": record.levelname.lower(), "part": part, "event": record.getMessage(), **fields}


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
