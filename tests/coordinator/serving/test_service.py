"""The server from a silo's side: real gRPC, mutual TLS, loopback; nothing is faked."""

import dataclasses
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from flamest.agent.client import ConnectionSettings, CoordinatorClient
from flamest.agent.client_errors import refusal_code
from flamest.base.errors import IdentityError, LockedError, StorageError
from flamest.base.files import sha256_bytes
from flamest.base.process import Shutdown
from flamest.coordinator.admin import authority
from flamest.coordinator.serving import server
from flamest.coordinator.serving import upload as upload_module
from flamest.coordinator.serving.server import serve
from flamest.coordinator.storage.run_store import RunStore
from flamest.fedproto import calls, messages
from flamest.fedproto.certificates import (
    Identity,
    make_authority,
    make_server_certificate,
    make_silo_request,
    sign_silo,
)
from flamest.fedproto.head import initial_params, params_sha256
from flamest.fedproto.model_file import read_model
from flamest.fedproto.records import Evaluation, Phase, Update
from flamest.fedproto.tensors import chunks, encode_params, shapes
from flamest.fedproto.tls import TlsFiles, channel_credentials

HALF_AN_HOUR_AGO = -1 / 48  # days; certificates begin an hour ago


def raw_channel(federation, name: str, settings: ConnectionSettings | None = None) -> grpc.Channel:
    settings = settings or federation.connection_settings(name)
    return grpc.secure_channel(settings.address, channel_credentials(settings.files), options=calls.client_options())


def ask(channel: grpc.Channel, method: str, request: bytes) -> bytes:
    return channel.unary_unary(calls.method_path(method), None, None)(request, timeout=10)


def upload(channel: grpc.Channel, parts: list[bytes]) -> bytes:
    return channel.stream_unary(calls.method_path(calls.SUBMIT_UPDATE), None, None)(iter(parts), timeout=10)


def refused(call, *arguments) -> tuple[str, str | None]:
    """Status and code word of a call that must fail."""
    with pytest.raises(grpc.RpcError) as error:
        call(*arguments)
    return error.value.code().name, refusal_code(error.value)


class Silo:
    """A joined silo with the open round's model, and an update to send."""

    def __init__(self, federation, name: str) -> None:
        self.name = name
        self.federation = federation
        self.channel = raw_channel(federation, name)
        with federation.client(name) as client:
            self.run = client.join()
            self.status = client.wait(self.run, 0, 5)
            self.model = client.fetch(self.run, self.status)
        self.params = initial_params(self.run.head, seed=sum(name.encode()))
        self.update_id = os.urandom(16).hex()

    def header(self, **changes) -> messages.UpdateHeader:
        payload = self.payload()
        header = messages.UpdateHeader(
            settings_sha256=self.run.sha256,
            round=self.status.round,
            base_sha256=self.model.sha256,
            update_id=self.update_id,
            examples=20,
            shapes=shapes(self.run.head),
            payload_bytes=len(payload),
            payload_sha256=sha256_bytes(payload),
            evaluation=Evaluation(1.5, 2, 5),
        )
        return dataclasses.replace(header, **changes)

    def payload(self) -> bytes:
        return encode_params(self.run.head, self.params)

    def parts(self, payload: bytes | None = None, **changes) -> list[bytes]:
        payload = self.payload() if payload is None else payload
        pieces = map(messages.encode_update_data, chunks(payload, 64))
        return [messages.encode_update_header(self.header(**changes)), *pieces]

    def send(self, **options) -> bytes:
        return upload(self.channel, self.parts(**options))

    def close(self) -> None:
        self.channel.close()


@pytest.fixture
def federation(make_federation):
    federation = make_federation("a", "b", "c", rounds=2, min_silos=2)
    federation.start()
    return federation


@pytest.fixture
def silo(federation):
    silo = Silo(federation, "a")
    yield silo
    silo.close()


def test_model_is_the_weighted_mean_to_the_last_bit(make_federation):
    federation = make_federation("a", "b", "c", rounds=2, min_silos=2, examples_times=0)
    federation.start()
    sizes = {"c": 17, "a": 301, "b": 94}  # the order of arrival
    sent = {}
    for name, examples in sizes.items():
        with federation.client(name) as client:
            run = client.join()
            status = client.wait(run, 0, 5)
            model = client.fetch(run, status)
            sent[name] = initial_params(run.head, seed=examples)
            client.submit(run, Update(status.round, model.sha256, os.urandom(16).hex(), examples, sent[name]))
    with federation.client("a") as client:
        status = client.wait(run, 1, 5)
        mean = client.fetch(run, status)
    for name, tensor in mean.params.items():
        for place in np.ndindex(tensor.shape):
            total = sum(float(sizes[silo]) * float(sent[silo][name][place]) for silo in sorted(sizes))
            assert tensor[place] == np.float32(total / sum(sizes.values()))
    stored = read_model(federation.state / "runs" / "run-1" / "models" / "round-000001.safetensors")
    assert params_sha256(stored.params) == mean.sha256


