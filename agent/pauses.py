"""The part of a run that a silo has done, and its pauses when the coordinator asks for what honest ones rarely do.

The same round again, an older one, another run, an answer that cannot be used: each is followed by a pause, so that no
coordinator keeps a silo busy, or fills its ledger and its log, by repeating itself.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..base.clock import DAY_S
from .egress.quotas import LINES, LINES_PER_DAY

PAUSE_S = (1.0, 60.0)  # doubles from the first to the second
FORGIVEN_S = 60.0  # one doubling is forgiven after so long
ROUNDS_AT_ONCE = LINES  # new rounds that a silo answers without a pause: as many as its ledger has room for
ROUND_EVERY_S = DAY_S / LINES_PER_DAY  # and then one more for each of these


class GrowingPause:
    """Pauses that grow with every event, and shrink with time."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._doublings = 0.0
        self._at = now()

    def pause_s(self) -> float:
        """Note an event and return the pause after it, varied by a fifth: seconds."""
        now = self._now()
        doublings = max(self._doublings - (now - self._at) / FORGIVEN_S, 0.0)
        pause = min(PAUSE_S[0] * math.exp2(doublings), PAUSE_S[1])
        self._doublings, self._at = (doublings if pause == PAUSE_S[1] else doublings + 1.0), now
        return pause * random.uniform(0.8, 1.2)

    def forgive(self) -> None:
        """Forget every event before."""
        self._doublings = 0.0


class RoundAllowance:
    """Pauses between new rounds: none, until a silo has answered more of them than any run needs at once.

    Every round counts, also one that leaves no line in the ledger; the ledger's own pause is ``Quotas.pause_s``.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._left = float(ROUNDS_AT_ONCE)
        self._at = now()

    def pause_s(self) -> float:
        """Note a round and return the pause after it: seconds."""
        now = self._now()
        self._left = min(self._left + (now - self._at) / ROUND_EVERY_S, ROUNDS_AT_ONCE) - 1.0
        self._at = now
        return max(-self._left, 0.0) * ROUND_EVERY_S


@dataclass
class RunProgress:
    """The part of a run that this silo has done, and does not do again while the coordinator repeats its answer."""

    run_sha256: str = ""
    round: int = 0  # the last round that was answered, or will not be
    highest: int = 0  # of all these rounds
    evaluated: str = ""  # hash of the final model whose evaluation was reported
    counted: tuple[str, float] = ("", 0.0)  # hash of the final model, and temperature, of the last counts reported
    adopted: str = ""  # hash of the final model that was compared and put to use
    failed_attempts: int = 0  # of the client, when ``round`` was last known to be right

    def note_outage(self, failed_attempts: int) -> None:
        """Answer the open round again when the coordinator was away: it may be restored from a backup."""
        if failed_attempts != self.failed_attempts:
            self.round, self.failed_attempts = 0, failed_attempts

    def note_round(self, number: int) -> bool:
        """Note a round as answered; True when it is one that was answered before, or an older one."""
        again = number <= self.highest
        self.round, self.highest = number, max(self.highest, number)
        return again
