"""Whether the wall clock jumped while the server ran. Nothing but times that are shown depends on it."""

from __future__ import annotations

import time
from collections.abc import Callable

JUMP_S = 5.0  # less is an ordinary correction


class ClockWatch:
    """Compares the wall clock with the monotonic one, both in seconds."""

    def __init__(self, wall: Callable[[], float] | None = None, monotonic: Callable[[], float] | None = None) -> None:
        self._wall = wall or (lambda: time.time())
        self._monotonic = monotonic or time.monotonic
        self._ahead = self._wall() - self._monotonic()

    def look(self) -> float:
        """By how many seconds the wall clock has jumped since the last look; 0 when it has not."""
        ahead = self._wall() - self._monotonic()
        moved = ahead - self._ahead
        if abs(moved) < JUMP_S:
            return 0.0
        self._ahead = ahead
        return moved
