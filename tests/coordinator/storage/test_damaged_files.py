"""A run that meets a damaged file, a restored backup, a mean beyond float32, or a silo that asks for too much."""

from __future__ import annotations

import errno
import os
import socket
import time

import grpc
import numpy as np
import pytest
from flamest.agent import incoming_model
from flamest.base.errors import DataError, FlamestError
from flamest.coordinator.storage import backup as backup_module
from flamest.coordinator.storage import payloads as payloads_module
from flamest.coordinator.storage.backup import back_up, check_backup, restore
from flamest.fedproto import calls, messages
from flamest.fedproto.head import initial_params
from flamest.fedproto.records import Evaluation, Phase, SubjectEvaluation, Update
from flamest.fedproto.tls import channel_credentials


class Silos:
    """Links of silos that answer rounds by hand, each knowing what it answered last."""

    def __init__(self, federation, *names):
        self.clients = {name: federation.client(name) for name in names}
        self.run = next(iter(self.clients.values())).join()
        self.answered = 0

    def begin(self):
        """Model that every silo trains on next."""
        status = {name: client.wait(self.run, self.answered, 5) for name, client in self.clients.items()}
        assert {each.phase for each in status.values()} == {Phase.OPEN}
        return {name: self.clients[name].fetch(self.run, each) for name, each in status.items()}

    def send(self, name, model, params=None, examples=5):
        params = params or initial_params(self.run.head, model.round)
        self.clients[name].submit(
            self.run, Update(model.round, model.sha256, f"{model.round:031x}{name}", examples, params)
        )

    def round(self, params=None):
        models = self.begin()
        for name, model in models.items():
            self.send(name, model, params)
        self.answered = models[name].round

    def close(self):
        for client in self.clients.values():
            client.close()


@pytest.fixture
def made(make_federation):
    """``made(**run)``: a running coordinator on a port that stays, and its silos a and b."""
    opened = []

    def make(**run):
        federation = make_federation("a", "b", **{"rounds": 9, "min_silos": 2, **run})
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            federation.config.write_text(
                federation.config.read_text().replace("127.0.0.1:0", f"127.0.0.1:{free.getsockname()[1]}")
            )
        federation.start()
        opened.append(silos := Silos(federation, "a", "b"))
        return federation, silos

    yield make
    for silos in opened:
        silos.close()


def wait_for(condition, seconds=20.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def ended(federation):
    return [(row["round"], row["status"]) for row in federation.rounds() if row["status"] != "open"]


def test_after_a_restore_training_silos_get_the_restored_round(made, tmp_path):
    federation, silos = made()
    silos.round()
    back_up(federation.state, tmp_path / "copy")
    for _ in range(3):
        silos.round()
    models = silos.begin()  # they train, and hear nothing of what comes now
    federation.stop()
    restore(federation.state, tmp_path / "copy")
    federation.start()
    for name, model in models.items():
        with pytest.raises(FlamestError) as refused:
            silos.send(name, model)
        assert refused.value.code == "stale_round"
    silos.answered = models["a"].round
    again = silos.begin()
    assert {model.round for model in again.values()} == {2}
    for name, model in again.items():
        silos.send(name, model)
    wait_for(lambda: ended(federation) == [(1, "closed"), (2, "closed")])
    federation.stop()


def test_a_silo_that_declined_is_asked_again_after_a_restart(made):
    federation, silos = made()
    silos.clients["a"].wait(silos.run, 1, 0.05)
    federation.stop()
    federation.start()
    phases = [silos.clients["a"].wait(silos.run, 1, 0.05).phase for _ in range(2)]
    assert phases == [Phase.OPEN, Phase.WAIT]
    federation.stop()


def test_a_damaged_update_is_quarantined_and_its_round_abandoned(made):
    """The update is moved to quarantine and the run continues."""
    federation, silos = made()
    models = silos.begin()
    silos.send("a", models["a"])
    federation.stop()
    (path,) = federation.state.glob("runs/*/updates/*/a.f32")
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)
    federation.start()
    silos.send("b", models["b"])
    wait_for(lambda: ended(federation) == [(1, "abandoned")])
    (kept,) = federation.state.glob("quarantine/*-updates-000001")
    assert (kept / "a.f32").read_bytes() == content
    silos.answered = 1
    silos.round()
    wait_for(lambda: ended(federation)[1:] == [(2, "closed")])
    federation.stop()


def test_a_temporary_read_error_is_not_treated_as_damage(made, monkeypatch):
    federation, silos = made()

    class Refusing:
        times = 0

        def __getattr__(self, name):
            return getattr(os, name)

        def open(self, path, *how):
            if str(path).endswith(".f32") and self.times < 1:
                self.times += 1
                raise OSError(errno.EMFILE, "Too many open files")
            return os.open(path, *how)

    monkeypatch.setattr(payloads_module, "os", refusing := Refusing())
    silos.round()
    wait_for(lambda: ended(federation) == [(1, "closed")])
    assert refusing.times == 1
    assert not (federation.state / "quarantine").exists()
    federation.stop()


