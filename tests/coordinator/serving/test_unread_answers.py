"""Answers that a silo does not read end after their time, with what they hold in memory."""

import contextlib
import struct
import time

import grpc
import psutil
import pytest
from flamest.coordinator.serving import service as service_module
from flamest.experiments import raw_caller
from flamest.experiments.raw_caller import RawCaller, frame, message
from flamest.fedproto import calls, messages
from flamest.fedproto.records import Phase
from flamest.fedproto.tls import channel_credentials

LIMIT_S = 2.0
FETCH, WAIT = calls.method_path(calls.FETCH_MODEL), calls.method_path(calls.WAIT_FOR_ROUND)
JOIN, REPORT = calls.method_path(calls.JOIN), calls.method_path(calls.REPORT_EVALUATION)
HEALTH = "/grpc.health.v1.Health/Check"


@pytest.fixture
def federation(make_federation, monkeypatch):
    """Models of 6 MB: more than the sockets of both sides take."""
    monkeypatch.setattr(calls, "transfer_s", lambda _: LIMIT_S)
    monkeypatch.setattr(calls, "CALL_S", LIMIT_S)
    federation = make_federation("a", "b", rounds=3, min_silos=1, hidden=[3000, 500], wanted=1)
    federation.start()
    return federation


@pytest.fixture
def joined(federation):
    with federation.client("b") as client:
        run = client.join()
        return run, client.wait(run, 0, 5)


def requests(run, status) -> dict[str, tuple[str, bytes]]:
    fetch = messages.encode_fetch_request(messages.FetchRequest(run.sha256, status.round))
    return {
        "model": (FETCH, fetch),
        "settings": (JOIN, messages.encode_join_request(1)),
        "round": (WAIT, messages.encode_wait_request(messages.WaitRequest(run.sha256, 0, 1.0))),
        "health": (HEALTH, b""),
        "refusal": (FETCH, messages.encode_fetch_request(messages.FetchRequest(run.sha256, 99))),
    }


READERS = {
    "a window of nothing": {"window": 0},
    "a window of one byte": {"window": 1},
    "a window of 70 kB": {"window": 70_000},
    "nothing of its socket": {"receive_bytes": 4096},
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("answer", ["model", "settings", "round", "health"])
def test_an_unread_answer_ends_after_its_time(federation, joined, reader, answer):
    path, request = requests(*joined)[answer]
    size = 6e6 if answer == "model" else {"settings": 400, "round": 40, "health": 2}[answer]
    caller = RawCaller(federation.connection_settings("b"), **READERS[reader])
    with contextlib.closing(caller):
        for _ in range(8):
            caller.open_stream(path, message(request), end=True)
        unread = "receive_bytes" in READERS[reader] or READERS[reader]["window"] < size
        if unread and not (size < 6e6 and "receive_bytes" in READERS[reader]):
            assert caller.is_cut(LIMIT_S * 4 + 4)  # the model's fetches: two at a time
    with federation.client("a") as client:
        assert client.wait(client.join(), 0, 5).phase is Phase.OPEN


def test_a_model_read_byte_by_byte_ends_after_its_time(federation, joined):
    path, request = requests(*joined)["model"]
    with contextlib.closing(RawCaller(federation.connection_settings("b"), window=0)) as caller:
        stream = caller.open_stream(path, message(request), end=True)
        before = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - before < 12:
                caller.send(frame(raw_caller.WINDOW_UPDATE, 0, stream, struct.pack(">I", 1)))
                caller.frames(0.1)
        assert time.monotonic() - before < 11


def resident() -> int:
    return psutil.Process().memory_info().rss


def test_models_never_read_hold_a_few_pieces_of_a_silo(federation, joined, monkeypatch):
    """96 fetches on twelve connections: two of them have a piece in memory, the others wait."""
    monkeypatch.setattr(calls, "transfer_s", lambda _: 60.0)
    path, request = requests(*joined)["model"]
    before = resident()
    with contextlib.ExitStack() as stack:
        for _ in range(12):
            caller = RawCaller(federation.connection_settings("b"), window=1000)
            stack.callback(caller.close)
            for _ in range(8):
                caller.open_stream(path, message(request), end=True)
        time.sleep(5.0)
        assert resident() - before < 20 << 20
    assert service_module.FETCHES_PER_SILO <= 2


def test_a_closed_rounds_model_is_not_kept_for_a_slow_silo(federation, joined, monkeypatch):
    """The fetch ends when there is a newer model, with the code that makes an agent ask for the next round."""
    monkeypatch.setattr(calls, "transfer_s", lambda _: 30.0)
    run, status = joined
    path, request = requests(run, status)["model"]
    settings = federation.connection_settings("b")
    with contextlib.closing(RawCaller(settings, window=1 << 20)) as caller:
        stream = caller.open_stream(path, message(request), end=True)
        caller.frames(0.5)
        with federation.client("a") as client:
            from flamest.fedproto.records import Update

            model = client.fetch(run, client.wait(run, 0, 5))
            client.submit(run, Update(1, model.sha256, "0a" * 16, 5, model.params))
            assert client.wait(run, 1, 20).round == 2
        caller.send(frame(raw_caller.WINDOW_UPDATE, 0, stream, struct.pack(">I", 4 << 20)))
        answer = b"".join(payload for kind, _, _, payload in caller.frames(3.0) if kind == raw_caller.HEADERS)
    assert b"stale_round" in answer


def test_a_third_fetch_of_a_silo_waits_for_another_to_end(federation, joined):
    """An agent whose earlier connections were lost gets its model as soon as those fetches end."""
    path, request = requests(*joined)["model"]
    with contextlib.closing(RawCaller(federation.connection_settings("b"), window=0)) as caller:
        for _ in range(2):
            caller.open_stream(path, message(request), end=True)
        time.sleep(0.3)
        settings = federation.connection_settings("b")
        credentials = channel_credentials(settings.files)
        with grpc.secure_channel(settings.address, credentials, options=calls.client_options()) as channel:
            fetch = channel.unary_stream(path, None, None)
            assert sum(map(len, fetch(request, timeout=20))) > 6e6
