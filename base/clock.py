"""The wall clock: times as they are shown and stored, and whether the clock was moved.

Intervals and deadlines use ``time.monotonic()`` and never this module.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable

JUMP_S = 5.0  # less is an ordinary correction
DAY_S = 86400.0


def utc_now() -> datetime.datetime:
    """Return the current time, aware, in UTC."""
    return datetime.datetime.fromtimestamp(time.time(), datetime.UTC)


def utc_text(seconds: float | None = None) -> str:
    """Return ``2026-11-30T09:15:00Z`` for ``seconds`` since 1970; the current time without an argument."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() if seconds is None else seconds))


def utc_date() -> str:
    """Return today's date in UTC, ``2026-11-30``."""
    return utc_text()[:10]


def parse_utc(text: str) -> datetime.datetime:
    """Return the aware time that ``utc_text`` wrote, or one with another UTC offset. Raises ValueError."""
    return datetime.datetime.fromisoformat(text)


def days_until(moment: datetime.datetime) -> float:
    """Return the days from now to ``moment`` (aware); negative when it is past."""
    return (moment - utc_now()).total_seconds() / DAY_S


class ClockWatch:
    """Detects jumps of the wall clock by comparing it with the monotonic clock."""

    def __init__(self, wall: Callable[[], float] | None = None, monotonic: Callable[[], float] | None = None) -> None:
        """Start watching; ``wall`` and ``monotonic`` return seconds and default to the system's clocks."""
        self._wall = wall or (lambda: time.time())
        self._monotonic = monotonic or time.monotonic
        self._offset = self._wall() - self._monotonic()

    def jump(self) -> float:
        """Return the seconds that the wall clock jumped since the last call; 0 when it did not."""
        offset = self._wall() - self._monotonic()
        moved = offset - self._offset
        if abs(moved) < JUMP_S:
            return 0.0
        self._offset = offset
        return moved
