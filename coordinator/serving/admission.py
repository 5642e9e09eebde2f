"""One by one: after a flood, new connections from its network wait for their turn to go on.

A connection that is cut leaves megabytes in gRPC for as long as its threads have too much to do. What bounds memory is
therefore how many strangers of a flooding network may go on in a second. Silos can share that network, behind one
address: nobody is turned away. The kernel lets a waiting connection open, and its first message of TLS pass; the rest
it drops, and the other end sends it again. docs/decisions/025-connections-are-guarded-from-inside.md
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from ...base.log import Log
from .connection_limits import Connection

log = Log("coordinator")

HELD_S = 30.0  # from the last flood on
ADMITTED_PER_S = 32.0  # of all networks together: 64 who flood and come back take turns within 4 s
SCARCE_PER_S = 4.0  # while memory is short
SCARCE_BYTES = 128 << 20  # above the memory when nobody was held
MOST_AT_ONCE = 4.0
SUSPECTED_S = 600.0  # a silo whose connection flooded
MAX_REMEMBERED = 10_000


class AdmissionQueue:
    """The networks whose new connections wait, and whose turn it is. Without a clock of its own."""

    def __init__(self) -> None:
        self.held: dict[str, float] = {}  # network: until
        self.suspects: dict[str, float] = {}  # silo: until
        self._crowds: dict[str, float] = {}  # network: until
        self._applied: frozenset[str] = frozenset()
        self._credit, self._paid_at = MOST_AT_ONCE, 0.0
        self._resident = 0  # memory when nobody was held
        self._turn = 0

    def flooded(self, network: str, silo: str | None, now: float) -> None:
        """Note a flood: new connections of its network wait from now on."""
        if network not in self.held and len(self.held) < MAX_REMEMBERED:
            log.warning("network_held", network=network, detail="new connections from it go on one by one")
        if len(self.held) < MAX_REMEMBERED:
            self.held[network] = now + HELD_S
        if silo:
            self.suspects[silo] = now + SUSPECTED_S

    def crowded(self, network: str, now: float) -> None:
        """Note that a network has most of the places for strangers: those that say nothing are not accepted."""
        self._crowds[network] = now + HELD_S

    @property
    def filtered(self) -> list[str]:
        """The networks whose new connections the kernel lets say no more than their first message of TLS."""
        return [*self.held, *(network for network in self._crowds if network not in self.held)]

    def changed(self, now: float) -> bool:
        """Forget what is over; return whether other networks are held than at the last call."""
        self.held = {network: until for network, until in self.held.items() if until > now}
        self.suspects = {silo: until for silo, until in self.suspects.items() if until > now}
        self._crowds = {network: until for network, until in self._crowds.items() if until > now}
        applied, self._applied = self._applied, frozenset(self.filtered)
        return applied != self._applied

    def admit(self, connections: Iterable[Connection], resident: int, now: float) -> Iterator[Connection]:
        """Yield the connections whose turn it is. ``resident``: the memory of this process, bytes."""
        waiting: dict[str, list[Connection]] = defaultdict(list)
        for each in connections:
            if each.admitted:
                continue
            if each.network not in self.held or each.caller.silo is not None:
                yield each
            elif each.received:  # one that says nothing waits for nothing
                waiting[each.network].append(each)
        if not self.held:
            self._resident = resident
        scarce = resident > self._resident + SCARCE_BYTES
        earned = (now - self._paid_at) * (SCARCE_PER_S if scarce else ADMITTED_PER_S)
        self._credit, self._paid_at = min(self._credit + earned, MOST_AT_ONCE), now
        for own in waiting.values():
            own.sort(key=lambda each: each.opened)
        while waiting and self._credit >= 1:
            self._credit -= 1
            self._turn += 1
            network = sorted(waiting)[self._turn // 2 % len(waiting)]
            own = waiting[network]
            # The oldest and the newest in turn: waiting ends, and whoever floods and comes back delays nobody for long.
            yield own.pop(0 if self._turn % 2 else -1)
            if not own:
                del waiting[network]
