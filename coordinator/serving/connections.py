"""A guard of the server's connections: it cuts those that take memory or descriptors and carry no accepted call.

gRPC bounds a call, not a connection: whoever reaches the port can keep thousands open, and whoever has a certificate,
even a revoked one, can send frames that belong to no call. The guard looks at the process's own sockets several times
a second, in a thread of its own, outside the path of the data. Calls report to it whose connection it is
(``identified``), that its caller was refused (``refused``) and what it carried (``carried``).
docs/decisions/025-connections-are-guarded-from-inside.md; for operators: docs/network.md.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field

from ...base.errors import SettingsError
from ...base.log import LimitedLog, Log
from ...base.process import trim_memory
from . import sockets
from .sockets import OpenSocket, Peer

log = Log("coordinator")
failed = LimitedLog("coordinator")

FILES = 192  # descriptors for everything that is no connection: database, models, log, gRPC's own
FILES_PER_SILO = 2  # updates on their way to disk (update_handler.UPLOADS_PER_SILO)
MAX_PER_SILO, MIN_PER_SILO = 24, 4  # an agent has one connection, two while its certificate is renewed
SURPLUS_S = 5.0  # until a silo's further ones are cut while there is room: it connects again, a handshake each time
STRANGERS_SHARE, MAX_STRANGERS = 4, 1000  # one connection in four may be without an accepted call; 45 kB each
STRANGER_S = 15.0  # until the first accepted call; gRPC ends handshakes after 10
STRANGER_BYTES = 512 << 10  # a handshake, and the beginning of one update
REFUSED_S = 2.0  # a refused caller reads why, then its connection is cut
BLOCKED_S, MAX_BLOCKED_S = 15.0, 600.0  # after a flood its network cannot connect for so long, twice as long each time
FLOODS = ("flood", "stranger_bytes")
EXCESS_BYTES = 8 << 20  # received beyond what the calls account for: windows of 8 calls, and their chunks
CALL_BYTES = 16 << 10  # headers of a call and its small frames
ANSWERED_SHARE = 16  # one byte received for so many sent: a reader's window updates
OVERHEAD = 1.05  # TLS and HTTP/2, of a message's bytes
SHORTEST_S, LONGEST_S, COST_SHARE = 0.05, 1.0, 20  # pause between two looks: 20 times what one costs, short in a flood
LOG_EVERY_S = 10.0
TRIM_EVERY_S, TRIM_FOR_S = 5.0, 60.0  # from the end of a connection on
TRIM_BYTES = 16 << 20  # above the memory at the start
MAX_REMEMBERED = 10_000  # networks
FORGET_S = 60.0  # a caller whose socket was never seen


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
    connections: Iterable[Connection], limits: ConnectionLimits, blocked: Container[str], now: float
) -> Iterator[tuple[Connection, str]]:
    """Yield the connections to cut, each once, with the reason. Pure: the guard's decision.

    ``blocked``: networks from which a flood came a moment ago.
    """
    strangers, silos = [], defaultdict(list)
    for each in connections:
        caller = each.caller
        if caller.refused_at is not None and now - caller.refused_at > REFUSED_S:
            yield each, "refused"
        elif caller.silo is not None and caller.refused_at is None:
            if each.excess > EXCESS_BYTES:
                yield each, "flood"
            else:
                silos[caller.silo].append(each)
        elif each.received > STRANGER_BYTES + caller.accounted:
            yield each, "stranger_bytes"
        elif each.network in blocked:
            yield each, "blocked"
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


class BlockedNetworks:
    """Networks that may not connect for a while, since a flood came from them. Their open connections stay."""

    def __init__(self) -> None:
        self.blocked: dict[str, float] = {}  # network: until
        self._times: dict[str, int] = {}  # how often, as long as the last time is not forgotten
        self._applied: frozenset[str] = frozenset()

    def add(self, network: str, now: float) -> None:
        """Block the network, twice as long as the last time."""
        if network not in self.blocked:
            self._times[network] = self._times.get(network, -1) + 1
            self.blocked[network] = now + min(BLOCKED_S * 2 ** self._times[network], MAX_BLOCKED_S)
            log.warning("network_blocked", network=network, seconds=round(self.blocked[network] - now))

    def changed(self, now: float) -> bool:
        """Lift what is over; return whether other networks are blocked than at the last call."""
        self.blocked = {network: until for network, until in self.blocked.items() if until > now}
        if len(self._times) > MAX_REMEMBERED:
            self._times = {network: self._times[network] for network in self.blocked}
        applied, self._applied = self._applied, frozenset(self.blocked)
        return applied != self._applied


class ConnectionGuard:
    """The guard of one server. Calls report from the event loop; looks happen in the guard's thread."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self.cuts: Counter[str] = Counter()  # by reason, since the start
        self._callers: dict[Peer, Caller] = {}
        self._lock = threading.Lock()
        self._connections: dict[int, Connection] = {}  # by inode
        self._blocked = BlockedNetworks()
        self._last_look = 0.0
        self._unlogged: Counter[tuple[str, str]] = Counter()
        self._logged_at = self._trimmed_at = -LOG_EVERY_S
        self._trim_until, self._resident = 0.0, 0
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    # --- reports of calls; ``peer`` is gRPC's context.peer() ---

    def identified(self, peer: str, silo: str) -> None:
        """Note that a call of this connection was accepted as the silo's."""
        with self._lock:
            if caller := self._caller(peer):
                caller.silo = silo
                if caller.refused_at != -math.inf:  # a connection that is to be cut stays so
                    caller.refused_at = None
                caller.accounted += CALL_BYTES

    def refused(self, peer: str) -> None:
        """Note that the identity of this connection's caller was refused: it is cut unless a later call is accepted."""
        with self._lock:
            if (caller := self._caller(peer)) and caller.refused_at is None:
                caller.refused_at = time.monotonic()

    def carried(self, peer: str, size: int) -> None:
        """Note a message of ``size`` bytes that a call on this connection has read."""
        with self._lock:
            if caller := self._caller(peer):
                caller.accounted += size * OVERHEAD + 1024

    def cut(self, peer: str) -> None:
        """End this connection at the next look, whatever is on its way."""
        with self._lock:
            if caller := self._caller(peer):
                caller.refused_at = -math.inf

    def _caller(self, peer: str) -> Caller | None:
        key = sockets.parse_peer(peer)
        if key is None:
            return None
        caller = self._callers.setdefault(key, Caller())
        caller.last_at = time.monotonic()
        return caller

    # --- looks ---

    def start(self, port: int) -> None:
        """Start to look at the connections that are accepted on ``port``."""
        self._resident = sockets.resident_bytes()
        self._thread = threading.Thread(target=self._watch, args=(port,), name="connections", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self, port: int) -> None:
        pause = SHORTEST_S
        while not self._stopping.wait(pause):
            began = time.thread_time()
            before = self.cuts.total()
            try:
                self.look(port, time.monotonic())
            except FileNotFoundError as error:
                log.error("connections_unguarded", detail=str(error), fix="mount /proc")
                return
            except OSError as error:  # no descriptor is left to list them with: it is freed when a connection ends
                failed.warning("connections_not_seen", who="", code=str(error.errno), detail=str(error))
            under_flood = self.cuts.total() > before
            pause = SHORTEST_S if under_flood else COST_SHARE * (time.thread_time() - began)
            pause = min(max(pause, SHORTEST_S), LONGEST_S)

    def look(self, port: int, now: float) -> None:
        """Look at every connection once, and cut those that the limits do not allow."""
        known = {each.socket.descriptor: each.socket for each in self._connections.values()}
        seen: dict[int, Connection] = {}
        for found in sockets.open_sockets(port, known):
            connection = self._connections.get(found.inode) or Connection(found, now)
            connection.acknowledged, connection.received = sockets.moved_bytes(found.descriptor)
            seen[found.inode] = connection
        self._attach_callers(seen, now)
        for connection, reason in list(to_cut(seen.values(), self.limits, self._blocked.blocked, now)):
            if sockets.cut(connection.socket):
                self.cuts[reason] += 1
                if reason in FLOODS:
                    self._blocked.add(connection.network, now)
                self._unlogged[reason, connection.caller.silo or ""] += 1
        if len(seen) < len(self._connections):
            self._trim_until = now + TRIM_FOR_S
        self._connections, self._last_look = seen, now
        if self._blocked.changed(now):
            for listener in sockets.listeners(port):
                sockets.refuse_networks(listener, self._blocked.blocked)
        self._report(now)
        self._trim(now)

    def _attach_callers(self, seen: dict[int, Connection], now: float) -> None:
        """Give every connection its caller; forget the callers of those that are gone."""
        with self._lock:
            for inode, gone in self._connections.items():
                peer = gone.socket.peer
                if inode not in seen and (caller := self._callers.get(peer)) and caller.last_at < self._last_look:
                    del self._callers[peer]  # a later one from the same port starts as a stranger
            peers = set()
            for connection in seen.values():
                peers.add(connection.socket.peer)
                connection.caller = self._callers.get(connection.socket.peer) or connection.caller
                # Hours of honest calls, whose overhead is estimated generously, must not buy a flood.
                connection.caller.accounted -= max(-EXCESS_BYTES - connection.excess, 0.0)
            for peer in [peer for peer in self._callers if peer not in peers]:
                if now - self._callers[peer].last_at > FORGET_S:
                    del self._callers[peer]

    def _report(self, now: float) -> None:
        """Log what was cut, a line for each reason and silo, at most every ten seconds."""
        if not self._unlogged or now - self._logged_at < LOG_EVERY_S:
            return
        for (reason, silo), count in self._unlogged.most_common(20):
            log.warning("connections_cut", reason=reason, count=count, **({"silo": silo} if silo else {}))
        self._unlogged.clear()
        self._logged_at = now

    def _trim(self, now: float) -> None:
        """Return the memory of closed connections to the system: glibc keeps it, and gRPC frees it late."""
        if now > self._trim_until or now - self._trimmed_at < TRIM_EVERY_S:
            return
        self._trimmed_at = now
        if sockets.resident_bytes() > self._resident + TRIM_BYTES:
            trim_memory()
