"""Limit on the log lines of events that others can cause as often as they like, for example refused calls.

The first event of a kind is logged at once, those after it are counted, and every ``INTERVAL_S`` one line says how many
there were. All such lines of a process share one token bucket, so that a flood of ever new kinds writes no more than a
few megabytes a day either. Nothing is lost from the counts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from .token_bucket import TokenBucket

INTERVAL_S = 300.0  # between two lines of one kind
MAX_KINDS = 256  # that are distinguished at one time; further ones are counted together
BURST_LINES = 60  # of a process at once, and one more every LINE_S: 6,000 a day
LINE_S = 15.0


BUCKET = TokenBucket(BURST_LINES, LINE_S)  # lines of this process
_bucket_lock = threading.Lock()


class Write(Protocol):
    """Write one line to the log."""

    def __call__(self, level: int, event: str, /, **fields: Any) -> None: ...


@dataclass
class _Kind:
    """Events of one kind since ``since``, those that were logged left out."""

    since: float
    level: int
    fields: dict[str, Any]
    count: int = 0


class EventLimiter:
    """Passes events on to ``write``, a few lines of each kind. May be used by threads.

    Events are of one kind when they have the same name, the same ``who``, and the same field ``code``.
    """

    def __init__(
        self,
        write: Write,
        *,
        interval_s: float = INTERVAL_S,
        bucket: TokenBucket = BUCKET,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write
        self._interval_s = interval_s
        self._bucket = bucket
        self._clock = clock
        self._kinds: dict[tuple[str, str, str], _Kind] = {}
        self._checked = 0.0  # when the intervals were looked at
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def note(self, level: int, event: str, who: str, fields: dict[str, Any]) -> None:
        """Log the event, or count it."""
        key, now = (event, who, str(fields.get("code", ""))), self._clock()
        with self._lock:
            if key not in self._kinds and len(self._kinds) >= MAX_KINDS:
                key, fields = (event, "", ""), {"kinds": f"more than {MAX_KINDS}"}
            known = self._kinds.get(key)
            if known is None:
                known = self._kinds[key] = _Kind(now, level, fields)
                if self._may_write(now):
                    self._write(level, event, **fields)
                else:
                    known.count = 1
            else:
                known.count, known.level, known.fields = known.count + 1, level, fields
            self._flush_due(now)
            if self._timer is None:
                self._start_timer()

    def _may_write(self, now: float) -> bool:
        with _bucket_lock:
            return self._bucket.take(now)

    def _flush_due(self, now: float) -> None:
        """Log how many there were of each kind whose time has come; forget kinds of which there were none."""
        if now - self._checked < self._interval_s / 100:
            return
        self._checked = now
        for key in [key for key, kind in self._kinds.items() if now - kind.since >= self._interval_s]:
            kind = self._kinds[key]
            if not kind.count:
                del self._kinds[key]
            elif self._may_write(now):
                in_s = round(now - kind.since)
                self._write(kind.level, key[0], **kind.fields, repeated=kind.count, in_s=in_s)
                kind.since, kind.count = now, 0

    def _start_timer(self) -> None:
        """Look again after an interval: what was counted is logged even when the flood has ended."""
        self._timer = threading.Timer(self._interval_s, self._on_timer)
        self._timer.daemon = True
        self._timer.start()

    def _on_timer(self) -> None:
        with self._lock:
            self._timer = None
            self._flush_due(self._clock())
            if self._kinds:
                self._start_timer()
