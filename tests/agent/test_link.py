"""The silo's link against a real coordinator: what it retries, what it gives up, what it says."""

import dataclasses
import os
import threading
import time

import pytest
from flamest.agent.client import Backoff, ClientStopped, ConnectionSettings, CoordinatorClient, RunChanged, StaleUpdate
from flamest.agent.client_errors import handshake_problem, split_address
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


def update_for(run, standing, seed: int = 1, update_id: str = "ab" * 16) -> Update:
    params = initial_params(run.head, seed)
    return Update(standing.round, standing.model_sha256, update_id, 12, params, Evaluation(0.5, 1, 2))


def test_a_round_from_joining_to_the_receipt(federation):
    with federation.client("a") as link:
        assert link.silo == "a"
        run = link.join()
        assert (run.run, run.labels, run.rounds) == ("run-1", ("fall", "run", "walk"), 2)
        standing = link.wait(run, 0, 5)
        assert (standing.phase, standing.round) == (Phase.OPEN, 1)
        assert 0 < standing.deadline_s <= 60
        model = link.fetch(run, standing)
        assert model.sha256 == standing.model_sha256
        update = update_for(run, standing)
        receipt = link.submit(run, update)
        assert (receipt.round, receipt.update_id) == (1, update.update_id)
        assert link.submit(run, update) == receipt
        assert link.wait(run, 1, 0.2).phase is Phase.WAIT


def test_bytes_are_counted_and_a_round_costs_little_more_than_its_tensors(federation):
    with federation.client("a") as link:
        run = link.join()
        standing = link.wait(run, 0, 5)
        before = (link.sent_bytes, link.received_bytes)
        link.fetch(run, standing)
        link.submit(run, update_for(run, standing))
        size = payload_bytes(run.head)
        assert size < link.sent_bytes - before[0] < size + 600
        assert size < link.received_bytes - before[1] < size + 600


def test_no_answer_is_tried_again_soon_and_then_at_any_time_until_patience_is_over(federation):
    pauses = []
    settings = federation.connection_settings("a")
    federation.stop()

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        time.sleep(seconds)

    with CoordinatorClient.open(
        settings, retry=Backoff(give_up_after_s=1.0, first_s=0.05, spread_s=0.4, sleep=sleep)
    ) as link:
        with pytest.raises(UnreachableError, match=settings.address) as error:
            link.join()
    assert error.value.exit_code == 69
    assert len(pauses) >= 3
    assert 0.5 * 0.05 <= pauses[0] <= 1.5 * 0.05
    assert all(0.0 <= pause <= 0.4 for pause in pauses)


def test_a_call_outlives_a_restart_of_the_coordinator(federation):
    federation.config.write_text(federation.config.read_text().replace("127.0.0.1:0", federation.address))
    with federation.client("a", give_up_after_s=15.0) as link:
        run = link.join()
        standing = link.wait(run, 0, 5)
        federation.stop()
        restarted = threading.Timer(0.5, federation.start)
        restarted.start()
        receipt = link.submit(run, update_for(run, standing))
        restarted.join()
    assert receipt.round == 1
    assert federation.rounds()[0]["accepted"] == 1


def test_another_run_on_the_coordinator_asks_to_join_again(federation):
    with federation.client("a") as link:
        run = link.join()
        standing = link.wait(run, 0, 5)
    federation.stop()
    federation.config.write_text(federation.config.read_text().replace('name = "run-1"', 'name = "run-2"'))
    federation.start()
    with federation.client("a") as link:
        for call in (
            lambda: link.wait(run, 0, 1),
            lambda: link.fetch(run, standing),
            lambda: link.submit(run, update_for(run, standing)),
        ):
            with pytest.raises(RunChanged, match="run-2"):
                call()
        assert link.join().run == "run-2"


def test_work_that_no_round_needs_is_stale_and_says_why(federation):
    with federation.client("a") as link:
        run = link.join()
        standing = link.wait(run, 0, 5)
        good = update_for(run, standing)
        for update, code in [
            (dataclasses.replace(good, round=2), "stale_round"),
            (dataclasses.replace(good, base_sha256="00" * 32), "stale_base"),
        ]:
            with pytest.raises(StaleUpdate) as error:
                link.submit(run, update)
            assert error.value.code == code
        link.submit(run, good)
        with pytest.raises(StaleUpdate) as error:
            link.submit(run, dataclasses.replace(good, update_id="cd" * 16))
        assert error.value.code == "already_answered"
        with pytest.raises(StaleUpdate):
            link.fetch(run, dataclasses.replace(standing, round=7))


