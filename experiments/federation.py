"""A federation on this machine: enrolment, a coordinator and its silos as processes, mutual TLS on loopback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..agent.extraction.store import FeatureStore
from ..agent.status import AgentStatus, read_status
from ..base.errors import FlamestError, UnreachableError
from ..fedproto.records import TrainSettings
from .processes import Daemon, daemons, run_command, wait_until

HOST = "127.0.0.1"
START_WITHIN_S = 30.0
AGENT_HOLD_OUT = 0.2  # share of a silo's groups on which it evaluates the incoming model


@dataclass(frozen=True)
class FederationSetup:
    """A run on disk: ``folder/coordinator``, and ``folder/SILO`` with its clips in ``videos`` for each silo."""

    folder: Path
    silos: tuple[str, ...]
    bundle: Path
    fingerprint: str
    labels: tuple[str, ...]
    inputs: int  # width of the features
    rounds: int
    train: TrainSettings
    seed: int
    threads: int  # of each silo's worker
    deadline_s: float
    finish_within_s: float

    @property
    def coordinator(self) -> Path:
        """Folder of the coordinator."""
        return self.folder / "coordinator"

    def store(self, silo: str) -> Path:
        """Feature store of a silo."""
        return self.folder / silo / "features.sqlite"


def enrol(setup: FederationSetup) -> None:
    """Make the coordinator's authority and, for each silo, a key, a request and a signed certificate."""
    run_command("coordinator", "init", setup.coordinator, "--host", HOST)
    (setup.coordinator / "coordinator.toml").write_text(_coordinator_settings(setup))
    for silo in setup.silos:
        home = setup.folder / silo
        made = run_command("agent", "keygen", silo, "--out", home)
        signed = run_command("coordinator", "silo", "add", silo, "--csr", made["csr"], "--dir", setup.coordinator)
        for name in ("silo.pem", "ca.pem"):
            shutil.copyfile(Path(signed["hand_over"]) / name, home / name)


@dataclass(frozen=True)
class FederationState:
    """Progress of a running federation."""

    extracted: int  # clips in the stores of all silos
    joined: int  # silos that have extracted their clips and joined the run
    silos: int
    round: int  # the last one that every silo has answered


def run_federation(setup: FederationSetup, on_progress: Callable[[FederationState], None]) -> list[dict[str, Any]]:
    """Start all processes, wait for the last round, end them; returns the coordinator's history.

    ``on_progress`` is called a few times a second. Raises CommandFailed when a process dies,
    UnreachableError when the run takes too long.
    """
    with daemons() as start:
        settings = setup.coordinator / "coordinator.toml"
        server = start("flamest-coordinator", setup.coordinator / "log", "coordinator", ["run", "--config", settings])
        address = setup.coordinator / "state" / "address"
        wait_until(address.exists, "the coordinator's start", seconds=START_WITHIN_S, watched=[server])
        agents = [_start_agent(setup, silo, address.read_text().strip(), start) for silo in setup.silos]

        def finished() -> bool:
            on_progress(_state(setup))
            return all(agent.process.poll() == 0 for agent in agents)

        wait_until(finished, "the end of the last round", seconds=setup.finish_within_s, watched=[server, *agents])
    rows: list[dict[str, Any]] = run_command("coordinator", "history", "--config", settings)["rounds"]
    return rows


def _state(setup: FederationSetup) -> FederationState:
    statuses = [_status(setup, silo) for silo in setup.silos]
    joined = sum(1 for status in statuses if status.run)
    # Counted until all have joined: then no clip comes any more.
    extracted = 0 if joined == len(statuses) else sum(_stored(setup.store(silo)) for silo in setup.silos)
    return FederationState(extracted, joined, len(statuses), min(status.round for status in statuses))


def _stored(store: Path) -> int:
    """Number of clips in a store that another process may be writing; 0 where there is none yet."""
    try:
        with FeatureStore.open(store, read_only=True) as features:
            return sum(kind.clips for kind in features.kinds())
    except FlamestError:
        return 0


def _start_agent(setup: FederationSetup, silo: str, address: str, start: Callable[..., Daemon]) -> Daemon:
    home = setup.folder / silo
    settings = home / "agent.toml"
    settings.write_text(_agent_settings(setup, silo, address))
    return start(f"flamest-agent of {silo}", home / "log", "agent", ["run", "--config", settings, "--once"])


def _status(setup: FederationSetup, silo: str) -> AgentStatus:
    try:
        return read_status(setup.folder / silo / "state")
    except FlamestError:
        return AgentStatus()


def _toml(value: str | Path | Sequence[str]) -> str:
    """A TOML string, or an array of them: JSON's form is valid TOML for both."""
    return json.dumps([*value] if isinstance(value, tuple) else str(value), ensure_ascii=False)


def _coordinator_settings(setup: FederationSetup) -> str:
    return f"""\
[server]
listen = "{HOST}:0"
ca = "ca.pem"
certificate = "server.pem"
key = "server-key.pem"
silos = "silos.json"
state = "state"

[run]
name = "demo"
recipe = "paper"
labels = {_toml(setup.labels)}
inputs = {setup.inputs}
rounds = {setup.rounds}
min_silos = {len(setup.silos)}
deadline_s = {setup.deadline_s}
seed = {setup.seed}
fingerprint = {_toml(setup.fingerprint)}

[run.train]
epochs = {setup.train.epochs}
batch_size = {setup.train.batch_size}
learning_rate = {setup.train.learning_rate}
weight_decay = {setup.train.weight_decay}
"""


def _agent_settings(setup: FederationSetup, silo: str, address: str) -> str:
    return f"""\
# The demo's silos hold few clips, so their policy allows updates and exact figures of few: a real silo keeps the
# defaults.
state = "state"
store = "features.sqlite"
bundle = {_toml(setup.bundle.resolve())}
videos = "videos"

[coordinator]
address = {_toml(address)}
ca = "ca.pem"
certificate = "silo.pem"
key = {_toml(silo + ".key")}

[policy]
min_samples = 1
min_samples_override = true
evaluation_noise = 0
hold_out = {AGENT_HOLD_OUT}

[work]
threads = {setup.threads}
"""


def check_rounds_closed(history: Sequence[dict[str, Any]], rounds: int) -> None:
    """Check that ``rounds`` rounds closed. Raises UnreachableError otherwise."""
    closed = sum(1 for row in history if row["status"] == "closed")
    if closed < rounds:
        raise UnreachableError(
            f"{closed} of {rounds} rounds closed",
            fix="see the logs of the coordinator and the silos in the output folder",
        )
