"""The decision which connections are cut: limits, and what the calls of a connection reported. Without a clock.

docs/decisions/025-connections-are-guarded-from-inside.md; for operators: docs/guides/network.md.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field

from ...base.errors import SettingsError
from . import sockets
from .sockets import OpenSocket

FILES = 192  # descriptors for everything that is no connection: database, models, log, gRPC's own
FILES_PER_SILO = 2  # updates on their way to disk (update_handler.UPLOADS_PER_SILO)
MAX_PER_SILO, MIN_PER_SILO = 24, 4  # an agent has one connection, two while its certificate is renewed
SURPLUS_S = 5.0  # until a silo's further ones are cut while there is room: it connects again, a handshake each time
STRANGERS_SHARE, MAX_STRANGERS = 4, 1000  # one connection in four may be without an accepted call; 45 kB each
STRANGER_S = 15.0  # until the first accepted call; gRPC ends handshakes after 10
STRANGER_BYTES = 512 << 10  # a handshake, and the beginning of one update
REFUSED_S = 2.0  # a refused caller reads why, then its connection is cut
FLOODS = ("flood", "stranger_bytes")
EXCESS_BYTES = 8 << 20  # received beyond what the calls account for: windows of 8 calls, and their chunks
SUSPECT_BYTES = 1 << 20  # the same for a silo whose connection has flooded
ANSWERED_SHARE = 16  # one byte received for so many sent: a reader's window updates


@dataclass(frozen=True)
class ConnectionLimits:
    """Numbers of connections that are allowed, derived from the limit on open files."""

    connections: int  # in all: gRPC closes further ones when it accepts them
    strangers: int  # without an accepted call
    per_silo: int

    @classmethod
    def of(cls, descriptors: int, silos: int) -> ConnectionLimits:
        """Divide ``descriptors`` between files, strangers and ``silos``. Raises SettingsError when they are too few."""
        connections = descriptors - FILES - FILES_PER_SILO * silos
        strangers = min(connections // STRANGERS_SHARE, MAX_STRANGERS)
        per_silo = (connections - strangers) // max(silos, 1)
        if connections < 128 or per_silo < MIN_PER_SILO:
            needed = FILES + FILES_PER_SILO * silos + max(128, MIN_PER_SILO * silos * 4 // 3 + 4)
            raise SettingsError(
                f"this process may open {descriptors} files, {silos} enrolled silos need {needed}",
                fix=f"raise the hard limit: `ulimit -Hn {needed}`, or LimitNOFILE={needed} in the systemd unit",
                code="few_descriptors",
            )
        return cls(connections, strangers, min(per_silo, MAX_PER_SILO))


@dataclass
class Caller:
    """Reports of the calls of one connection."""

    silo: str | None = None
    refused_at: float | None = None
    accounted: float = 0.0  # bytes that the calls explain
    last_at: float = 0.0


@dataclass
class Connection:
    """A connection at the time of a look."""

    socket: OpenSocket
    opened: float
    admitted: bool = False  # its bytes reach gRPC
    acknowledged: int = 0
    received: int = 0
    caller: Caller = field(default_factory=Caller)

    @property
    def network(self) -> str:
        return sockets.network_of(self.socket.peer[0])

    @property
    def excess(self) -> float:
        """Bytes received that no call explains."""
        return self.received - self.caller.accounted - self.acknowledged / ANSWERED_SHARE


def to_cut(
    connections: Iterable[Connection], limits: ConnectionLimits, suspects: Container[str], now: float
) -> Iterator[tuple[Connection, str]]:
    """Yield the connections to cut, each once, with the reason. Pure: the guard's decision.

    ``suspects``: silos with whose certificate somebody flooded: less is a flood of theirs.
    """
    strangers, silos = [], defaultdict(list)
    for each in connections:
        caller = each.caller
        if caller.refused_at is not None and now - caller.refused_at > REFUSED_S:
            yield each, "refused"
        elif caller.silo is not None and caller.refused_at is None:
            if each.excess > (SUSPECT_BYTES if caller.silo in suspects else EXCESS_BYTES):
                yield each, "flood"
            else:
                silos[caller.silo].append(each)
        elif each.received > STRANGER_BYTES + caller.accounted:
            yield each, "stranger_bytes"
        elif now - each.opened > STRANGER_S:
            yield each, "no_call"
        else:
            strangers.append(each)
    crowded = len(strangers) + sum(map(len, silos.values())) > limits.connections // 2
    for own in silos.values():
        own.sort(key=lambda each: each.caller.last_at)
        for each in own[: max(len(own) - limits.per_silo, 0)]:
            if crowded or now - each.opened > SURPLUS_S:
                yield each, "many_of_silo"
    for each in _crowding(strangers, len(strangers) - limits.strangers):
        yield each, "many_strangers"


def _crowding(strangers: list[Connection], count: int) -> Iterator[Connection]:
    """Yield ``count`` strangers: from the networks that have most of them, silent ones first, then the oldest.

    A silo that connects while others flood has few connections on its network, and speaks at once.
    """
    if count <= 0:
        return
    networks: dict[str, list[Connection]] = defaultdict(list)
    for each in strangers:
        networks[each.network].append(each)
    for own in networks.values():
        own.sort(key=lambda each: (each.received == 0, -each.opened))  # the first to be cut is last
    level = _level(sorted(map(len, networks.values())), len(strangers) - count)
    left = count
    for own in sorted(networks.values(), key=len, reverse=True):
        while left and len(own) > level:
            left -= 1
            yield own.pop()
    for own in sorted(networks.values(), key=lambda own: own[-1].opened if own else 0.0):
        if left and own:
            left -= 1
            yield own.pop()


def _level(sizes: list[int], room: int) -> int:
    """Return how many of each network fit into ``room`` when the small ones keep all of theirs, but at least one."""
    for place, size in enumerate(sizes):
        share = room // (len(sizes) - place)
        if size > share:
            return max(share, 1)
        room -= size
    return sizes[-1]
