"""Real coordinator and real silos as processes over mutual TLS, some of them killed."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
from flamest.agent.settings import Policy
from flamest.agent.training.dataset import silo_data
from flamest.agent.training.federated import train_silo
from flamest.agent.training.trainer import HeadTrainer, log_softmax
from flamest.coordinator.strategies.composition import aggregate, first_state
from flamest.coordinator.strategies.contributions import InMemoryContribution
from flamest.experiments.processes import Daemon, daemons, run_command, wait_until
from flamest.fedproto.head import HeadSpec, initial_params, params_sha256
from flamest.fedproto.model_file import read_model
from flamest.fedproto.records import RunSettings, Strategy

SILOS = ("anna", "berta", "carla")

FEDDYN = """
[run.strategy]
name = "feddyn"
alpha = 0.1
average_last = 2
"""


def ended(daemon: Daemon) -> bool:
    return daemon.process.poll() is not None


def undisturbed(site: Any) -> str:
    with daemons() as start:
        server = site.start_coordinator(start)
        silos = [site.start_silo(silo, start) for silo in SILOS]
        wait_until(lambda: all(map(ended, silos)), "the end", seconds=90, watched=[server, *silos])
    return site.final_model()


def test_killed_silo_and_restarted_coordinator_reach_the_same_model(site):
    quiet, rough = site("quiet"), site("rough")
    expected = undisturbed(quiet)
    assert (
        quiet.history()[-2]["accuracy"] > 0.8
    )  # of the model that the last round started from, on the silos' held-out rows; chance is 0.33
    with daemons() as start:
        server = rough.start_coordinator(start)
        silos = {silo: rough.start_silo(silo, start) for silo in SILOS}

        wait_until(lambda: rough.status("berta").round >= 2, "berta's second round", seconds=60)
        silos["berta"].process.send_signal(signal.SIGKILL)
        silos["berta"].process.wait()
        silos["berta"] = rough.start_silo("berta", start)

        at_restart = rough.status("anna").round
        wait_until(lambda: rough.status("berta").round >= at_restart + 2, "berta's return", seconds=60)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        before = [row for row in rough.history() if row["status"] == "closed"]
        server = rough.start_coordinator(start)

        done = lambda: all(map(ended, silos.values()))  # noqa: E731
        wait_until(done, "the end", seconds=90, watched=[server, *silos.values()])
    rows = rough.history()
    assert 2 <= len(before) < rough.rounds, "the coordinator was to be stopped in the middle of the run"
    assert [row["round"] for row in rows] == list(range(1, rough.rounds + 1))
    assert {(row["status"], row["accepted"]) for row in rows} == {("closed", 3)}
    assert [row["model_sha256"] for row in rows[: len(before)]] == [row["model_sha256"] for row in before]
    assert rough.final_model() == expected
    kept = read_model(rough.folder / "berta" / "state" / "model.safetensors")
    assert params_sha256(kept.params) == expected
    x = rough.store("berta").x
    probabilities = np.exp(log_softmax(HeadTrainer(kept.head, threads=1).logits(kept.params, x)))
    assert np.abs(rough.served(x) - probabilities).max() <= 1e-6, "model --format onnx serves what predict computes"
    assert (kept.labels, kept.fingerprint, kept.round) == (rough.labels, rough.fingerprint, rough.rounds)


def simulated(site: Any) -> str:
    """Compute the same run with the functions alone: no process, no wire, no disk."""
    train = {silo: silo_data(site.store(silo), site.labels, hold_out=Policy().hold_out, seed=0).train for silo in SILOS}
    head = HeadSpec(site.width, len(site.labels), (16,))
    strategy = Strategy("feddyn", alpha=0.1, average_last=2)
    run = RunSettings("test", site.labels, head, site.rounds, 3, 60.0, site.fingerprint, strategy=strategy)
    params, state = initial_params(head, 0), first_state(run)
    corrections: dict[str, Any] = {silo: {} for silo in SILOS}
    trainer = HeadTrainer(head, threads=1)
    for number in range(1, site.rounds + 1):
        parts = []
        for silo in SILOS:
            made, corrections[silo] = train_silo(trainer, run, silo, number, params, train[silo], corrections[silo])
            parts.append(InMemoryContribution(silo, len(train[silo]), made.params))
        closed = aggregate(strategy, head, params, parts, state, len(SILOS))
        params, state = closed.params, closed.state
    return params_sha256(params)


def test_feddyn_with_killed_processes_equals_the_simulation(site):
    dynamic = site("dynamic")
    dynamic.settings.write_text(dynamic.settings.read_text() + FEDDYN)
    with daemons() as start:
        server = dynamic.start_coordinator(start)
        silos = {silo: dynamic.start_silo(silo, start) for silo in SILOS}
        for number, silo in ((3, "berta"), (6, "carla")):
            wait_until(lambda: dynamic.status(silo).round >= number, "a round", seconds=60)  # noqa: B023
            silos[silo].process.kill()
            silos[silo].process.wait()
            silos[silo] = dynamic.start_silo(silo, start)
        wait_until(lambda: dynamic.status("anna").round >= 9, "round 9", seconds=60)
        server.process.kill()
        server.process.wait()
        server = dynamic.start_coordinator(start)
        done = lambda: all(map(ended, silos.values()))  # noqa: E731
        wait_until(done, "the end", seconds=90, watched=[server, *silos.values()])
    assert {(row["status"], row["accepted"]) for row in dynamic.history()} == {("closed", 3)}
    assert dynamic.final_model() == simulated(dynamic)
    assert list((dynamic.folder / "berta" / "state" / "feddyn").iterdir()) == []  # the run has finished


def test_silo_below_its_minimum_sends_nothing_and_reports_it(site):
    careful = site("careful", min_silos=2, min_samples={"berta": 256})
    with daemons() as start:
        server = careful.start_coordinator(start)
        berta = careful.start_silo("berta", start)  # alone: the others would end the run before it joins
        refused = lambda: careful.status("berta").doing == "standing_aside"  # noqa: E731
        wait_until(refused, "berta's refusal", seconds=60, watched=[server, berta])
        silos = [berta, *(careful.start_silo(silo, start) for silo in SILOS if silo != "berta")]
        wait_until(lambda: all(map(ended, silos)), "the end", seconds=90, watched=[server, *silos])
    ledger = run_command("agent", "egress", "--state", careful.folder / "berta" / "state")
    details = [entry["detail"] for entry in ledger["entries"] if entry["what"] == "refused"]
    assert details
    assert all("256" in detail and "no update was sent" in detail for detail in details)
    assert careful.status("berta").updates_sent == 0
    assert {row["accepted"] for row in careful.history()} == {2}


def test_unenrolled_silo_exits_with_77_and_names_the_operator(site):
    stranger = site("stranger")
    run_command("coordinator", "silo", "revoke", "carla", "--dir", stranger.folder / "coordinator")
    with daemons() as start:
        server = stranger.start_coordinator(start)
        address = stranger.folder / "coordinator" / "state" / "address"
        wait_until(address.exists, "the start", seconds=30, watched=[server])
        silo = stranger.start_silo("carla", start)
        assert silo.process.wait(30) == 77
    assert "operator" in silo.log.read_text()


def test_daemon_waits_for_an_absent_coordinator_and_stops_cleanly(site):
    lonely = site("lonely")
    with daemons() as start:
        silo = lonely.start_silo("anna", start)
        waits = lambda: lonely.status("anna").doing in ("starting", "unreachable")  # noqa: E731
        wait_until(lambda: lonely.status("anna").pid == silo.process.pid and waits(), "the start", seconds=30)
        os.kill(silo.process.pid, signal.SIGTERM)
        assert silo.process.wait(30) == 0
    assert lonely.status("anna").doing == "stopped"
    assert lonely.status("anna").updates_sent == 0


def test_diverging_run_is_reported_and_ends_no_silo(site):
    wild = site("wild", min_silos=2)
    settings = wild.settings.read_text().replace("hidden = [16]", f"hidden = {[64] * 12}")
    assert "64" in settings
    wild.settings.write_text(settings + "\n[run.train]\nlearning_rate = 1000.0\n")  # as high as it may be
    with daemons() as start:
        server = wild.start_coordinator(start)
        silo = wild.start_silo("anna", start)
        failed = lambda: wild.status("anna").doing == "failed"  # noqa: E731
        wait_until(failed, "anna's failure", seconds=60, watched=[server, silo])
        assert not ended(silo)
        assert "diverged" in wild.status("anna").detail
