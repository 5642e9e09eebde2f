"""Calls of refused callers take no place, whatever their streams carry; a silo in good standing takes its own only."""

import contextlib
import threading
import time

import pytest
from flamest.coordinator.admin import authority
from flamest.experiments import raw_caller
from flamest.experiments.raw_caller import RawCaller, frame, message
from flamest.fedproto import calls, messages

JOIN = messages.encode_join_request(1)
JOIN_PATH, HEALTH_PATH = calls.method_path(calls.JOIN), "/grpc.health.v1.Health/Check"
PLACES, CONNECTIONS = 24, 5  # with eight streams each: more than there are places


@pytest.fixture
def federation(make_federation, monkeypatch):
    monkeypatch.setattr(calls, "MAX_CALLS", PLACES)
    federation = make_federation("a", "b", "mallory", rounds=3, min_silos=1)
    federation.start()
    return federation


@pytest.fixture
def revoked(federation):
    settings = federation.connection_settings("mallory")
    authority.revoke_silo(federation.folder, "mallory")
    return settings


@pytest.fixture
def connect():
    """Opens raw connections, and closes them at the end."""
    with contextlib.ExitStack() as stack:

        def connect(settings, **options) -> RawCaller:
            caller = RawCaller(settings, **options)
            stack.callback(caller.close)
            return caller

        yield connect


def honest_calls(federation, times: int = 12) -> float:
    """Calls of silo a, without retries; returns the slowest one's seconds."""
    import grpc
    from flamest.fedproto.tls import channel_credentials

    settings, slowest = federation.connection_settings("a"), 0.0
    credentials = channel_credentials(settings.files)
    with grpc.secure_channel(settings.address, credentials, options=calls.client_options()) as channel:
        for _ in range(times):
            before = time.monotonic()
            channel.unary_unary(calls.method_path(calls.JOIN), None, None)(JOIN, timeout=10)
            slowest = max(slowest, time.monotonic() - before)
    return slowest


HALF = message(JOIN + bytes(1000))[:500]
STREAMS = {
    "Join without a message": (JOIN_PATH, b"", {}),
    "WaitForRound without a message": (calls.method_path(calls.WAIT_FOR_ROUND), b"", {}),
    "FetchModel without a message": (calls.method_path(calls.FETCH_MODEL), b"", {}),
    "SubmitUpdate without a message": (calls.method_path(calls.SUBMIT_UPDATE), b"", {}),
    "ReportEvaluation without a message": (calls.method_path(calls.REPORT_EVALUATION), b"", {}),
    "health check without a message": (HEALTH_PATH, b"", {}),
    "a call that does not exist": ("/flamest.v1.Coordinator/Shutdown", b"", {}),
    "half a message": (JOIN_PATH, HALF, {}),
    "half a message's length": (JOIN_PATH, b"\x00\x00", {}),
    "a length of 4 GiB": (JOIN_PATH, b"\x00\xff\xff\xff\xff", {}),
    "a message without an end": (JOIN_PATH, message(JOIN), {}),
    "two messages": (JOIN_PATH, message(JOIN) * 2, {}),
    "an end without a message": (JOIN_PATH, b"", {"end": True}),
    "an end in the headers": (JOIN_PATH, b"", {"end_of_headers": True}),
    "a whole call": (JOIN_PATH, message(JOIN), {"end": True}),
}


@pytest.mark.parametrize("case", STREAMS)
def test_refused_streams_keep_no_place_whatever_they_carry(federation, revoked, connect, case):
    """Eight streams on each connection; every one is ended by the server at once, though none is half-closed."""
    path, body, ends = STREAMS[case]
    callers = [connect(revoked) for _ in range(CONNECTIONS)]
    for caller in callers:
        for _ in range(8):
            caller.open_stream(path, body, **ends)
    assert honest_calls(federation) < 5
    for caller in callers[:2]:
        assert len(caller.ended(3.0, count=8)) == 8


