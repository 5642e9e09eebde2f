"""The connections of this process as the kernel knows them: descriptors, peers, bytes, memory, and the way to cut one.

gRPC opens and closes its sockets in threads of its own and tells nobody. Everything here therefore survives a
descriptor that is closed, or used again for another socket, between two lines: a descriptor is read without being
owned, and before a connection is cut, a duplicate is shown to be the same socket. Linux only: proc(5), tcp(7).
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import resource
import socket
import stat
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

MAX_DESCRIPTORS = 65_536  # more are of no use: 10,000 silos with a connection each are far below
DESCRIPTORS = "/proc/self/fd"
TCP_COUNTERS = 120  # offset of tcpi_bytes_acked and tcpi_bytes_received in struct tcp_info (linux/tcp.h)
TCP_INFO_BYTES = 136
MAX_HELD = 500  # networks in a filter, which may have 4,096 instructions
_SOCKADDR_BYTES, _SO_ATTACH_FILTER, _SO_DETACH_FILTER = 16, 26, 27

Peer = tuple[str, int]  # address, as ``ipaddress`` writes it, and port


@dataclass(frozen=True)
class OpenSocket:
    """A connection at one moment: which it is, and how many bytes it has moved."""

    descriptor: int
    inode: int  # no other socket has it as long as this one is open
    peer: Peer


def raise_descriptor_limit(wanted: int = MAX_DESCRIPTORS) -> int:
    """Raise the soft limit on open files to the hard one, at most to ``wanted``; return the limit that holds now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    best = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < best:
        with contextlib.suppress(OSError, ValueError):  # a sandbox may forbid it: the soft limit stays
            resource.setrlimit(resource.RLIMIT_NOFILE, (best, hard))
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return wanted if soft == resource.RLIM_INFINITY else soft


@lru_cache(maxsize=4096)
def parse_peer(peer: str) -> Peer | None:
    """Return address and port of gRPC's ``context.peer()``: ``ipv4:127.0.0.1:50000``, ``ipv6:%5B::1%5D:50000``."""
    kind, _, rest = unquote(peer).partition(":")
    host, _, port = rest.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdigit():
        return None
    return _peer(host.strip("[]"), int(port))


def _peer(host: str, port: int) -> Peer | None:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address), port


@lru_cache(maxsize=4096)
def network_of(address: str) -> str:
    """Return what one attacker has at least: an IPv4 address, or an IPv6 network of 64 bits."""
    parsed = ipaddress.ip_address(address)
    if parsed.version == 4:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False).network_address)


def open_sockets(port: int, known: dict[int, OpenSocket]) -> Iterator[OpenSocket]:
    """Yield the connections accepted on the local ``port``; ``known`` are those of the last time, by descriptor.

    Raises OSError where there is no /proc.
    """
    for name in os.listdir(DESCRIPTORS):
        descriptor = int(name)
        try:
            facts = os.fstat(descriptor)
        except OSError:
            continue  # closed meanwhile
        if not stat.S_ISSOCK(facts.st_mode):
            continue
        before = known.get(descriptor)
        if before is not None and before.inode == facts.st_ino:
            yield before
        elif (peer := _accepted_from(descriptor, port)) is not None:
            yield OpenSocket(descriptor, facts.st_ino, peer)


def _accepted_from(descriptor: int, port: int) -> Peer | None:
    """Return the other end of a connection to our port; None for any other or closed socket."""
    try:
        with _borrowed(descriptor) as borrowed:
            own, other = borrowed.getsockname(), borrowed.getpeername()
    except OSError:
        return None
    if not (isinstance(own, tuple) and isinstance(other, tuple) and own[1] == port):
        return None
    return _peer(other[0], other[1])


def listeners(port: int) -> list[OpenSocket]:
    """Return the sockets of this process that listen on ``port``."""
    found = []
    for name in os.listdir(DESCRIPTORS):
        descriptor = int(name)
        with contextlib.suppress(OSError):
            facts = os.fstat(descriptor)
            if stat.S_ISSOCK(facts.st_mode) and _listens(descriptor, port):
                found.append(OpenSocket(descriptor, facts.st_ino, ("", port)))
    return found


def _listens(descriptor: int, port: int) -> bool:
    with _borrowed(descriptor) as borrowed:
        own = borrowed.getsockname()
        return bool(
            isinstance(own, tuple) and own[1] == port and borrowed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        )


