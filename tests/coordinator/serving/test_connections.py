"""The guard of the connections: which it cuts, what the kernel knows of them, and how networks are refused."""

import contextlib
import os
import resource
import socket
import time
from pathlib import Path

import pytest
from flamest.base.errors import SettingsError
from flamest.base.process import Shutdown
from flamest.coordinator.serving import admission, connection_limits, server, sockets
from flamest.coordinator.serving.admission import AdmissionQueue
from flamest.coordinator.serving.connection_limits import Caller, Connection, ConnectionLimits, to_cut
from flamest.coordinator.serving.connections import ConnectionGuard
from flamest.coordinator.serving.sockets import OpenSocket
from flamest.coordinator.settings import load_coordinator_settings

LIMITS = ConnectionLimits(connections=80, strangers=20, per_silo=4)
NOW = 1000.0


def stranger(number: int, *, address: str = "10.0.0.1", age: float = 1.0, received: int = 0, **caller) -> Connection:
    made = Connection(OpenSocket(number, number, (address, number)), NOW - age, caller=Caller(**caller))
    made.received = received
    return made


def reasons(found: list[Connection], suspects: tuple[str, ...] = ()) -> dict[int, str]:
    return {each.socket.inode: why for each, why in to_cut(found, LIMITS, suspects, NOW)}


@pytest.mark.parametrize(
    ("connection", "reason"),
    [
        (stranger(1), None),
        (stranger(1, age=14.9), None),
        (stranger(1, age=15.1), "no_call"),
        (stranger(1, received=500 << 10), None),
        (stranger(1, received=520 << 10), "stranger_bytes"),
        (stranger(1, silo="a", age=3000.0), None),
        (stranger(1, silo="a", received=7 << 20), None),
        (stranger(1, silo="a", received=9 << 20), "flood"),
        (stranger(1, silo="a", received=900 << 20, accounted=895 << 20), None),
        (stranger(1, silo="a", received=909 << 20, accounted=900 << 20), "flood"),
        (stranger(1, refused_at=NOW - 1), None),
        (stranger(1, refused_at=NOW - 3), "refused"),
        (stranger(1, silo="a", refused_at=NOW - 3), "refused"),
        (stranger(1, silo="a", refused_at=NOW - 1, received=9 << 20), "stranger_bytes"),
        (stranger(1, silo="suspect", received=900 << 10), None),
        (stranger(1, silo="suspect", received=2 << 20), "flood"),
    ],
)
def test_connection_is_cut_for_a_named_reason_only(connection, reason):
    assert reasons([connection], ("suspect",)) == ({} if reason is None else {1: reason})


def test_strangers_of_the_largest_network_are_cut_silent_and_old_ones_first():
    """30 of one address, one each of five others: the ten talking and the newest silent ones stay."""
    flood = [stranger(number, age=10 - number / 10, received=100 * (number < 10)) for number in range(30)]
    others = [stranger(100 + number, address=f"10.0.1.{number}", age=14.0) for number in range(5)]
    cut = reasons(flood + others)
    assert set(cut.values()) == {"many_strangers"}
    assert sorted(cut) == list(range(10, 25))  # 35 - 20, of the 20 silent ones the oldest


def test_a_flood_from_many_addresses_leaves_the_newest():
    networks = [
        stranger(number, address=f"10.1.{number // 200}.{number % 200}", age=number / 100) for number in range(200)
    ]
    cut = reasons(networks)
    assert len(cut) == 180
    assert min(cut) == 20  # the newest twenty stay


def test_one_ipv6_network_counts_as_one_attacker():
    flood = [stranger(number, address=f"2001:db8::{number:x}") for number in range(1, 41)]
    assert len(reasons([*flood, stranger(99, address="2001:db8:0:1::1", age=14.0)])) == 21
    assert 99 not in reasons([*flood, stranger(99, address="2001:db8:0:1::1", age=14.0)])


def test_connections_of_a_silo_beyond_its_number_are_cut_longest_unused_first():
    own = [stranger(number, silo="a", age=9.0, last_at=float(number)) for number in range(7)]
    assert reasons([*own, stranger(9, silo="b")]) == dict.fromkeys(range(3), "many_of_silo")


def test_further_connections_of_a_silo_are_cut_at_once_only_without_room():
    """Each cut makes it connect again: a handshake costs more than its calls."""
    own = [stranger(number, silo="a", age=4.0, last_at=float(number)) for number in range(38)]
    others = [stranger(number, silo=f"s{number}") for number in range(38, 41)]
    assert reasons([*own, *others[:2]]) == {}
    assert reasons([*own, *others]) == dict.fromkeys(range(34), "many_of_silo")


