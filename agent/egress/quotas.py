"""Limits on what may still leave this silo: lines and bytes of the ledger, evaluations, splits.

Counted from the ledger's entries alone, so a restart forgets nothing. A coordinator that repeats rounds or makes up
runs without end costs the silo a bounded file, and gets a bounded number of evaluations.

Time is the wall clock's, as the entries have it, added up from entry to entry: a clock that is set back adds nothing
and takes nothing away. While the process runs, time passes by the monotonic clock at least.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from ...base.clock import DAY_S, parse_utc
from .entry import Entry

LINES, BYTES = 50_000, 64 << 20  # that may be written at once: a round a second for ten hours, at 1 to 1.7 KiB a line
LINES_PER_DAY, BYTES_PER_DAY = 5_000, 8 << 20  # that are added to what may be written, up to the above
LAST_SHARE = 0.02  # while less than this share of lines or bytes is left, a message is followed by a pause
REFUSAL_SHARE = 0.5  # refusals are written while more than this share of lines and bytes is left, so updates go first
HOUR_S = 3600.0  # at most one line in so many seconds says that there are too many
SPLITS = 5  # choices of held-out clips that may be evaluated within a month
MONTH_DAYS = 30


class Quotas:
    """The ledger's entries so far, as far as they bound what comes next."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._elapsed = 0.0  # seconds from the first entry to the last one
        self._wall: float | None = None  # seconds since 1970, of the last entry
        self._ticks = monotonic()  # when the last entry was counted
        self._lines, self._bytes = float(LINES), float(BYTES)
        self._last_size = 0  # bytes of the last line
        self._evaluated: deque[tuple[float, int, str]] = deque()  # when, how many models, with which split
        self._warned: float | None = None  # when the last line said that there are too many

    def note(self, entry: Entry, size: int, *, new: bool, live: bool) -> None:
        """Count an entry of ``size`` bytes; ``new``: its message had not left before; ``live``: it was written now."""
        now = self._now(entry.time, live=live)
        lines, room = self._left(now)
        self._lines, self._bytes = max(lines - 1, 0.0), max(room - size, 0.0)
        self._elapsed, self._ticks, self._last_size = now, self._monotonic(), size
        self._wall = parse_utc(entry.time).timestamp()
        if entry.evaluated_models and new:
            self._evaluated.append((now, entry.evaluated_models, entry.split))
        while self._evaluated and self._evaluated[0][0] <= now - MONTH_DAYS * DAY_S:
            self._evaluated.popleft()
        if entry.code == "too_many_messages":
            self._warned = now

    def has_room(self, size: int, now: str, *, refusal: bool = False) -> bool:
        """Return whether another line of ``size`` bytes may be written."""
        lines, room = self._left(self._now(now, live=True))
        if refusal:
            return lines - 1 >= REFUSAL_SHARE * LINES and room - size >= REFUSAL_SHARE * BYTES
        return lines >= 1 and room >= size

    def pause_s(self, now: str) -> float:
        """Return the pause after a message, in seconds: while little is left, as long as another line takes to come.

        So the quotas never end in the middle of a run that goes on for longer than they were made for.
        """
        lines, room = self._left(self._now(now, live=True))
        if lines > LAST_SHARE * LINES and room > LAST_SHARE * BYTES:
            return 0.0
        return DAY_S * max(1 / LINES_PER_DAY, self._last_size / BYTES_PER_DAY)

    def may_warn(self, now: str) -> bool:
        """Return whether a line may say again that there are too many."""
        return self._warned is None or self._now(now, live=True) - self._warned >= HOUR_S

    def evaluations(self, now: str, days: int = 1) -> int:
        """Return how many models' evaluations left within the last ``days``, at most ``MONTH_DAYS``."""
        since = self._now(now, live=True) - days * DAY_S
        return sum(models for when, models, _ in self._evaluated if when > since)

    def may_use_split(self, split: str, now: str) -> bool:
        """Return whether these held-out clips may be evaluated: they were lately, or few others were."""
        since = self._now(now, live=True) - MONTH_DAYS * DAY_S
        known = {used for when, _, used in self._evaluated if when > since}
        return split in known or len(known) < SPLITS

    def _now(self, text: str, *, live: bool) -> float:
        passed = 0.0 if self._wall is None else parse_utc(text).timestamp() - self._wall
        return self._elapsed + max(0.0, passed, self._monotonic() - self._ticks if live else 0.0)

    def _left(self, now: float) -> tuple[float, float]:
        """Return lines and bytes that may be written, with what the time since the last entry adds."""
        days = (now - self._elapsed) / DAY_S
        return min(LINES, self._lines + days * LINES_PER_DAY), min(BYTES, self._bytes + days * BYTES_PER_DAY)