def test_a_mean_beyond_float32_abandons_the_round_only(made, monkeypatch):
    monkeypatch.setattr(incoming_model, "MAX_WEIGHT", 3.4e38)  # an agent takes no such model, so that none grows so far
    federation, silos = made(server_momentum=0.9, examples_times=0)
    for number in (1, 2):
        models = silos.begin()
        silos.send("a", models["a"])
        large = {name: np.full(value.shape, 3.3e38, np.float32) for name, value in models["b"].params.items()}
        silos.send("b", models["b"], large, 1_000_000)
        silos.answered = number
    wait_for(lambda: ended(federation) == [(1, "closed"), (2, "abandoned")])
    assert not (federation.state / "quarantine").exists()
    federation.stop()


def test_a_backup_has_the_strategy_state_though_rounds_close_meanwhile(made, tmp_path, monkeypatch):
    federation, silos = made(server_momentum=0.9)
    silos.round()
    silos.round()
    wait_for(lambda: len(ended(federation)) == 2)
    copy_database, times = backup_module.copy_database, []

    def slow(*paths):
        copy_database(*paths)
        times.append(1)
        if len(times) == 1:
            for _ in range(3):
                silos.round()
            wait_for(lambda: len(ended(federation)) == 5)

    monkeypatch.setattr(backup_module, "copy_database", slow)
    back_up(federation.state, tmp_path / "copy")
    assert len(times) == 2
    federation.stop()
    restore(federation.state, tmp_path / "copy")
    federation.start()
    assert ended(federation) == [(number, "closed") for number in range(1, 6)]
    federation.stop()


def test_backups_and_restored_files_are_readable_by_their_owner_only(made, tmp_path):
    federation, silos = made()
    models = silos.begin()
    silos.send("a", models["a"])
    before = os.umask(0o022)
    try:
        back_up(federation.state, tmp_path / "copy")
        federation.stop()
        restore(federation.state, tmp_path / "copy")
    finally:
        os.umask(before)
    for folder in (tmp_path / "copy", federation.state):
        assert folder.stat().st_mode & 0o777 == 0o700
    names = check_backup(tmp_path / "copy")
    assert any(name.endswith("a.f32") for name in names)
    for path in (folder / name for folder in (tmp_path / "copy", federation.state) for name in names):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_final_evaluation_obeys_quarantine_and_the_limit_of_examples(make_federation):
    run = {"rounds": 1, "min_silos": 2, "wanted": 2, "quarantine_after": 1, "final_evaluation": '"model"'}
    federation = make_federation("a", "b", "c", **run)
    federation.start()
    silos = Silos(federation, "a", "b", "c")
    models = silos.begin()
    with pytest.raises(DataError):
        silos.send("c", models["c"], examples=2**31 - 1)
    for name in "ab":
        silos.send(name, models[name])
    wait_for(lambda: ended(federation) == [(1, "closed")])

    def report(name, count):
        silos.clients[name].report_evaluation(
            silos.run, 1, [SubjectEvaluation(0, Evaluation(loss=0.5, correct=count, count=count))]
        )

    with pytest.raises(DataError) as refused:
        report("c", 10)
    assert refused.value.code == "quarantined"
    with pytest.raises(DataError) as refused:
        report("b", 2**31 - 1)
    assert refused.value.code == "evaluation"
    assert "accepts at most" in refused.value.message
    report("a", 10)
    silos.close()
    federation.stop()


def test_one_silo_cannot_take_all_the_calls(made):
    federation, silos = made()
    silos.clients["a"].wait(silos.run, 0, 1)  # it has work now: from here on it declines, and waits
    settings = federation.connection_settings("a")
    request = messages.encode_wait_request(messages.WaitRequest(silos.run.sha256, 1, 60.0))
    channels = [
        grpc.secure_channel(settings.address, channel_credentials(settings.files), options=calls.client_options())
        for _ in range(6)
    ]
    method = calls.method_path(calls.WAIT_FOR_ROUND)
    waiting = [
        channel.unary_unary(method, None, None).future(request, timeout=60) for channel in channels for _ in range(8)
    ]
    wait_for(lambda: sum(call.done() for call in waiting) == len(waiting) - calls.MAX_CALLS_PER_SILO)
    refusals = [(call.code(), dict(call.trailing_metadata())[calls.CODE_KEY]) for call in waiting if call.done()]
    assert set(refusals) == {(grpc.StatusCode.RESOURCE_EXHAUSTED, "too_many_calls")}
    assert silos.clients["b"].wait(silos.run, 0, 1).phase is Phase.OPEN
    for call in waiting:
        call.cancel()
    for channel in channels:
        channel.close()
    federation.stop()
