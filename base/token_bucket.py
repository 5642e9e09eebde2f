"""A token bucket: limits how often something may happen, with a burst at once and a steady rate afterwards."""

from __future__ import annotations


class TokenBucket:
    """``burst`` tokens at first, and one more every ``every_s`` seconds, never more than ``burst``.

    It has no clock of its own. Not for more than one thread at a time.
    """

    def __init__(self, burst: int, every_s: float) -> None:
        self._burst, self._every_s = float(burst), every_s
        self._left, self._at = float(burst), 0.0

    def take(self, now: float) -> bool:
        """Take a token at ``now`` (seconds of a monotonic clock); False: there is none."""
        self._left = min(self._burst, self._left + max(now - self._at, 0.0) / self._every_s)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
