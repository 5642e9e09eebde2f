"""The silo's client against a real coordinator: retries, refusals, messages."""

import dataclasses
import os
import threading
import time

import pytest
from flamest.agent.client import Backoff, ClientStopped, ConnectionSettings, CoordinatorClient, RunChanged, StaleUpdate
from flamest.agent.handshake import handshake_problem, split_address
from flamest.base.errors import DataError, IdentityError, SettingsError, UnreachableError
from flamest.base.process import Shutdown
from flamest.coordinator.admin.authority import revoke_silo
from flamest.fedproto.certificates import make_authority, make_silo_request, sign_silo
from flamest.fedproto.head import initial_params
from flamest.fedproto.records import Evaluation, Phase, Update
from flamest.fedproto.tensors import payload_bytes
from flamest.fedproto.tls import TlsFiles


@pytest.fixture
def federation(make_federation):
    federation = make_federation("a", "b", rounds=2, min_silos=1)
    federation.start()
    return federation


def update_for(run, task, seed: int = 1, update_id: str = "ab" * 16) -> Update:
    params = initial_params(run.head, seed)
    return Update(task.round, task.model_sha256, update_id, 12, params, Evaluation(0.5, 1, 2))


def test_a_round_from_joining_to_the_receipt(federation):
    with federation.client("a") as client:
        assert client.silo == "a"
        run = client.join()
        assert (run.run, run.labels, run.rounds) == ("run-1", ("fall", "run", "walk"), 2)
        task = client.wait(run, 0, 5)
        assert (task.phase, task.round) == (Phase.OPEN, 1)
        assert 0 < task.deadline_s <= 60
        model = client.fetch(run, task)
        assert model.sha256 == task.model_sha256
        update = update_for(run, task)
        receipt = client.submit(run, update)
        assert (receipt.round, receipt.update_id) == (1, update.update_id)
        assert client.submit(run, update) == receipt
        assert client.wait(run, 1, 0.2).phase is Phase.WAIT


def test_a_round_sends_little_more_than_its_tensors(federation):
    with federation.client("a") as client:
        run = client.join()
        task = client.wait(run, 0, 5)
        before = (client.sent_bytes, client.received_bytes)
        client.fetch(run, task)
        client.submit(run, update_for(run, task))
        size = payload_bytes(run.head)
        assert size < client.sent_bytes - before[0] < size + 600
        assert size < client.received_bytes - before[1] < size + 600


def test_retries_start_soon_then_spread_until_the_time_is_over(federation):
    pauses = []
    settings = federation.connection_settings("a")
    federation.stop()

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        time.sleep(seconds)

    with CoordinatorClient.open(
        settings, retry=Backoff(give_up_after_s=1.0, first_s=0.05, spread_s=0.4, sleep=sleep)
    ) as client:
        with pytest.raises(UnreachableError, match=settings.address) as error:
            client.join()
    assert error.value.exit_code == 69
    assert len(pauses) >= 3
    assert 0.5 * 0.05 <= pauses[0] <= 1.5 * 0.05
    assert all(0.0 <= pause <= 0.4 for pause in pauses)


def test_a_call_outlives_a_restart_of_the_coordinator(federation):
    federation.config.write_text(federation.config.read_text().replace("127.0.0.1:0", federation.address))
    with federation.client("a", give_up_after_s=15.0) as client:
        run = client.join()
        task = client.wait(run, 0, 5)
        federation.stop()
        restarted = threading.Timer(0.5, federation.start)
        restarted.start()
        receipt = client.submit(run, update_for(run, task))
        restarted.join()
    assert receipt.round == 1
    assert federation.rounds()[0]["accepted"] == 1


def test_another_run_on_the_coordinator_asks_to_join_again(federation):
    with federation.client("a") as client:
        run = client.join()
        task = client.wait(run, 0, 5)
    federation.stop()
    federation.config.write_text(federation.config.read_text().replace('name = "run-1"', 'name = "run-2"'))
    federation.start()
    with federation.client("a") as client:
        for call in (
            lambda: client.wait(run, 0, 1),
            lambda: client.fetch(run, task),
            lambda: client.submit(run, update_for(run, task)),
        ):
            with pytest.raises(RunChanged, match="run-2"):
                call()
        assert client.join().run == "run-2"


def test_an_update_that_no_round_needs_is_stale_with_a_reason(federation):
    with federation.client("a") as client:
        run = client.join()
        task = client.wait(run, 0, 5)
        good = update_for(run, task)
        for update, code in [
            (dataclasses.replace(good, round=2), "stale_round"),
            (dataclasses.replace(good, base_sha256="00" * 32), "stale_base"),
        ]:
            with pytest.raises(StaleUpdate) as error:
                client.submit(run, update)
            assert error.value.code == code
        client.submit(run, good)
        with pytest.raises(StaleUpdate) as error:
            client.submit(run, dataclasses.replace(good, update_id="cd" * 16))
        assert error.value.code == "already_answered"
        with pytest.raises(StaleUpdate):
            client.fetch(run, dataclasses.replace(task, round=7))