def test_too_few_descriptors_for_the_enrolled_silos_are_refused_with_a_fix():
    assert ConnectionLimits.of(1024, 16) == ConnectionLimits(800, 200, 24)
    assert ConnectionLimits.of(20_000, 1000).per_silo >= 4
    assert ConnectionLimits.of(20_000, 16).strangers == 1000
    with pytest.raises(SettingsError, match="may open 256 files, 16 enrolled silos need") as error:
        ConnectionLimits.of(256, 16)
    needed = int(error.value.fix.rpartition("LimitNOFILE=")[2].split()[0])
    assert ConnectionLimits.of(needed, 16).per_silo >= 4
    assert error.value.code == "few_descriptors"


@pytest.mark.parametrize("silos", [1, 16, 100, 500, 3000])
def test_the_number_of_descriptors_that_the_error_names_suffices(silos):
    with pytest.raises(SettingsError) as error:
        ConnectionLimits.of(200, silos)
    assert ConnectionLimits.of(int(error.value.fix.rpartition("LimitNOFILE=")[2].split()[0]), silos).per_silo >= 4


def test_soft_descriptor_limit_is_raised_to_the_hard_one_and_bounded():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
        assert sockets.raise_descriptor_limit(600) == 600
        assert sockets.raise_descriptor_limit(550) == 600  # never lowered
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ("ipv4:127.0.0.1:567", ("127.0.0.1", 567)),
        ("ipv6:%5B::1%5D:567", ("::1", 567)),
        ("ipv6:[::1]:567", ("::1", 567)),
        ("ipv6:%5B::ffff:10.0.0.1%5D:5", ("10.0.0.1", 5)),
        ("ipv6:%5Bfe80::1%25eth0%5D:5", ("fe80::1", 5)),
        ("unix:/run/x", None),
        ("ipv4:nowhere:1", None),
        ("", None),
    ],
)
def test_peer_of_grpc_is_the_peer_of_the_socket(peer, expected):
    assert sockets.parse_peer(peer) == expected


@pytest.fixture(params=["127.0.0.1", "::", "::1"])
def listener(request):
    """A listening socket: IPv4, both, IPv6."""
    with socket.socket(socket.AF_INET6 if ":" in request.param else socket.AF_INET) as made:
        if request.param == "::":
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.bind((request.param, 0))
        made.listen(50)
        yield made


def connect(listener: socket.socket, source: str = "") -> socket.socket:
    host = "127.0.0.1" if listener.getsockname()[0] in ("127.0.0.1", "::") else "::1"
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.settimeout(0.5)
    try:
        if source:
            made.bind((source, 0))
        made.connect((host, listener.getsockname()[1]))
    except OSError:
        made.close()
        raise
    return made


def test_sockets_bytes_and_peers_are_read_and_a_cut_ends_both(listener):
    port = listener.getsockname()[1]
    with connect(listener) as client, listener.accept()[0] as accepted:
        client.sendall(bytes(1000))
        accepted.recv(10)
        (found,) = sockets.open_sockets(port, {})
        assert found.descriptor == accepted.fileno()
        assert found.peer == (client.getsockname()[0], client.getsockname()[1])
        assert sockets.moved_bytes(found.descriptor) == (0, 1000)
        assert sockets.cut(found)
        with pytest.raises(OSError, match=r"reset|not connected"):
            accepted.recv(2000)  # what was unread is gone
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""


def test_a_descriptor_used_again_is_never_cut_for_its_predecessor(listener):
    port = listener.getsockname()[1]
    with connect(listener) as first, listener.accept()[0] as accepted:
        (old,) = sockets.open_sockets(port, {})
        with connect(listener) as second, listener.accept()[0] as other:
            os.dup2(other.fileno(), accepted.fileno())
            assert not sockets.cut(old)
            second.sendall(b"x")
            assert other.recv(1) == b"x"
            (*_, again) = sockets.open_sockets(port, {old.descriptor: old})
            assert again.peer[1] == second.getsockname()[1]
        assert first.fileno() > 0


CLIENT_HELLO = b"\x16\x03\x01\x00\xc8\x01" + bytes(200)


def takes(accepted: socket.socket) -> bytes:
    accepted.settimeout(0.3)
    try:
        return accepted.recv(1 << 16)
    except TimeoutError:
        return b""


