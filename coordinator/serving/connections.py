"""A guard of the server's connections: it cuts those that take memory or descriptors and carry no accepted call.

gRPC bounds a call, not a connection: whoever reaches the port can keep thousands open, and whoever has a certificate,
even a revoked one, can send frames that belong to no call. The guard looks at the process's own sockets several times
a second, in a thread of its own, outside the path of the data. Calls report to it whose connection it is
(``identified``), that its caller was refused (``refused``) and what it carried (``carried``).
docs/decisions/025-connections-are-guarded-from-inside.md; for operators: docs/guides/network.md.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter

from ...base.log import LimitedLog, Log
from ...base.process import trim_memory
from . import sockets
from .admission import AdmissionQueue
from .connection_limits import EXCESS_BYTES, FLOODS, Caller, Connection, ConnectionLimits, to_cut
from .sockets import Peer

log = Log("coordinator")
failed = LimitedLog("coordinator")

CALL_BYTES = 16 << 10  # headers of a call and its small frames
OVERHEAD = 1.05  # TLS and HTTP/2, of a message's bytes
CALM_S, FLOOD_S, LONGEST_S = 0.1, 0.02, 2.0  # pause between two looks, at least without and with a flood, and at most
COST_SHARE, FLOOD_COST_SHARE = 20, 4  # the pause is so many times what a look costs
CROWDS = 2  # networks that can have half of the strangers each
LOG_EVERY_S = 10.0
TRIM_EVERY_S, TRIM_FLOOD_S, TRIM_FOR_S = 5.0, 1.0, 120.0  # from the end of a connection on
TRIM_BYTES = 16 << 20  # above the memory at the start
FORGET_S = 60.0  # a caller whose socket was never seen


class ConnectionGuard:
    """The guard of one server. Calls report from the event loop; looks happen in the guard's thread."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self.cuts: Counter[str] = Counter()  # by reason, since the start
        self._callers: dict[Peer, Caller] = {}
        self._lock = threading.Lock()
        self._connections: dict[int, Connection] = {}  # by inode
        self._admission = AdmissionQueue()
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
        pause = CALM_S
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
            share, least = (FLOOD_COST_SHARE, FLOOD_S) if under_flood or self._admission.held else (COST_SHARE, CALM_S)
            pause = min(max(share * (time.thread_time() - began), least), LONGEST_S)

    def look(self, port: int, now: float) -> None:
        """Look at every connection once, and cut those that the limits do not allow."""
        known = {each.socket.descriptor: each.socket for each in self._connections.values()}
        seen: dict[int, Connection] = {}
        for found in sockets.open_sockets(port, known):
            connection = self._connections.get(found.inode) or Connection(found, now)
            connection.acknowledged, connection.received = sockets.moved_bytes(found.descriptor)
            seen[found.inode] = connection
        self._attach_callers(seen, now)
        crowded = False
        for connection, reason in list(to_cut(seen.values(), self.limits, self._admission.suspects, now)):
            if sockets.cut(connection.socket):
                self.cuts[reason] += 1
                if reason in FLOODS:
                    self._admission.flooded(connection.network, connection.caller.silo, now)
                self._unlogged[reason, connection.caller.silo or ""] += 1
                crowded = crowded or reason == "many_strangers"
        if crowded:
            strangers = Counter(each.network for each in seen.values() if each.caller.silo is None)
            for network, count in strangers.most_common(CROWDS):
                if count >= self.limits.strangers / 2:
                    self._admission.crowded(network, now)
        if len(seen) < len(self._connections):
            self._trim_until = now + TRIM_FOR_S
        self._connections, self._last_look = seen, now
        if self._admission.changed(now):
            for listener in sockets.listeners(port):
                sockets.hold_networks(listener, self._admission.filtered)
        for connection in self._admission.admit(seen.values(), sockets.resident_bytes(), now):
            sockets.release(connection.socket)
            connection.admitted = True
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
        if now > self._trim_until or now - self._trimmed_at < (TRIM_FLOOD_S if self._admission.held else TRIM_EVERY_S):
            return
        self._trimmed_at = now
        if sockets.resident_bytes() > self._resident + TRIM_BYTES:
            trim_memory()