def test_a_model_with_another_hash_than_announced_is_refused(federation):
    with federation.client("a") as link:
        run = link.join()
        standing = link.wait(run, 0, 5)
        with pytest.raises(DataError, match="has the hash") as error:
            link.fetch(run, dataclasses.replace(standing, model_sha256="00" * 32))
        assert error.value.code == "digest"


def test_an_update_that_is_not_the_heads_is_not_even_sent(federation):
    with federation.client("a") as link:
        run = link.join()
        standing = link.wait(run, 0, 5)
        update = update_for(run, standing)
        update.params["0.bias"][0] = float("nan")
        sent = link.sent_bytes
        with pytest.raises(DataError, match="NaN"):
            link.submit(run, update)
        assert link.sent_bytes == sent


def test_a_revoked_silo_is_told_so_and_does_not_try_again(federation):
    with federation.client("a", give_up_after_s=60.0) as link:
        run = link.join()
        revoke_silo(federation.folder, "a")
        began = time.monotonic()
        with pytest.raises(IdentityError, match="was revoked") as error:
            link.wait(run, 0, 5)
        assert time.monotonic() - began < 2
    assert (error.value.code, error.value.exit_code) == ("revoked", 77)


def files(folder, ca: bytes, certificate: bytes, key: bytes) -> TlsFiles:
    made = TlsFiles(folder / "ca.pem", folder / "c.pem", folder / "c.key")
    for path, content in zip((made.ca, made.certificate, made.key), (ca, certificate, key), strict=True):
        path.write_bytes(content)
    return made


def test_files_that_cannot_work_are_refused_before_anything_is_sent(federation, tmp_path):
    key, request = make_silo_request("a")
    foreign = files(
        tmp_path, (federation.folder / "ca.pem").read_bytes(), sign_silo(make_authority(), "a", request), key
    )
    with pytest.raises(IdentityError) as error:
        CoordinatorClient.open(ConnectionSettings(federation.address, foreign.ca, foreign.certificate, foreign.key))
    assert error.value.code == "foreign_certificate"


def test_the_cause_of_a_failed_handshake_is_told(federation, tmp_path):
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
    with CoordinatorClient.open(settings) as link:
        with pytest.raises(IdentityError) as error:
            link.join()
    assert error.value.code == "server_certificate"


@pytest.mark.parametrize("connected", [True, False])
def test_a_call_ends_soon_after_the_process_is_asked_to_end(federation, connected):
    settings = federation.connection_settings("a")
    shutdown = Shutdown()
    with CoordinatorClient.open(settings, shutdown=shutdown) as link:
        run = link.join()
        link.wait(run, 0, 5)  # the first question of a silo is answered at once, whatever it says that it answered
        if not connected:
            federation.stop()
        threading.Timer(0.4, shutdown.request).start()
        began = time.monotonic()
        with pytest.raises(ClientStopped):
            link.wait(run, 1, 60)
        assert time.monotonic() - began < 3


@pytest.mark.parametrize("address", ["", "host", "host:", ":7443", "host:0", "host:99999", "host:x"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(SettingsError, match="expected host:port"):
        split_address(address)


def test_addresses_of_both_kinds_are_understood():
    assert split_address("fl.example.org:7443") == ("fl.example.org", 7443)
    assert split_address("[::1]:7443") == ("::1", 7443)


def test_many_silos_of_one_machine_do_not_share_a_connection(federation):
    links = [federation.client(name) for name in "ab"]
    try:
        runs = [link.join() for link in links]
        for link, run in zip(links, runs, strict=True):
            link.submit(run, update_for(run, link.wait(run, 0, 5), update_id=os.urandom(16).hex()))
    finally:
        for link in links:
            link.close()
    silos = {path.stem for path in (federation.state / "runs" / "run-1").rglob("*.f32")}
    assert federation.rounds()[0]["accepted"] == 2
    assert silos <= {"a", "b"}