def test_held_networks_open_connections_and_say_no_more_than_hello(listener):
    port = listener.getsockname()[1]
    (own,) = sockets.listeners(port)
    address = "::1" if listener.getsockname()[0] == "::1" else "127.0.0.1"
    many = [f"10.0.{number // 250}.{number % 250}" for number in range(499)]
    with connect(listener) as before, listener.accept()[0] as accepted_before:
        assert sockets.hold_networks(own, [sockets.network_of(address), *many])
        before.sendall(bytes(1000))
        assert takes(accepted_before) == bytes(1000)  # open ones are not concerned
    with connect(listener) as client:
        client.sendall(CLIENT_HELLO)
        accepted = listener.accept()[0]
        assert takes(accepted) == CLIENT_HELLO
        client.sendall(b"\x17" + bytes(1000))
        assert takes(accepted) == b""
        (found,) = sockets.open_sockets(port, {})
        assert sockets.release(found)
        accepted.settimeout(5)
        assert accepted.recv(1 << 16) == b"\x17" + bytes(1000)  # the kernel of the other end has sent it again
        assert not sockets.release(found)
        accepted.close()
    if address == "127.0.0.1":
        with connect(listener, "127.0.0.2") as other, listener.accept()[0] as accepted:
            other.sendall(bytes(1000))
            assert takes(accepted) == bytes(1000)
    assert sockets.hold_networks(own, [])
    with connect(listener) as client, listener.accept()[0] as accepted:
        client.sendall(bytes(1000))
        assert takes(accepted) == bytes(1000)


def test_garbage_never_passes_where_a_network_is_held(listener):
    (own,) = sockets.listeners(listener.getsockname()[1])
    assert sockets.hold_networks(own, ["::1" if listener.getsockname()[0] == "::1" else "127.0.0.1"])
    for data in (bytes(1000), b"\x16\x03\x01\x00\xc8\x02" + bytes(200), b"PRI * HTTP/2.0\r\n\r\nSM" + bytes(100)):
        with connect(listener) as client:
            client.sendall(data)
            listener.settimeout(0.3)
            with pytest.raises(TimeoutError):  # it says nothing that counts: it is not accepted
                listener.accept()


def held_admission(*networks: str) -> AdmissionQueue:
    made = AdmissionQueue()
    for network in networks:
        made.flooded(network, None, NOW)
    made.changed(NOW)
    return made


def admitted(made: AdmissionQueue, found: list[Connection], now: float, resident: int = 0) -> list[int]:
    turns = list(made.admit(found, resident, now))
    for each in turns:
        each.admitted = True
    return [each.socket.inode for each in turns]


def test_connections_of_other_networks_and_of_silos_never_wait():
    made = held_admission("10.0.0.9")
    found = [stranger(1), stranger(2, address="10.0.0.9"), stranger(3, address="10.0.0.9", silo="a")]
    assert admitted(made, found, NOW) == [1, 3]
    assert admitted(made, found, NOW + admission.HELD_S - 1) == []
    made.changed(NOW + admission.HELD_S + 1)
    assert admitted(made, found, NOW + admission.HELD_S + 1) == [2]


def test_oldest_and_newest_are_admitted_in_turn_and_silent_ones_wait():
    made = held_admission("10.0.0.1")
    found = [stranger(number, age=10 - number / 10, received=500 * (number >= 20)) for number in range(60)]
    assert admitted(made, found, NOW) == [20, 59, 21, 58]
    assert admitted(made, found, NOW + 1 / admission.ADMITTED_PER_S) == [22]
    assert len(admitted(made, found, NOW + 60)) == admission.MOST_AT_ONCE  # time alone earns no more than a few


def test_two_held_networks_are_admitted_alike():
    made = held_admission("10.0.0.1", "10.0.0.2")
    found = [stranger(number, address=f"10.0.0.{1 + number % 10 // 9}", received=1) for number in range(100)]
    assert sum(number % 10 == 9 for number in admitted(made, found, NOW)) == 2


def test_fewer_are_admitted_while_memory_is_short():
    made = AdmissionQueue()
    list(made.admit([], 100 << 20, NOW - 1))
    made.flooded("10.0.0.1", None, NOW)
    found = [stranger(number, received=1) for number in range(200)]
    assert len(admitted(made, found, NOW, 100 << 20)) == admission.MOST_AT_ONCE
    assert len(admitted(made, found, NOW + 0.25, 300 << 20)) == 0.25 * admission.SCARCE_PER_S
    assert len(admitted(made, found, NOW + 0.35, 200 << 20)) == 0.1 * admission.ADMITTED_PER_S // 1


def test_connections_of_a_crowd_are_filtered_and_never_wait():
    made = AdmissionQueue()
    made.crowded("10.0.0.1", NOW)
    made.flooded("10.0.0.2", None, NOW)
    assert made.changed(NOW)
    assert made.filtered == ["10.0.0.2", "10.0.0.1"]
    assert admitted(made, [stranger(number, received=1) for number in range(100)], NOW) == list(range(100))
    assert made.changed(NOW + admission.HELD_S + 1)
    assert made.filtered == []