def test_waiting_silo_is_answered_when_the_next_round_opens(federation):
    first, second = Silo(federation, "a"), Silo(federation, "b")
    third = Silo(federation, "c")
    first.send()
    answered = []

    def wait() -> None:
        with federation.client("a") as client:
            status = client.wait(first.run, 1, 30)
            answered.append((time.monotonic(), status))

    waiting = threading.Thread(target=wait)
    waiting.start()
    second.send()
    time.sleep(0.3)
    assert not answered
    before = time.monotonic()
    third.send()
    waiting.join(10)
    at, status = answered[0]
    assert (status.phase, status.round) == (Phase.OPEN, 2)
    assert at - before < 15  # of the 30 s that it would wait
    for silo in (first, second, third):
        silo.close()


def test_an_acknowledged_update_is_on_disk(silo, federation):
    silo.send()
    payload = federation.state / "runs" / "run-1" / "updates" / "000001" / "a.f32"
    assert payload.read_bytes() == silo.payload()
    row = federation.rounds()[0]
    found = row["incoming"]
    assert (row["accepted"], row["examples"], found["loss"], found["correct"], found["count"]) == (1, 20, 1.5, 2, 5)


def same_update_from_many_threads(federation, times: int, threads: int) -> set:
    """The receipts of one update, sent by a client of each thread again and again; and once more at the end."""

    def work(_: int) -> list:
        with federation.client("a", give_up_after_s=60.0) as client:
            run = client.join()
            start = params_sha256(initial_params(run.head, run.seed))
            update = Update(1, start, "0a" * 16, 20, initial_params(run.head, seed=3))
            return [client.submit(run, update) for _ in range(times)]

    with ThreadPoolExecutor(threads) as pool:
        receipts = [receipt for made in pool.map(work, range(threads)) for receipt in made]
    receipts += work(0)[:1]
    assert len(receipts) == threads * times + 1
    return set(receipts)


def test_repeated_update_gets_the_same_receipt_and_counts_once(federation):
    """16 threads with a connection each, 112 times, and once more."""
    assert len(same_update_from_many_threads(federation, 7, 16)) == 1
    row = federation.rounds()[0]
    assert (row["accepted"], row["examples"], row["refused"]) == (1, 20, 0)


def test_too_many_calls_on_a_connection_are_retried_and_counted_once(silo, federation):
    """gRPC refuses a ninth call on a connection (REFUSED_STREAM, UNAVAILABLE), which the agent's client retries."""

    def send(_: int) -> tuple[str, bytes]:
        try:
            return "OK", silo.send()
        except grpc.RpcError as error:
            return error.code().name, b""

    with ThreadPoolExecutor(16) as pool:
        answers = set(pool.map(send, range(100)))
    assert {status for status, _ in answers} <= {"OK", "UNAVAILABLE"}
    assert len({receipt for status, receipt in answers if status == "OK"}) == 1
    assert federation.rounds()[0]["accepted"] == 1


def test_an_update_sent_again_after_its_round_closed_gets_its_receipt(silo, federation):
    receipt = silo.send()
    others = [Silo(federation, name) for name in "bc"]
    for other in others:
        other.send()
        other.close()
    with federation.client("a") as client:
        assert client.wait(silo.run, 1, 5).round == 2
    assert silo.send() == receipt


@pytest.mark.parametrize("change", [{"examples": 21}, {"evaluation": None}])
def test_the_same_id_with_another_header_is_refused(silo, change):
    silo.send()
    assert refused(upload, silo.channel, silo.parts(**change)) == ("ALREADY_EXISTS", "reused_id")


def test_same_id_with_other_bytes_is_refused_and_the_first_stays(silo, federation):
    silo.send()
    first = silo.payload()
    silo.params = initial_params(silo.run.head, seed=99)
    assert refused(upload, silo.channel, silo.parts()) == ("ALREADY_EXISTS", "reused_id")
    assert (federation.state / "runs" / "run-1" / "updates" / "000001" / "a.f32").read_bytes() == first


