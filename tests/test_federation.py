"""Real coordinator and real silos as processes over mutual TLS: what happens when they are killed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flamest.agent.settings import Policy
from flamest.agent.status import AgentStatus, read_status
from flamest.agent.store import FeatureRow, FeatureStore, StoredFeatures
from flamest.agent.training.dataset import silo_data
from flamest.agent.training.local_round import train_silo
from flamest.agent.training.trainer import HeadTrainer
from flamest.base.errors import FlamestError
from flamest.base.files import sha256_bytes
from flamest.coordinator.aggregate import aggregate, first_state
from flamest.coordinator.contributions import Contribution
from flamest.experiments.processes import Daemon, daemons, run_command, wait_until
from flamest.fedproto.head import HeadSpec, initial_params, params_sha256
from flamest.fedproto.modelfile import read_model
from flamest.fedproto.records import RunSettings, Strategy
from flamest.runtime.records import Clip

SILOS = ("anna", "berta", "carla")
ROWS = {"anna": 90, "berta": 40, "carla": 150}
LABELS = ("run", "jump", "wave")
WIDTH = 24
FINGERPRINT = f"imported:test:{WIDTH}"
ROUNDS = 14


def fill_store(path: Path, silo: str) -> None:
    """Labelled rows that a head can learn, in groups of five."""
    random = np.random.default_rng(SILOS.index(silo))
    centres = np.random.default_rng(99).normal(size=(len(LABELS), WIDTH)) * 2
    with FeatureStore.open(path) as store:
        rows = []
        for row in range(ROWS[silo]):
            label = row % len(LABELS)
            clip = Clip(Path(f"{row}.mp4"), sha256_bytes(f"{silo}/{row}".encode()), LABELS[label], f"group-{row // 5}")
            x = (centres[label] + random.normal(size=WIDTH)).astype(np.float32)
            rows.append((clip.path.name, FeatureRow(clip, x, 8, FINGERPRINT, "fp32")))
        store.add_rows(rows)


@dataclass(frozen=True)
class Site:
    """A federation on disk."""

    folder: Path

    @property
    def settings(self) -> Path:
        return self.folder / "coordinator" / "coordinator.toml"

    def status(self, silo: str) -> AgentStatus:
        try:
            return read_status(self.folder / silo / "state")
        except FlamestError:
            return AgentStatus()

    def history(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = run_command("coordinator", "history", "--config", self.settings)["rounds"]
        return rows

    def final_model(self) -> str:
        out = self.folder / "final.safetensors"
        out.unlink(missing_ok=True)
        run_command("coordinator", "model", "--config", self.settings, "--out", out)
        return params_sha256(read_model(out).params)


FEDDYN = """
[run.strategy]
name = "feddyn"
alpha = 0.1
average_last = 2
"""


def coordinator_settings(port: int, min_silos: int) -> str:
    return f"""
[server]
listen = "127.0.0.1:{port}"
ca = "ca.pem"
certificate = "server.pem"
key = "server-key.pem"
silos = "silos.json"
state = "state"

[run]
name = "test"
labels = ["run", "jump", "wave"]
fingerprint = "{FINGERPRINT}"
inputs = {WIDTH}
hidden = [16]
rounds = {ROUNDS}
min_silos = {min_silos}
wanted = {min_silos}
deadline_s = 60
"""


def agent_settings(silo: str, port: int, min_samples: int = 1) -> str:
    return f"""
state = "state"
store = "features.sqlite"

[coordinator]
address = "127.0.0.1:{port}"
ca = "ca.pem"
certificate = "silo.pem"
key = "{silo}.key"

[policy]
min_samples = {min_samples}

