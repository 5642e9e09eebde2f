"""A federation on disk: a real coordinator and real silos as processes over mutual TLS, their stores filled."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flamest.agent.extraction.store import FeatureRow, FeatureStore, StoredFeatures
from flamest.agent.status import AgentStatus, read_status
from flamest.base.errors import FlamestError
from flamest.base.files import sha256_bytes
from flamest.experiments.processes import Daemon, run_command, wait_until
from flamest.fedproto.head import params_sha256
from flamest.fedproto.model_file import read_model
from flamest.runtime.clip_records import Clip

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
class BuildTarget:
    """A federation on disk."""

    folder: Path
    silos: tuple[str, ...] = SILOS
    labels: tuple[str, ...] = LABELS
    width: int = WIDTH
    fingerprint: str = FINGERPRINT
    rounds: int = ROUNDS

    @property
    def settings(self) -> Path:
        return self.folder / "coordinator" / "coordinator.toml"

    @property
    def state(self) -> Path:
        return self.folder / "coordinator" / "state"

    def status(self, silo: str) -> AgentStatus:
        try:
            return read_status(self.folder / silo / "state")
        except FlamestError:
            return AgentStatus()

    def start_coordinator(self, start: Callable[..., Daemon], *, once: bool = False) -> Daemon:
        """Returns when it listens: a silo that comes earlier may wait for 15 s before it asks again."""
        address = self.folder / "coordinator" / "state" / "address"
        address.unlink(missing_ok=True)  # of one that was killed
        words = ["run", "--config", self.settings, *(["--once"] if once else [])]
        server = start("coordinator", self.folder / "coordinator" / "log", "coordinator", words)
        wait_until(address.exists, "the coordinator's start", seconds=60, watched=[server])
        return server

    def start_silo(self, silo: str, start: Callable[..., Daemon], *, home: str | None = None) -> Daemon:
        """With ``home``: from another folder, as a second agent with the same certificate would."""
        at = self.folder / (home or silo)
        return start(silo, at / "log", "agent", ["run", "--config", at / "agent.toml", "--once"])

    def store(self, silo: str) -> StoredFeatures:
        with FeatureStore.open(self.folder / silo / "features.sqlite") as store:
            return store.read(FINGERPRINT, None)

    def history(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = run_command("coordinator", "history", "--config", self.settings)["rounds"]
        return rows

    def served(self, x: np.ndarray) -> np.ndarray:
        """Probabilities of rows by the final model's ONNX graph, as the coordinator writes it."""
        import onnxruntime

        out = self.folder / "final.onnx"
        run_command("coordinator", "model", "--config", self.settings, "--format", "onnx", "--out", out)
        return onnxruntime.InferenceSession(out).run(["probabilities"], {"x": x})[0]

    def final_model(self) -> str:
        out = self.folder / "final.safetensors"
        out.unlink(missing_ok=True)
        run_command("coordinator", "model", "--config", self.settings, "--out", out)
        return params_sha256(read_model(out).params)


def coordinator_settings(port: int, min_silos: int, run: str) -> str:
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
recipe = "paper"
labels = ["run", "jump", "wave"]
fingerprint = "{FINGERPRINT}"
inputs = {WIDTH}
hidden = [16]
rounds = {ROUNDS}
min_silos = {min_silos}
wanted = {min_silos}
deadline_s = 60
{run}
"""


def without_twins(text: str) -> str:
    """Of two lines that set the same key the later one."""
    lines = text.splitlines()
    keys = [line.split(" = ")[0] for line in lines]
    kept = [line for place, line in enumerate(lines) if " = " not in line or keys[place] not in keys[place + 1 :]]
    return "\n".join(kept) + "\n"


def agent_settings(silo: str, port: int, min_samples: int, policy: str) -> str:
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
min_samples_override = true
{policy}

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
def site(enrolled, tmp_path) -> Callable[..., BuildTarget]:
    def make(
        name: str,
        *,
        min_silos: int = 3,
        min_samples: dict[str, int] | None = None,
        run: str = "",
        policy: dict[str, str] | None = None,
    ) -> BuildTarget:
        """``run`` and ``policy``: further lines of [run], which replace its defaults, and of a silo's [policy]."""
        folder = tmp_path / name
        shutil.copytree(enrolled, folder)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        (folder / "coordinator" / "coordinator.toml").write_text(
            without_twins(coordinator_settings(port, min_silos, run))
        )
        for silo in SILOS:
            floor = (min_samples or {}).get(silo, 1)
            (folder / silo / "agent.toml").write_text(agent_settings(silo, port, floor, (policy or {}).get(silo, "")))
        return BuildTarget(folder)

    return make