def test_a_second_update_of_a_silo_in_a_round_is_refused(silo, federation):
    silo.send()
    silo.update_id = os.urandom(16).hex()
    assert refused(upload, silo.channel, silo.parts()) == ("ALREADY_EXISTS", "already_answered")
    assert federation.rounds()[0]["accepted"] == 1


def test_an_update_for_another_round_model_or_run_is_refused(silo, federation):
    for change, code in [
        ({"round": 0}, "stale_round"),
        ({"round": 2}, "stale_round"),
        ({"base_sha256": "00" * 32}, "stale_base"),
        ({"settings_sha256": "00" * 32}, "other_run"),
    ]:
        assert refused(upload, silo.channel, silo.parts(**change)) == ("FAILED_PRECONDITION", code)
    assert federation.rounds()[0]["accepted"] == 0


def test_update_with_nan_is_refused_and_adds_no_weight(silo, federation):
    values = np.frombuffer(silo.payload(), "<f4").copy()
    for bad in (np.nan, np.inf, -np.inf):
        values[7] = bad
        payload = values.tobytes()
        answers = refused(upload, silo.channel, silo.parts(payload=payload, payload_sha256=sha256_bytes(payload)))
        assert answers == ("INVALID_ARGUMENT", "not_finite")
    row = federation.rounds()[0]
    assert (row["accepted"], row["refused"], row["examples"]) == (0, 3, 0)
    silo.send()  # the honest one still counts
    assert federation.rounds()[0]["accepted"] == 1


def test_a_payload_changed_on_the_way_is_data_loss(silo, federation):
    payload = bytearray(silo.payload())
    payload[5] ^= 1
    assert refused(upload, silo.channel, silo.parts(payload=bytes(payload))) == ("DATA_LOSS", "payload_digest")
    assert federation.rounds()[0]["accepted"] == 0
    assert list((federation.state / "runs" / "run-1" / "spool").iterdir()) == []


def test_an_update_of_another_form_is_refused_with_its_code(silo):
    good = silo.parts()
    header, data = good[0], good[1:]
    size = len(silo.payload())
    for parts, code in [
        ([], "malformed"),
        ([b"\xff\xff\xff"], "malformed"),
        (data, "malformed"),
        ([header, header], "malformed"),
        ([header, b"\x12\x00"], "malformed"),
        ([header, *data[:-1]], "payload_size"),
        ([header, *data, data[0]], "payload_size"),
        (silo.parts(examples=0), "examples"),
        (silo.parts(examples=2**32 - 1), "examples"),
        (silo.parts(shapes=silo.header().shapes[:-1]), "tensor_names"),
        (silo.parts(shapes=((6, 5), *silo.header().shapes[1:])), "tensor_shape"),
        (silo.parts(payload_bytes=size * 1000), "payload_size"),
        (silo.parts(evaluation=Evaluation(float("nan"), 0, 1)), "evaluation"),
    ]:
        assert refused(upload, silo.channel, parts) == ("INVALID_ARGUMENT", code)


def test_a_malformed_request_is_invalid_argument_and_never_internal(silo):
    for method in (calls.JOIN, calls.WAIT_FOR_ROUND):
        for request in (b"\xff", b"\x08", b"\xfa\x3e\x01x", b"GET / HTTP/1.1"):
            assert refused(ask, silo.channel, method, request) == ("INVALID_ARGUMENT", "malformed")
    fetch = silo.channel.unary_stream(calls.method_path(calls.FETCH_MODEL), None, None)
    assert refused(list, fetch(b"\xff", timeout=5)) == ("INVALID_ARGUMENT", "malformed")


def test_an_oversized_message_is_refused_and_the_server_lives(silo):
    big = messages.encode_update_data(bytes(calls.MAX_MESSAGE_BYTES))
    settings = silo.federation.connection_settings("a")
    options = [(key, -1 if key == "grpc.max_send_message_length" else value) for key, value in calls.client_options()]
    with grpc.secure_channel(settings.address, channel_credentials(settings.files), options=options) as channel:
        assert refused(upload, channel, [silo.parts()[0], big])[0] == "RESOURCE_EXHAUSTED"
    silo.send()


