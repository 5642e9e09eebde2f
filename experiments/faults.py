"""A TCP proxy that injects network faults, for tests and measurements.

    with FaultProxy("127.0.0.1:7443") as proxy:
        proxy.arm(Fault("reset", "up", 40_000))
        … dial proxy.address …

A fault occurs once, after a number of bytes in its direction since it was armed. ``bytes_per_s`` and ``delay_s``
set rate and latency of every direction of every connection.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Direction = Literal["up", "down"]  # up: from the client to the server
READ_BYTES = 32 << 10
BURST_S = 0.05  # idle time that an idle connection, or a proxy that was not scheduled, may catch up
WINDOW_BYTES = 512 << 10  # in flight in one direction at most


@dataclass(frozen=True)
class Fault:
    """Kind of a fault, its direction, and the number of bytes after which it occurs."""

    kind: Literal["cut", "reset", "delay", "duplicate"]  # duplicate: the bytes around that position are sent twice
    direction: Direction
    after: int
    seconds: float = 0.2  # of a delay


class FaultProxy:
    """Listens on loopback and forwards to ``target`` (host:port)."""

    def __init__(self, target: str, *, bytes_per_s: float = 0.0, delay_s: float = 0.0) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._bytes_per_s = bytes_per_s
        self._delay_s = delay_s
        self._lock = threading.Lock()
        self._fault: Fault | None = None
        self._left = 0
        self.struck = 0  # faults that have occurred
        self.passed = {"up": 0, "down": 0}  # bytes
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> FaultProxy:
        threading.Thread(target=self._accept, name="fault-proxy", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        _close(self._listener)
        with self._lock:
            for each in self._sockets:
                _close(each)

    def arm(self, fault: Fault) -> None:
        """Set the next fault; it replaces one that has not occurred yet."""
        with self._lock:
            self._fault, self._left = fault, fault.after

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target, 10.0)
            except OSError:
                if self._listener.fileno() < 0:
                    return
                continue
            far.settimeout(None)
            with self._lock:
                self._sockets |= {near, far}
            for source, sink, direction in ((near, far, "up"), (far, near, "down")):
                lane: queue.Queue[tuple[float, bytes]] = queue.Queue(WINDOW_BYTES // READ_BYTES)
                for work, arguments in (
                    (self._read, (source, lane, direction)),
                    (self._write, (lane, sink, source, direction)),
                ):
                    threading.Thread(target=work, args=arguments, name="fault-proxy", daemon=True).start()

    def _read(self, source: socket.socket, lane: queue.Queue[tuple[float, bytes]], direction: Direction) -> None:
        free = time.monotonic()
        while True:
            try:
                data = source.recv(READ_BYTES)
            except OSError:
                data = b""
            if self._bytes_per_s:
                free = max(free, time.monotonic() - BURST_S) + len(data) / self._bytes_per_s
                time.sleep(max(free - time.monotonic(), 0.0))
            lane.put((time.monotonic() + self._delay_s, data))
            if not data:
                return
            with self._lock:
                self.passed[direction] += len(data)

    def _write(
        self,
        lane: queue.Queue[tuple[float, bytes]],
        sink: socket.socket,
        source: socket.socket,
        direction: Direction,
    ) -> None:
        while True:
            due, data = lane.get()
            time.sleep(max(due - time.monotonic(), 0.0))
            fault, place = self._struck(direction, len(data))
            try:
                if fault is None:
                    sink.sendall(data)
                elif not self._strike(fault, data, place, sink):
                    data = b""
            except OSError:
                data = b""
            if not data:
                if fault is not None and fault.kind == "reset":
                    _reset((sink, source))
                for each in (sink, source):
                    _close(each)
                self._drain(lane)
                return

    def _strike(self, fault: Fault, data: bytes, place: int, sink: socket.socket) -> bool:
        """Apply the fault; False when the connection ends."""
        sink.sendall(data[:place])
        if fault.kind == "delay":
            time.sleep(fault.seconds)
        elif fault.kind == "duplicate":
            sink.sendall(data[max(place - 64, 0) : place] or data[:64])
        else:
            return False
        sink.sendall(data[place:])
        return True

    def _struck(self, direction: Direction, size: int) -> tuple[Fault | None, int]:
        with self._lock:
            fault = self._fault
            if fault is None or fault.direction != direction or size == 0:
                return None, 0
            if self._left > size:
                self._left -= size
                return None, 0
            self._fault = None
            self.struck += 1
            return fault, self._left

    def _drain(self, lane: queue.Queue[tuple[float, bytes]]) -> None:
        """Empty the queue, so that a reader that waits for space can end."""
        with contextlib.suppress(queue.Empty):
            while lane.get(timeout=1.0)[1]:
                pass


def _close(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        each.close()


def _reset(ends: Iterable[socket.socket]) -> None:
    """Reset connections that other threads may read: a reader keeps one open, and must not end the other with a FIN."""
    kept = []
    for each in ends:
        with contextlib.suppress(OSError):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            kept.append(each.dup())
            each.close()
    for each in kept:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RD)  # wakes the reader
        each.close()