def test_a_silo_that_flooded_is_suspected_for_a_while_only():
    made = AdmissionQueue()
    made.flooded("10.0.0.1", "a", NOW)
    assert made.changed(NOW)
    assert not made.changed(NOW + 1)
    assert list(made.suspects) == ["a"]
    assert made.changed(NOW + admission.HELD_S + 1)
    assert not made.changed(NOW + admission.SUSPECTED_S + 1)
    assert made.suspects == {}


def test_a_later_connection_from_the_same_port_starts_as_a_stranger(listener):
    guard, port = ConnectionGuard(LIMITS), listener.getsockname()[1]
    with connect(listener) as client, listener.accept()[0]:
        address, number = client.getsockname()[:2]
        peer = f"ipv6:%5B{address}%5D:{number}" if ":" in address else f"ipv4:{address}:{number}"
        guard.identified(peer, "a")
        guard.look(port, time.monotonic())
        guard.look(port, time.monotonic() + 60)
        assert guard.cuts == {}
    guard.look(port, time.monotonic() + 61)
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(socket.socket(client.family))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, number))
        try:
            made.connect((address, port))
        except OSError:
            pytest.skip("the port is not free yet")
        stack.enter_context(listener.accept()[0])
        guard.look(port, time.monotonic() + 62)
        guard.look(port, time.monotonic() + 80)
        assert guard.cuts == {"no_call": 1}


def test_hours_of_honest_calls_buy_no_flood(listener):
    guard, port = ConnectionGuard(LIMITS), listener.getsockname()[1]
    with connect(listener) as client, listener.accept()[0]:
        address, number = client.getsockname()[:2]
        peer = f"ipv6:%5B{address}%5D:{number}" if ":" in address else f"ipv4:{address}:{number}"
        guard.identified(peer, "a")
        guard.carried(peer, 10 << 30)
        guard.look(port, time.monotonic())
        (connection,) = guard._connections.values()
        assert connection.excess == pytest.approx(-connection_limits.EXCESS_BYTES, abs=1)
        connection.received += 2 * connection_limits.EXCESS_BYTES + 100
        assert list(to_cut([connection], LIMITS, (), time.monotonic())) == [(connection, "flood")]


@pytest.mark.parametrize("silos", [1, 40])
def test_too_few_descriptors_end_the_start_with_78(make_federation, monkeypatch, silos):
    monkeypatch.setattr(server, "raise_descriptor_limit", lambda: 200)
    federation = make_federation(*(f"s{number}" for number in range(silos)))
    with pytest.raises(SettingsError, match="may open 200 files") as error:
        server.serve(load_coordinator_settings(federation.folder / "coordinator.toml"), Shutdown())
    assert error.value.exit_code == 78


def test_connections_that_close_during_a_look_do_not_end_the_guard(listener, monkeypatch):
    """Between fstat() and the next call gRPC may close a descriptor, or a file may take its number."""
    guard, port, real = ConnectionGuard(LIMITS), listener.getsockname()[1], os.fstat
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(connect(listener))
            accepted = listener.accept()[0].detach()
            stack.callback(os.close, accepted)
        looks = iter(range(1000))

        def closing(descriptor: int) -> os.stat_result:
            facts = real(descriptor)
            if descriptor > accepted - 10 and next(looks) % 3 == 0 and sockets.stat.S_ISSOCK(facts.st_mode):
                with Path(os.devnull).open() as other:
                    os.dup2(other.fileno(), descriptor)
            return facts

        monkeypatch.setattr(os, "fstat", closing)
        for minutes in range(5):
            guard.look(port, time.monotonic() + 60 * minutes)
        monkeypatch.undo()
        assert guard.cuts["no_call"] > 0


def test_a_closed_connections_bytes_are_none_and_it_is_not_cut(listener):
    with connect(listener) as client, listener.accept()[0] as accepted:
        (found,) = sockets.open_sockets(listener.getsockname()[1], {})
        accepted.close()
        assert sockets.moved_bytes(found.descriptor) == (0, 0)
        assert not sockets.cut(found)
        assert client.fileno() > 0


def test_without_a_descriptor_for_a_look_the_guard_looks_again(monkeypatch, caplog):
    guard, looks = ConnectionGuard(LIMITS), []

    def look(port: int, now: float) -> None:
        looks.append(now)
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(guard, "look", look)
    guard.start(1)
    until = time.monotonic() + 10
    while len(looks) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    guard.stop()
    assert len(looks) >= 3
    assert [record.getMessage() for record in caplog.records] == ["connections_not_seen"]


def test_a_look_at_a_thousand_connections_takes_milliseconds(listener):
    guard, port = ConnectionGuard(ConnectionLimits(5000, 5000, 24)), listener.getsockname()[1]
    with contextlib.ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(connect(listener))
            stack.enter_context(listener.accept()[0])
        guard.look(port, time.monotonic())
        began = time.thread_time()
        guard.look(port, time.monotonic())
        assert time.thread_time() - began < 0.1