def test_another_protocol_is_named(silo):
    with pytest.raises(grpc.RpcError, match="speaks protocol 1, the agent 9") as error:
        ask(silo.channel, calls.JOIN, messages.encode_join_request(9))
    assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_a_closed_rounds_model_is_not_given_out(silo):
    fetch = silo.channel.unary_stream(calls.method_path(calls.FETCH_MODEL), None, None)
    request = messages.encode_fetch_request(messages.FetchRequest(silo.run.sha256, 5))
    assert refused(list, fetch(request, timeout=5)) == ("FAILED_PRECONDITION", "stale_round")


def test_only_the_documented_calls_are_served(silo):
    for path in ("/flamest.v1.Coordinator/Shutdown", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"):
        assert refused(silo.channel.unary_unary(path, None, None), b"")[0] == "UNIMPLEMENTED"


# --- identity ---


@pytest.fixture
def handled(monkeypatch):
    """The names of the silos whose calls reached a handler, in order."""
    names = []
    check = authority.AllowList.check

    def watched(self, name, sha256):
        check(self, name, sha256)
        names.append(name)

    monkeypatch.setattr(authority.AllowList, "check", watched)
    return names


def outsider(federation, folder, certificate: bytes, key: bytes) -> ConnectionSettings:
    folder.mkdir()
    files = TlsFiles(federation.folder / "ca.pem", folder / "c.pem", folder / "c.key")
    files.certificate.write_bytes(certificate)
    files.key.write_bytes(key)
    return ConnectionSettings(federation.address, files.ca, files.certificate, files.key)


def rejected(federation, settings: ConnectionSettings | None = None, credentials=None) -> str:
    credentials = credentials or channel_credentials(settings.files)
    with grpc.secure_channel(federation.address, credentials, options=calls.client_options()) as channel:
        return refused(ask, channel, calls.JOIN, messages.encode_join_request(1))[0]


def test_a_caller_that_is_not_an_enrolled_silo_reaches_no_handler(federation, handled, tmp_path):
    fed = federation.folder
    ours = Identity(key=(fed / "ca-key.pem").read_bytes(), certificate=(fed / "ca.pem").read_bytes())
    theirs = make_authority()
    key, request = make_silo_request("a")
    servers = TlsFiles(
        federation.folder / "ca.pem", federation.folder / "server.pem", federation.folder / "server-key.pem"
    )
    stranger = make_silo_request("stranger")

    assert (
        rejected(federation, credentials=grpc.ssl_channel_credentials((federation.folder / "ca.pem").read_bytes()))
        == "UNAVAILABLE"
    )
    foreign = outsider(federation, tmp_path / "foreign", sign_silo(theirs, "a", request), key)
    assert rejected(federation, foreign) == "UNAVAILABLE"
    expired = outsider(federation, tmp_path / "expired", sign_silo(ours, "a", request, days=HALF_AN_HOUR_AGO), key)
    assert rejected(federation, expired) == "UNAVAILABLE"
    assert rejected(federation, credentials=channel_credentials(servers)) in ("UNAVAILABLE", "UNAUTHENTICATED")
    unknown = outsider(federation, tmp_path / "unknown", sign_silo(ours, "stranger", stranger[1]), stranger[0])
    assert rejected(federation, unknown) == "PERMISSION_DENIED"
    twin = outsider(federation, tmp_path / "twin", sign_silo(ours, "a", request), key)
    assert rejected(federation, twin) == "PERMISSION_DENIED"
    with grpc.insecure_channel(federation.address) as channel:
        assert refused(ask, channel, calls.JOIN, messages.encode_join_request(1))[0] == "UNAVAILABLE"
    assert handled == []
    with federation.client("a") as client:
        client.join()
    assert handled == ["a"]


def test_a_revoked_silo_is_refused_on_its_next_call(silo, federation, handled):
    authority.revoke_silo(federation.folder, "a")
    assert refused(upload, silo.channel, silo.parts()) == ("PERMISSION_DENIED", "revoked")
    assert refused(ask, silo.channel, calls.JOIN, messages.encode_join_request(1)) == ("PERMISSION_DENIED", "revoked")
    assert handled == []
    assert federation.rounds()[0]["accepted"] == 0


def test_a_silo_enrolled_while_the_server_runs_can_join_at_once(federation):
    federation.enrol("late")
    with federation.client("late") as client:
        assert client.join().run == "run-1"


def test_a_silo_does_not_trust_another_coordinator(federation, tmp_path):
    other = make_authority()
    theirs = make_server_certificate(other, ["127.0.0.1"])
    fed = federation.folder
    federation.stop()
    (fed / "server.pem").write_bytes(theirs.certificate)
    (fed / "server-key.pem").write_bytes(theirs.key)
    ours = (fed / "ca.pem").read_bytes()
    (fed / "ca.pem").write_bytes(other.certificate)
    federation.start()
    settings = federation.connection_settings("a")
    assert settings.ca.read_bytes() == ours
    with CoordinatorClient.open(settings) as client:
        with pytest.raises(IdentityError, match="is not trusted") as error:
            client.join()
    assert error.value.code == "server_certificate"


# --- deadlines and slow uploads ---


def test_deadline_closes_a_round_with_enough_updates_and_abandons_others(make_federation):
    federation = make_federation("a", "b", "c", rounds=2, min_silos=2, deadline_s=3.0)
    federation.start()
    silos = [Silo(federation, name) for name in "ab"]
    for silo in silos:
        silo.send()
    with federation.client("a") as client:
        status = client.wait(silos[0].run, 1, 10)
        assert (status.phase, status.round) == (Phase.OPEN, 2)
        first = status.model_sha256
        status = client.wait(silos[0].run, 2, 10)  # declines: no one reports
        assert (status.phase, status.round, status.model_sha256) == (Phase.OPEN, 3, first)
    assert [row["status"] for row in federation.rounds()] == ["closed", "abandoned", "open"]
    assert refused(upload, silos[0].channel, silos[0].parts(round=2, update_id="00" * 16)) == (
        "FAILED_PRECONDITION",
        "stale_round",
    )
    for silo in silos:
        silo.close()


def test_a_run_without_silos_waits_in_its_first_round(make_federation):
    federation = make_federation("a", rounds=1, deadline_s=0.1)
    federation.start()
    time.sleep(0.7)
    assert [(row["round"], row["status"]) for row in federation.rounds()] == [(1, "open")]


def test_stalled_upload_is_cut(silo, monkeypatch):
    monkeypatch.setattr(upload_module, "PART_S", 0.3)

    def stalling():
        yield silo.parts()[0]
        time.sleep(2)

    call = silo.channel.stream_unary(calls.method_path(calls.SUBMIT_UPDATE), None, None)
    assert refused(call, stalling()) == ("DEADLINE_EXCEEDED", "too_slow")


def test_caller_that_hangs_up_leaves_no_file(silo, federation):
    gate = threading.Event()

    def half():
        yield silo.parts()[0]
        yield silo.parts()[1]
        gate.wait(5)

    call = silo.channel.stream_unary(calls.method_path(calls.SUBMIT_UPDATE), None, None).future(half())
    time.sleep(0.3)
    spool = federation.state / "runs" / "run-1" / "spool"
    assert len(list(spool.iterdir())) == 1
    call.cancel()
    gate.set()
    until = time.monotonic() + 5
    while list(spool.iterdir()) and time.monotonic() < until:
        time.sleep(0.02)
    assert list(spool.iterdir()) == []
    silo.send()


def test_upload_cut_by_a_lost_connection_is_no_strike(silo, federation):
    """A killed agent or a lost connection ends the stream too soon."""
    for _ in range(4):
        gate = threading.Event()

        def half(gate=gate):
            yield silo.parts()[0]
            yield silo.parts()[1]
            gate.wait(5)

        other = raw_channel(federation, "a")
        call = other.stream_unary(calls.method_path(calls.SUBMIT_UPDATE), None, None).future(half())
        time.sleep(0.2)
        other.close()  # as the kernel does for a process that was killed
        gate.set()
        call.cancel()
    time.sleep(1.0)
    silo.send()
    assert federation.rounds()[0]["refused"] == 0


# --- start, stop and storage errors ---


def run_round(federation, name: str) -> None:
    silo = Silo(federation, name)
    silo.send()
    silo.close()


def test_restarted_server_resumes_the_open_round(make_federation):
    federation = make_federation("a", "b", rounds=2, min_silos=1)
    federation.start()
    run_round(federation, "a")
    federation.stop()
    federation.start()
    row = federation.rounds()[0]
    assert (row["status"], row["accepted"]) == ("open", 1)
    with federation.client("a") as client:
        run = client.join()
        assert client.wait(run, 0, 0.1).phase is Phase.WAIT  # its update is known
    run_round(federation, "b")
    with federation.client("a") as client:
        assert client.wait(run, 1, 5).round == 2


def test_stopping_server_answers_waiting_silos(make_federation):
    federation = make_federation("a", "b", rounds=2)
    federation.start()
    run_round(federation, "a")
    got = []

    def wait() -> None:
        with federation.client("a") as client:
            got.append(client.wait(client.join(), 1, 50))

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.3)
    began = time.monotonic()
    federation.stop()
    waiting.join(10)
    assert time.monotonic() - began < 5
    assert got[0].phase is Phase.WAIT