def test_a_model_with_another_hash_than_announced_is_refused(federation):
    with federation.client("a") as client:
        run = client.join()
        task = client.wait(run, 0, 5)
        with pytest.raises(DataError, match="has the hash") as error:
            client.fetch(run, dataclasses.replace(task, model_sha256="00" * 32))
        assert error.value.code == "digest"


def test_an_update_with_nan_is_not_sent(federation):
    with federation.client("a") as client:
        run = client.join()
        task = client.wait(run, 0, 5)
        update = update_for(run, task)
        update.params["0.bias"][0] = float("nan")
        sent = client.sent_bytes
        with pytest.raises(DataError, match="NaN"):
            client.submit(run, update)
        assert client.sent_bytes == sent


def test_a_revoked_silo_does_not_retry(federation):
    with federation.client("a", give_up_after_s=60.0) as client:
        run = client.join()
        revoke_silo(federation.folder, "a")
        began = time.monotonic()
        with pytest.raises(IdentityError, match="was revoked") as error:
            client.wait(run, 0, 5)
        assert time.monotonic() - began < 2
    assert (error.value.code, error.value.exit_code) == ("revoked", 77)


def files(folder, ca: bytes, certificate: bytes, key: bytes) -> TlsFiles:
    made = TlsFiles(folder / "ca.pem", folder / "c.pem", folder / "c.key")
    for path, content in zip((made.ca, made.certificate, made.key), (ca, certificate, key), strict=True):
        path.write_bytes(content)
    return made


def test_invalid_files_are_refused_before_anything_is_sent(federation, tmp_path):
    key, request = make_silo_request("a")
    foreign = files(
        tmp_path, (federation.folder / "ca.pem").read_bytes(), sign_silo(make_authority(), "a", request), key
    )
    with pytest.raises(IdentityError) as error:
        CoordinatorClient.open(ConnectionSettings(federation.address, foreign.ca, foreign.certificate, foreign.key))
    assert error.value.code == "foreign_certificate"


def test_a_failed_handshake_is_explained(federation, tmp_path):
    key, request = make_silo_request("a")
    theirs = make_authority()
    ours = (federation.folder / "ca.pem").read_bytes()
    foreign = files(tmp_path, ours, sign_silo(theirs, "a", request), key)
    problem = handshake_problem(federation.address, foreign)
    assert problem is not None
    assert problem.code == "refused_certificate"
    untrusting = files(tmp_path, theirs.certificate, sign_silo(theirs, "a", request), key)
    problem = handshake_problem(federation.address, untrusting)
    assert problem is not None
    assert problem.code == "server_certificate"
    assert handshake_problem(federation.address, federation.connection_settings("a").files) is None
    assert handshake_problem("127.0.0.1:9", federation.connection_settings("a").files) is None


def test_a_server_under_another_name_is_not_trusted(federation):
    settings = federation.connection_settings("a", address=federation.address.replace("127.0.0.1", "127.0.0.2"))
    federation.stop()
    federation.config.write_text(federation.config.read_text().replace("127.0.0.1:0", "127.0.0.2:0"))
    federation.start()
    settings = federation.connection_settings("a")
    assert settings.address.startswith("127.0.0.2:")  # its certificate is for 127.0.0.1 and localhost
    with CoordinatorClient.open(settings) as client:
        with pytest.raises(IdentityError) as error:
            client.join()
    assert error.value.code == "server_certificate"


@pytest.mark.parametrize("connected", [True, False])
def test_a_call_ends_soon_after_the_process_is_asked_to_end(federation, connected):
    settings = federation.connection_settings("a")
    shutdown = Shutdown()
    with CoordinatorClient.open(settings, shutdown=shutdown) as client:
        run = client.join()
        client.wait(run, 0, 5)  # the first question of a silo is answered at once, whatever it says that it answered
        if not connected:
            federation.stop()
        threading.Timer(0.4, shutdown.request).start()
        began = time.monotonic()
        with pytest.raises(ClientStopped):
            client.wait(run, 1, 60)
        assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    "address",
    [
        "",
        "host",
        "host:",
        ":7443",
        "host:0",
        "host:99999",
        "host:x",
        "https://host:7443",
        "host:7443/",
        "::1:7443",
        "host:²",
    ],
)
def test_an_invalid_address_is_refused(address):
    with pytest.raises(SettingsError, match="expected host:port"):
        split_address(address)


def test_host_and_ipv6_addresses_are_parsed():
    assert split_address("fl.example.org:7443") == ("fl.example.org", 7443)
    assert split_address("[::1]:7443") == ("::1", 7443)


def test_many_silos_of_one_machine_do_not_share_a_connection(federation):
    clients = [federation.client(name) for name in "ab"]
    try:
        runs = [client.join() for client in clients]
        for client, run in zip(clients, runs, strict=True):
            client.submit(run, update_for(run, client.wait(run, 0, 5), update_id=os.urandom(16).hex()))
    finally:
        for client in clients:
            client.close()
    silos = {path.stem for path in (federation.state / "runs" / "run-1").rglob("*.f32")}
    assert federation.rounds()[0]["accepted"] == 2
    assert silos <= {"a", "b"}