def endless(caller: RawCaller, over: threading.Event, what: str) -> None:
    """Floods a connection until ``over``, or until the server has cut it."""
    with contextlib.suppress(OSError):
        stream = caller.open_stream(JOIN_PATH)
        while not over.is_set():
            if what == "one byte at a time":
                caller.send(frame(raw_caller.DATA, 0, stream, b"\x00"))
                time.sleep(0.02)
            elif what == "streams that are reset at once":
                for _ in range(50):
                    number = caller.open_stream(JOIN_PATH)
                    caller.send(frame(raw_caller.RST_STREAM, 0, number, bytes(4)))
                time.sleep(0.05)
            elif what == "calls over and over":
                for _ in range(8):
                    caller.open_stream(JOIN_PATH, message(JOIN), end=True)
                caller.frames(0.05)
            elif what == "pings":
                caller.send(frame(raw_caller.PING, 0, 0, bytes(8)) * 100)
                time.sleep(0.05)
            elif what == "settings":
                caller.send(frame(raw_caller.SETTINGS, 0, 0) * 100)
                time.sleep(0.05)
            elif what == "window updates":
                caller.send(frame(raw_caller.WINDOW_UPDATE, 0, 0, b"\x00\x00\x00\x01") * 100)
                time.sleep(0.05)
            elif what == "priorities":
                caller.send(frame(raw_caller.PRIORITY, 0, 2**20 + 1, bytes(4) + b"\x10") * 100)
                time.sleep(0.05)


@pytest.mark.parametrize(
    "what",
    [
        "one byte at a time",
        "streams that are reset at once",
        "calls over and over",
        "pings",
        "settings",
        "window updates",
        "priorities",
    ],
)
def test_floods_of_a_refused_caller_leave_honest_calls_served(federation, revoked, connect, what):
    over = threading.Event()
    threads = [threading.Thread(target=endless, args=(connect(revoked), over, what)) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        assert honest_calls(federation) < 8
    finally:
        over.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("options", [{"window": 0}, {"receive_bytes": 2048}])
def test_a_refused_caller_that_reads_nothing_keeps_no_place(federation, revoked, connect, options):
    callers = [connect(revoked, **options) for _ in range(CONNECTIONS)]
    for caller in callers:
        for _ in range(8):
            caller.open_stream(JOIN_PATH, message(JOIN), end=True)
    assert honest_calls(federation) < 5


def test_a_silo_that_sends_no_message_has_its_share_of_calls_only(federation, connect, monkeypatch):
    """An enrolled silo with silent streams: another one is served, and the silent ones end after the time limit."""
    monkeypatch.setattr(calls, "CALL_S", 2.0)
    callers = [connect(federation.connection_settings("b")) for _ in range(CONNECTIONS)]
    for caller in callers:
        for _ in range(8):
            caller.open_stream(JOIN_PATH)
    assert honest_calls(federation) < 5
    assert sum(len(caller.ended(5.0, count=8)) for caller in callers) == CONNECTIONS * 8


def test_silos_that_take_every_place_leave_each_other_silo_two(federation, monkeypatch):
    from flamest.base.errors import DataError
    from flamest.coordinator.serving.limits import CallShares

    shares, taken = CallShares(), contextlib.ExitStack()
    with taken:
        for number in range(PLACES // 4):
            for _ in range(4):
                taken.enter_context(shares.call(f"s{number}"))
        with shares.call("a"), shares.call("a"), pytest.raises(DataError, match="ask again"):
            taken.enter_context(shares.call("a"))
    assert shares._under_way.total() == 0


@pytest.mark.parametrize(
    ("body", "ends", "status"),
    [
        (message(JOIN) * 2, {"end": True}, b"malformed"),
        (b"", {"end": True}, b"malformed"),
        (b"", {"end_of_headers": True}, b"malformed"),
        (message(JOIN), {}, b"too_slow"),
        (HALF, {}, b"too_slow"),
    ],
)
def test_a_call_has_exactly_one_message_within_its_time(federation, connect, monkeypatch, body, ends, status):
    monkeypatch.setattr(calls, "CALL_S", 0.5)
    caller = connect(federation.connection_settings("b"))
    caller.open_stream(JOIN_PATH, body, **ends)
    answer = b"".join(
        payload
        for kind, _, _, payload in caller.frames(2.0, until_kind=raw_caller.HEADERS)
        if kind == raw_caller.HEADERS
    )
    assert status in answer


def test_health_check_is_refused_to_a_revoked_silo(federation, revoked, connect):
    caller = connect(revoked)
    caller.open_stream(HEALTH_PATH, message(b""), end=True)
    assert not any(kind == raw_caller.DATA for kind, *_ in caller.frames(1.0))