[work]
threads = 1
"""


@pytest.fixture(scope="module")
def enrolled(tmp_path_factory) -> Path:
    """Certificates and filled stores; copied for each test."""
    folder = tmp_path_factory.mktemp("enrolled")
    run_command("coordinator", "init", folder / "coordinator", "--host", "127.0.0.1")
    for silo in SILOS:
        made = run_command("agent", "keygen", silo, "--out", folder / silo)
        signed = run_command("coordinator", "silo", "add", silo, "--csr", made["csr"], "--dir", folder / "coordinator")
        for name in signed["files"]:
            shutil.copyfile(Path(signed["hand_over"]) / name, folder / silo / name)
        fill_store(folder / silo / "features.sqlite", silo)
    return folder


@pytest.fixture
def site(enrolled, tmp_path) -> Callable[..., Site]:
    def make(name: str, *, min_silos: int = 3, min_samples: dict[str, int] | None = None) -> Site:
        folder = tmp_path / name
        shutil.copytree(enrolled, folder)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        (folder / "coordinator" / "coordinator.toml").write_text(coordinator_settings(port, min_silos))
        for silo in SILOS:
            floor = (min_samples or {}).get(silo, 1)
            (folder / silo / "agent.toml").write_text(agent_settings(silo, port, floor))
        return Site(folder)

    return make


def start_coordinator(site: Site, start: Callable[..., Daemon], *, once: bool = False) -> Daemon:
    words = ["run", "--config", site.settings, *(["--once"] if once else [])]
    return start("coordinator", site.folder / "coordinator" / "log", "coordinator", words)


def start_silo(site: Site, silo: str, start: Callable[..., Daemon]) -> Daemon:
    home = site.folder / silo
    return start(silo, home / "log", "agent", ["run", "--config", home / "agent.toml", "--once"])


def ended(daemon: Daemon) -> bool:
    return daemon.process.poll() is not None


def undisturbed(site: Site) -> str:
    with daemons() as start:
        server = start_coordinator(site, start)
        silos = [start_silo(site, silo, start) for silo in SILOS]
        wait_until(lambda: all(map(ended, silos)), "the end", seconds=90, watched=[server, *silos])
    return site.final_model()


def test_a_killed_silo_rejoins_and_a_restarted_coordinator_goes_on_to_the_same_model(site):
    quiet, rough = site("quiet"), site("rough")
    expected = undisturbed(quiet)
    assert quiet.history()[-1]["accuracy"] > 0.8  # on the silos' held-out rows; chance is 0.33
    with daemons() as start:
        server = start_coordinator(rough, start)
        silos = {silo: start_silo(rough, silo, start) for silo in SILOS}

        wait_until(lambda: rough.status("berta").round >= 2, "berta's second round", seconds=60)
        silos["berta"].process.send_signal(signal.SIGKILL)
        silos["berta"].process.wait()
        silos["berta"] = start_silo(rough, "berta", start)

        at_restart = rough.status("anna").round
        wait_until(lambda: rough.status("berta").round >= at_restart + 2, "berta's return", seconds=60)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        before = [row for row in rough.history() if row["status"] == "closed"]
        server = start_coordinator(rough, start)

        done = lambda: all(map(ended, silos.values()))  # noqa: E731
        wait_until(done, "the end", seconds=90, watched=[server, *silos.values()])
    rows = rough.history()
    assert 2 <= len(before) < ROUNDS, "the coordinator was to be stopped in the middle of the run"
    assert [row["round"] for row in rows] == list(range(1, ROUNDS + 1))
    assert {(row["status"], row["accepted"]) for row in rows} == {("closed", 3)}
    assert [row["model_sha256"] for row in rows[: len(before)]] == [row["model_sha256"] for row in before]
    assert rough.final_model() == expected
    kept = read_model(rough.folder / "berta" / "state" / "model.safetensors")
    assert params_sha256(kept.params) == expected
    assert (kept.labels, kept.fingerprint, kept.round) == (LABELS, FINGERPRINT, ROUNDS)


def simulated() -> str:
    """The same run by the functions alone: no process, no wire, no disk."""
    rows = run_rows()
    train = {silo: silo_data(rows[silo], LABELS, hold_out=Policy().hold_out, seed=0).train for silo in SILOS}
    head = HeadSpec(WIDTH, len(LABELS), (16,))
    strategy = Strategy("feddyn", alpha=0.1, average_last=2)
    run = RunSettings("test", LABELS, head, ROUNDS, 3, 60.0, FINGERPRINT, strategy=strategy)
    params, state = initial_params(head, 0), first_state(run)
    corrections: dict[str, Any] = {silo: {} for silo in SILOS}
    trainer = HeadTrainer(head, threads=1)
    for number in range(1, ROUNDS + 1):
        parts = []
        for silo in SILOS:
            made, corrections[silo] = train_silo(trainer, run, silo, number, params, train[silo], corrections[silo])
            parts.append(Contribution(silo, len(train[silo]), made.params))
        closed = aggregate(strategy, head, params, parts, state, len(SILOS))
        params, state = closed.params, closed.state
    return params_sha256(params)


def run_rows() -> dict[str, StoredFeatures]:
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for silo in SILOS:
            path = Path(folder) / f"{silo}.sqlite"
            fill_store(path, silo)
            with FeatureStore.open(path) as store:
                rows[silo] = store.read(FINGERPRINT, None)
    return rows


def test_feddyn_with_killed_silos_and_a_killed_coordinator_ends_in_the_functions_model(site):
    dynamic = site("dynamic")
    dynamic.settings.write_text(dynamic.settings.read_text() + FEDDYN)
    with daemons() as start:
        server = start_coordinator(dynamic, start)
        silos = {silo: start_silo(dynamic, silo, start) for silo in SILOS}
        for number, silo in ((3, "berta"), (6, "carla")):
            wait_until(lambda: dynamic.status(silo).round >= number, "a round", seconds=60)  # noqa: B023
            silos[silo].process.kill()
            silos[silo].process.wait()
            silos[silo] = start_silo(dynamic, silo, start)
        wait_until(lambda: dynamic.status("anna").round >= 9, "round 9", seconds=60)
        server.process.kill()
        server.process.wait()
        server = start_coordinator(dynamic, start)
        done = lambda: all(map(ended, silos.values()))  # noqa: E731
        wait_until(done, "the end", seconds=90, watched=[server, *silos.values()])
    assert {(row["status"], row["accepted"]) for row in dynamic.history()} == {("closed", 3)}
    assert dynamic.final_model() == simulated()
    assert list((dynamic.folder / "berta" / "state" / "feddyn").iterdir()) == []  # the run has finished


def test_a_silo_below_its_own_floor_sends_nothing_and_says_so(site):
    careful = site("careful", min_silos=2, min_samples={"berta": 256})
    with daemons() as start:
        server = start_coordinator(careful, start)
        silos = [start_silo(careful, silo, start) for silo in SILOS]
        refused = lambda: careful.status("berta").doing == "refused_by_policy"  # noqa: E731
        wait_until(refused, "berta's refusal", seconds=60, watched=[server, *silos])
        detail = careful.status("berta").detail
        wait_until(lambda: all(map(ended, silos)), "the end", seconds=90, watched=[server, *silos])
    assert "256" in detail
    assert "no update was sent" in detail
    assert careful.status("berta").updates_sent == 0
    assert {row["accepted"] for row in careful.history()} == {2}


def test_a_silo_that_is_not_enrolled_ends_with_77_and_says_whom_to_ask(site):
    stranger = site("stranger")
    run_command("coordinator", "silo", "revoke", "carla", "--dir", stranger.folder / "coordinator")
    with daemons() as start:
        server = start_coordinator(stranger, start)
        address = stranger.folder / "coordinator" / "state" / "address"
        wait_until(address.exists, "the start", seconds=30, watched=[server])
        silo = start_silo(stranger, "carla", start)
        assert silo.process.wait(30) == 77
    assert "operator" in silo.log.read_text()


def test_a_daemon_waits_for_a_coordinator_that_is_not_there_and_ends_in_order(site):
    lonely = site("lonely")
    with daemons() as start:
        silo = start_silo(lonely, "anna", start)
        waits = lambda: lonely.status("anna").doing in ("starting", "unreachable")  # noqa: E731
        wait_until(lambda: lonely.status("anna").pid == silo.process.pid and waits(), "the start", seconds=30)
        os.kill(silo.process.pid, signal.SIGTERM)
        assert silo.process.wait(30) == 0
    assert lonely.status("anna").doing == "stopped"
    assert lonely.status("anna").updates_sent == 0


def test_a_run_that_diverges_is_said_and_ends_no_silo(site):
    wild = site("wild", min_silos=2)
    settings = wild.settings.read_text() + "\n[run.train]\nlearning_rate = 1e30\n"
    wild.settings.write_text(settings)
    with daemons() as start:
        server = start_coordinator(wild, start)
        silo = start_silo(wild, "anna", start)
        failed = lambda: wild.status("anna").doing == "failed"  # noqa: E731
        wait_until(failed, "anna's failure", seconds=60, watched=[server, silo])
        assert not ended(silo)
        assert "diverged" in wild.status("anna").detail
