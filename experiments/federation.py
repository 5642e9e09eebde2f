"""A federation on this machine: enrolment, a coordinator and its silos as processes, mutual TLS on loopback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..agent.status import AgentStatus, read_status
from ..base.errors import FlamestError, UnreachableError
from ..fedproto.records import TrainSettings
from .processes import Daemon, daemons, run_command, wait_until

HOST = "127.0.0.1"
START_WITHIN_S = 30.0
AGENT_HOLD_OUT = 0.2  # share of a silo's groups that it measures the incoming model with


@dataclass(frozen=True)
class FederationPlan:
    """One run on disk: ``folder/coordinator`` and ``folder/SILO`` for each silo, whose clips lie in its ``videos``."""

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
        return self.folder / "coordinator"

    def store(self, silo: str) -> Path:
        return self.folder / silo / "features.sqlite"


def enrol(plan: FederationPlan) -> None:
    """Make the coordinator's authority and, for each silo, key, request and signed certificate."""
    run_command("coordinator", "init", plan.coordinator, "--host", HOST)
    (plan.coordinator / "coordinator.toml").write_text(_coordinator_settings(plan))
    for silo in plan.silos:
        home = plan.folder / silo
        made = run_command("agent", "keygen", silo, "--out", home)
        signed = run_command("coordinator", "silo", "add", silo, "--csr", made["csr"], "--dir", plan.coordinator)
        for name in ("silo.pem", "ca.pem"):
            shutil.copyfile(Path(signed["hand_over"]) / name, home / name)


def run_federation(
    plan: FederationPlan, on_progress: Callable[[int, dict[str, AgentStatus]], None]
) -> list[dict[str, Any]]:
    """Start everything, wait for the last round, end everything; the coordinator's history.

    ``on_progress(rounds closed, status by silo)`` is called a few times a second. Raises
    CommandFailed when a process dies, UnreachableError when the run takes too long.
    """
    with daemons() as start:
        settings = plan.coordinator / "coordinator.toml"
        server = start("flamest-coordinator", plan.coordinator / "log", "coordinator", ["run", "--config", settings])
        address = plan.coordinator / "state" / "address"
        wait_until(address.exists, "the coordinator's start", seconds=START_WITHIN_S, watched=[server])
        agents = [_start_agent(plan, silo, address.read_text().strip(), start) for silo in plan.silos]

        def finished() -> bool:
            statuses = {silo: _status(plan, silo) for silo in plan.silos}
            on_progress(max(status.round for status in statuses.values()), statuses)
            return all(agent.process.poll() == 0 for agent in agents)

        wait_until(finished, "the end of the last round", seconds=plan.finish_within_s, watched=[server, *agents])
    rows: list[dict[str, Any]] = run_command("coordinator", "history", "--config", settings)["rounds"]
    return rows


def _start_agent(plan: FederationPlan, silo: str, address: str, start: Callable[..., Daemon]) -> Daemon:
    home = plan.folder / silo
    settings = home / "agent.toml"
    settings.write_text(_agent_settings(plan, silo, address))
    return start(f"flamest-agent of {silo}", home / "log", "agent", ["run", "--config", settings, "--once"])


def _status(plan: FederationPlan, silo: str) -> AgentStatus:
    try:
        return read_status(plan.folder / silo / "state")
    except FlamestError:
        return AgentStatus()


def _toml(value: str | Path | Sequence[str]) -> str:
    """A TOML string, or an array of them: JSON's form is valid TOML for both."""
    return json.dumps([*value] if isinstance(value, tuple) else str(value), ensure_ascii=False)


def _coordinator_settings(plan: FederationPlan) -> str:
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
labels = {_toml(plan.labels)}
inputs = {plan.inputs}
rounds = {plan.rounds}
min_silos = {len(plan.silos)}
deadline_s = {plan.deadline_s}
seed = {plan.seed}
fingerprint = {_toml(plan.fingerprint)}

[run.train]
epochs = {plan.train.epochs}
batch_size = {plan.train.batch_size}
learning_rate = {plan.train.learning_rate}
weight_decay = {plan.train.weight_decay}
"""


def _agent_settings(plan: FederationPlan, silo: str, address: str) -> str:
    return f"""\
# The demo's silos hold few clips, so their policy allows updates of few: a real silo keeps 256.
state = "state"
store = "features.sqlite"
bundle = {_toml(plan.bundle.resolve())}
videos = "videos"

[coordinator]
address = {_toml(address)}
ca = "ca.pem"
certificate = "silo.pem"
key = {_toml(silo + ".key")}

[policy]
min_samples = 1
min_samples_override = true
hold_out = {AGENT_HOLD_OUT}

[work]
threads = {plan.threads}
"""


def must_have_closed(history: Sequence[dict[str, Any]], rounds: int) -> None:
    """Raises UnreachableError unless ``rounds`` rounds closed."""
    closed = sum(1 for row in history if row["status"] == "closed")
    if closed < rounds:
        raise UnreachableError(f"{closed} of {rounds} rounds closed")