def test_once_ends_when_silos_have_the_final_model(make_federation):
    federation = make_federation("a", "b", rounds=1)
    federation.start(once=True)
    for name in "ab":
        run_round(federation, name)
    for name in "ab":
        with federation.client(name) as client:
            run = client.join()
            status = client.wait(run, 1, 5)
            assert (status.phase, status.round) == (Phase.FINISHED, 1)
            assert client.fetch(run, status).sha256 == status.model_sha256
    federation.join()
    assert federation.served.finished
    assert not (federation.state / "address").exists()


def test_finished_run_is_served_after_a_restart(make_federation):
    federation = make_federation("a", rounds=1)
    federation.start()
    run_round(federation, "a")
    for _ in range(2):
        with federation.client("a") as client:
            run = client.join()
            status = client.wait(run, 0, 5)
            assert status.phase is Phase.FINISHED
            client.fetch(run, status)
        federation.stop()
        federation.start()


def test_second_server_on_the_port_or_state_is_refused(make_federation):
    first, second = make_federation("a"), make_federation("a")
    first.start()
    began = time.monotonic()
    with pytest.raises(LockedError, match="is held by another process"):
        serve(first.settings(), Shutdown())
    second.config.write_text(second.config.read_text().replace("127.0.0.1:0", first.address))
    with pytest.raises(LockedError, match="cannot listen"):
        serve(second.settings(), Shutdown())
    assert time.monotonic() - began < 2
    with first.client("a") as client:
        client.join()