def hold_networks(listener: OpenSocket, networks: Collection[str]) -> bool:
    """Let the kernel hold new connections from ``networks`` (of ``network_of``) after their first message of TLS.

    What else they send is dropped until ``release``; those that say nothing are never accepted. Open ones are not
    concerned. False: it cannot.
    A classic BPF filter on the listening socket, which its connections inherit, needs no privilege: socket(7).
    """
    program = b"".join(struct.pack("=HBBI", *line) for line in _program(list(networks)[:MAX_HELD]))
    code = ctypes.create_string_buffer(program, len(program))
    return _set_option(listener, _SO_ATTACH_FILTER, struct.pack("HP", len(program) // 8, ctypes.addressof(code)))


def release(held: OpenSocket) -> bool:
    """Let everything pass that comes for this connection; False when it was not held, or is gone."""
    return _set_option(held, _SO_DETACH_FILTER, struct.pack("i", 0))


def _set_option(target: OpenSocket, option: int, value: bytes) -> bool:
    ours = _duplicate(target)
    if ours is None:
        return False
    with ours:
        try:
            ours.setsockopt(socket.SOL_SOCKET, option, value)
        except OSError:
            return False
    return True


def _program(networks: list[str]) -> list[tuple[int, int, int, int]]:
    """Return the filter's instructions: operation, jumps if true and if false, operand (linux/filter.h)."""
    load, equal, jump, end = 0x20, 0x15, 0x05, 0x06
    network_header, protocol = 0xFFF00000, 0xFFFFF000  # SKF_NET_OFF, SKF_AD_OFF + SKF_AD_PROTOCOL
    packed = [ipaddress.ip_address(each).packed for each in networks]
    v4 = [int.from_bytes(each) for each in packed if len(each) == 4]
    v6 = [(int.from_bytes(each[:4]), int.from_bytes(each[4:8])) for each in packed if len(each) == 16]
    passes = end, 0, 0, 0xFFFFFFFF
    to_test = jump, 0, 0, 0  # its operand is known once all is written
    lines = [
        (load, 0, 0, protocol),
        (equal, 0, 1, 0x0800),
        (jump, 0, 0, 2),  # to the addresses of IPv4
        (equal, 0, 1, 0x86DD),
        (jump, 0, 0, 2 + 2 * len(v4)),  # to the networks of IPv6
        (load, 0, 0, network_header + 12),
    ]
    for address in v4:
        lines += [(equal, 0, 1, address), to_test]
    lines.append(passes)
    for high, low in v6:
        lines += [(load, 0, 0, network_header + 8), (equal, 0, 3, high)]
        lines += [(load, 0, 0, network_header + 12), (equal, 0, 1, low), to_test]
    lines.append(passes)
    test = len(lines)
    lines = [(jump, 0, 0, test - place - 1) if line is to_test else line for place, line in enumerate(lines)]
    return [*lines, *_only_a_client_hello()]


def _only_a_client_hello() -> list[tuple[int, int, int, int]]:
    """Return instructions for TCP segments: those that begin a handshake of TLS pass, and SYN and RST.

    An acknowledgement without data does not: without it, the kernel accepts no connection that says nothing.
    """
    return [
        (0x80, 0, 0, 0),  # length with TCP's header, which has at most 60 bytes
        (0x25, 3, 0, 60),  # has data
        (0x30, 0, 0, 13),  # flags
        (0x54, 0, 0, 0x06),  # SYN, RST
        (0x15, 9, 8, 0),  # none: drop; one: pass
        (0x30, 0, 0, 12),  # the header's length, in words, in the upper four bits
        (0x54, 0, 0, 0xF0),
        (0x74, 0, 0, 2),
        (0x07, 0, 0, 0),
        (0x50, 0, 0, 0),
        (0x15, 0, 3, 0x16),  # a record of the handshake, or drop
        (0x50, 0, 0, 5),
        (0x15, 0, 1, 1),  # a ClientHello, or drop
        (0x06, 0, 0, 0xFFFFFFFF),
        (0x06, 0, 0, 0),
    ]


def moved_bytes(descriptor: int) -> tuple[int, int]:
    """Return the bytes that the other end acknowledged and those received from it, TLS included; zeros if unknown."""
    try:
        with _borrowed(descriptor) as borrowed:
            info = borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
    except OSError:
        return 0, 0
    if len(info) < TCP_INFO_BYTES:
        return 0, 0
    acknowledged, received = struct.unpack_from("=QQ", info, TCP_COUNTERS)
    return acknowledged, received


@contextlib.contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """Lend a descriptor of somebody else's to a socket object, which must never close it."""
    borrowed = _socket(descriptor)
    try:
        yield borrowed
    finally:
        borrowed.detach()


def _socket(descriptor: int) -> socket.socket:
    # A family that is given costs no call. It only decides how much room an address gets: here that of the longer kind.
    return socket.socket(socket.AF_INET6, socket.SOCK_STREAM, 0, fileno=descriptor)


def cut(target: OpenSocket) -> bool:
    """Reset a connection and drop what was received unread; its owner finds it reset. False when it is gone already.

    connect(2) with AF_UNSPEC does that. shutdown(2) would leave megabytes in the kernel that gRPC still takes in.
    """
    ours = _duplicate(target)
    if ours is None:
        return False
    with ours:
        try:
            ours.shutdown(socket.SHUT_RDWR)  # wakes whoever waits for it
        except OSError:
            return False
        nowhere = bytes(_SOCKADDR_BYTES)  # AF_UNSPEC is 0
        return bool(ctypes.CDLL(None).connect(ours.fileno(), nowhere, len(nowhere)) == 0)


def _duplicate(target: OpenSocket) -> socket.socket | None:
    """Return a descriptor of our own for the socket; None when its descriptor is another file's."""
    try:
        duplicate = os.dup(target.descriptor)
    except OSError:
        return None
    try:
        if os.fstat(duplicate).st_ino == target.inode:
            return _socket(duplicate)
    except OSError:
        pass
    os.close(duplicate)
    return None


def resident_bytes() -> int:
    """Return the resident memory of this process; 0 where there is no /proc."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError, ValueError):
        return 0
