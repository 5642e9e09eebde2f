"""A budget for what others can cause: a number at once, and one more every so often (a token bucket)."""

from __future__ import annotations


class Budget:
    """``most`` uses at first, and one more every ``every_s`` seconds, never more than ``most`` at once.

    It has no clock of its own. Not for more than one thread at a time.
    """

    def __init__(self, most: int, every_s: float) -> None:
        self._most, self._every_s = float(most), every_s
        self._left, self._at = float(most), 0.0

    def take(self, now: float) -> bool:
        """Return whether there is a use left at ``now`` (seconds of a monotonic clock), and count it."""
        self._left = min(self._most, self._left + max(now - self._at, 0.0) / self._every_s)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