def test_update_counts_if_its_sender_hangs_up_during_the_write(silo, federation, monkeypatch):
    begun = threading.Event()
    accept = RunStore.accept

    def slow(*arguments) -> None:
        begun.set()
        time.sleep(0.4)
        accept(*arguments)

    monkeypatch.setattr(RunStore, "accept", slow)
    call = silo.channel.stream_unary(calls.method_path(calls.SUBMIT_UPDATE), None, None).future(iter(silo.parts()))
    assert begun.wait(5)
    call.cancel()
    for name in "bc":
        other = Silo(federation, name)
        other.send()
        other.close()
    with federation.client("a") as client:
        assert client.wait(silo.run, 1, 10).round == 2
    assert federation.rounds()[0]["accepted"] == 3


def test_server_recovers_from_a_full_disk_at_a_rounds_end(silo, federation, monkeypatch):
    monkeypatch.setattr(server, "DISK_RETRY_S", 0.05)
    close_round, failures = RunStore.close_round, [StorageError("no space left"), StorageError("no space left")]

    def sometimes(*arguments) -> None:
        if failures:
            raise failures.pop()
        close_round(*arguments)

    monkeypatch.setattr(RunStore, "close_round", sometimes)
    silo.send()
    for name in "bc":
        other = Silo(federation, name)
        other.send()
        other.close()
    with federation.client("a") as client:
        assert client.wait(silo.run, 1, 10).round == 2
    assert failures == []
    assert [row["status"] for row in federation.rounds()] == ["closed", "open"]


def test_full_disk_during_an_upload_asks_the_silo_to_retry(silo, federation, monkeypatch):
    def full(*arguments) -> None:
        raise StorageError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "accept", full)
        assert refused(upload, silo.channel, silo.parts()) == ("UNAVAILABLE", "storage")
    assert federation.rounds()[0]["accepted"] == 0
    silo.send()
    assert federation.rounds()[0]["accepted"] == 1


def test_update_damaged_on_disk_makes_no_model(silo, federation):
    silo.send()
    payload = federation.state / "runs" / "run-1" / "updates" / "000001" / "a.f32"
    payload.write_bytes(bytes(payload.stat().st_size))
    for name in "bc":
        other = Silo(federation, name)
        other.send()
        other.close()
    with federation.client("a") as client:
        assert client.wait(silo.run, 1, 10).round == 2
    assert [row["status"] for row in federation.rounds()] == ["abandoned", "open"]
    (kept,) = (federation.state / "quarantine").glob("*/a.f32")
    assert kept.read_bytes() == bytes(kept.stat().st_size)
