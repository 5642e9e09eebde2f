"""Floods against a real coordinator while honest silos take part: rounds per minute, memory, descriptors.

    python bench/floods.py --limit 1024 --seconds 20 --wait 60 --json [--only continuation,plain] [--unguarded]

Each flood (flood_attacks.py) is a process of its own against a coordinator of its own under ``ulimit -n LIMIT``. All
connections come from loopback. Honest silos connect from 127.0.0.1; attackers do as well, except where the flood is of
many addresses. Four silos keep their connections; another one makes 80 calls during the flood, each over a new
connection. Floods run one at a time; with ``--overlap N`` the next
one begins while up to N coordinators wait. ``--unguarded`` takes the guard out, to show that the flood bites.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flamest.agent.identity import make_request
from flamest.coordinator.admin.authority import add_silo, init_federation, revoke_silo
from flamest.coordinator.settings import load_coordinator_settings
from flamest.fedproto import messages

HERE = Path(__file__).parent
LIGHT_SILO = HERE.parent / "tests" / "coordinator" / "serving" / "light_silo.py"
HONEST, THINK_S, ATTACKER, CALLER = 4, 0.3, "attacker", "caller"
CALLS = 80
_FLOODING = threading.Lock()  # one flood at a time
SETTINGS = """
[server]
listen = "127.0.0.1:0"
ca = "ca.pem"
certificate = "server.pem"
key = "server-key.pem"
silos = "silos.json"
state = "state"
keep_models = 2
[run]
name = "floods"
recipe = "paper"
labels = ["a", "b"]
fingerprint = "bench"
inputs = 2816
rounds = 100000
min_silos = 4
wanted = 4
"""
UNGUARDED = (
    "from flamest.coordinator.serving.connections import ConnectionGuard as guard; "
    "guard.start = lambda self, port: None; "
    "from flamest.coordinator.cli.main import app; app()"
)


@dataclass(frozen=True)
class Flood:
    """A flood of the table: the attacker's arguments, and whose certificate it holds."""

    name: str
    kind: str
    connections: int
    rate: float = 0.0
    holder: str = "revoked"  # revoked, enrolled


FLOODS = (
    Flood("continuation_revoked", "continuation", 64),
    Flood("continuation_enrolled", "continuation", 64, holder="enrolled"),
    Flood("call_then_continuation", "call_then_continuation", 64, holder="enrolled"),
    Flood("continuation_string", "continuation_string", 64),
    Flood("continuation_empty", "continuation_empty", 64),
    Flood("continuation_indexed", "continuation_indexed", 64),
    Flood("plain_150_per_s", "plain", 50, rate=150),
    Flood("plain_1000_per_s", "plain", 100, rate=1000),
    Flood("many_addresses_1000_per_s", "many_addresses", 100, rate=1000),
    Flood("churn_1000_per_s", "churn", 50, rate=1000),
    Flood("half_handshakes", "half_handshake", 500),
    Flood("slow_handshakes", "slow_handshake", 300),
    Flood("client_hellos", "hello", 20),
    Flood("garbage", "garbage", 64),
    Flood("idle_with_certificate", "idle", 500),
    Flood("pings", "ping", 32, holder="enrolled"),
    Flood("settings", "settings", 32, holder="enrolled"),
    Flood("priorities", "priority", 32, holder="enrolled"),
    Flood("stray_data", "stray_data", 32, holder="enrolled"),
    Flood("unknown_frames", "unknown_frames", 64, holder="enrolled"),
    Flood("rapid_reset", "rapid_reset", 32, holder="enrolled"),
    Flood("big_metadata", "big_metadata", 32, holder="enrolled"),
    Flood("gzip_bombs", "gzip_bombs", 16, holder="enrolled"),
    Flood("never_sent", "never_sent", 130, holder="enrolled"),
    Flood("never_sent_revoked", "never_sent", 130),
    Flood("never_read", "never_read", 64, holder="enrolled"),
)
IDLE = Flood("idle_10000", "plain", 1000, rate=4000)  # ten each


def measure(
    floods: Sequence[Flood] = FLOODS, limit: int = 1024, seconds: float = 20.0, wait: float = 60.0, guarded: bool = True
) -> dict[str, Any]:
    """Figures of every flood, as stored in bench/results."""
    return {each.name: run_flood(each, limit, seconds, wait, guarded) for each in floods}


def run_flood(
    flood: Flood, limit: int, seconds: float, wait: float, guarded: bool = True, calls: int = CALLS
) -> dict[str, Any]:
    """Figures of one flood: rounds per minute and resident MB before, during and after, and calls that were served."""
    with tempfile.TemporaryDirectory(prefix="flamest-floods-") as name, _processes() as start:
        folder = Path(name)
        _make_federation(folder)
        with _FLOODING:
            server = start(_server_command(folder, guarded), limit=limit, log=folder / "log")
            state = _start_silos(folder, start, server.pid)
            if flood.holder == "revoked":
                revoke_silo(folder / "coordinator", ATTACKER)
            before = state.watch(max(seconds / 2, 5))
            address = _address(folder)
            attacker = start(_attack_command(folder, flood, address, seconds, state.rounds()), out=subprocess.PIPE)
            caller = start(_caller_command(folder, address, calls, seconds), out=subprocess.PIPE)
            during = state.watch(seconds)
            sent, _ = attacker.communicate(timeout=120)
            served, _ = caller.communicate(timeout=120)
        after = state.watch(max(wait - 10, 1))
        last = state.watch(min(wait, 10))
        return {
            "limit": limit,
            "rounds_per_minute": [each["rounds_per_minute"] for each in (before, during, after)],
            "before_mb": before["last_mb"],
            "peak_mb": during["peak_mb"],
            "after_mb": last["last_mb"],
            "after_s": wait,
            "peak_descriptors": during["descriptors"],
            "server_alive": server.poll() is None,
            "new_connections": json.loads(served.strip() or "{}"),
            "attacker": json.loads(sent.splitlines()[-1]) if sent.strip() else {},
            "log_lines": len((folder / "log").read_bytes().splitlines()),
        }


class _State:
    """The coordinator as seen from outside: /proc and its log."""

    def __init__(self, pid: int, folder: Path) -> None:
        self._proc, self._log = Path(f"/proc/{pid}"), folder / "log"

    def rounds(self) -> int:
        return self._log.read_bytes().count(b"event=round_closed")

    def wait_for_rounds(self, count: int) -> None:
        until = time.monotonic() + 60
        while self.rounds() < count:
            if time.monotonic() > until:
                raise SystemExit(f"no rounds close:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.1)

    def watch(self, seconds: float) -> dict[str, float]:
        began, rounds, peak, most = time.monotonic(), self.rounds(), 0.0, 0
        while True:
            with contextlib.suppress(OSError):
                now = self._resident_mb()
                peak, most = max(peak, now), max(most, len(os.listdir(self._proc / "fd")))
            if time.monotonic() - began >= seconds:
                break
            time.sleep(0.05)
        minutes = (time.monotonic() - began) / 60
        closed = (self.rounds() - rounds) / minutes
        return {"rounds_per_minute": round(closed, 1), "peak_mb": peak, "last_mb": now, "descriptors": most}

    def _resident_mb(self) -> float:
        lines = (self._proc / "status").read_text().splitlines()
        return next(round(int(line.split()[1]) / 1e3, 1) for line in lines if line.startswith("VmRSS"))


def _start_silos(folder: Path, start: Callable[..., Any], server: int) -> _State:
    """Start the honest silos that keep their connections; return when rounds close."""
    for silo in range(HONEST):
        tls = map(str, _tls(folder, f"honest-{silo}"))
        start([sys.executable, str(LIGHT_SILO), _address(folder), *tls, str(THINK_S)])
    state = _State(server, folder)
    state.wait_for_rounds(3)
    return state


def _make_federation(folder: Path) -> None:
    init_federation(folder / "coordinator", ["127.0.0.1"], SETTINGS)
    for name in [*(f"honest-{silo}" for silo in range(HONEST)), ATTACKER, CALLER]:
        made = make_request(name, folder / "keys" / name)
        add_silo(folder / "coordinator", name, made.csr_path.read_bytes())


def _tls(folder: Path, name: str) -> tuple[Path, Path, Path]:
    signed = folder / "coordinator" / "silos" / name
    return signed / "ca.pem", signed / "silo.pem", folder / "keys" / name / f"{name}.key"


def _server_command(folder: Path, guarded: bool) -> list[str]:
    program = ["-m", "flamest.coordinator"] if guarded else ["-c", UNGUARDED]
    return [sys.executable, *program, "run", "--config", str(folder / "coordinator" / "coordinator.toml")]


def _address(folder: Path) -> str:
    path, until = folder / "coordinator" / "state" / "address", time.monotonic() + 60
    while not path.exists():
        if time.monotonic() > until:
            raise SystemExit((folder / "log").read_text())
        time.sleep(0.05)
    return path.read_text().strip()


def _attack_command(folder: Path, flood: Flood, address: str, seconds: float, closed: int) -> list[str]:
    held = folder / "held"
    held.mkdir()
    for path, name in zip(_tls(folder, ATTACKER), ("ca.pem", "silo.pem", "silo.key"), strict=True):
        (held / name).write_bytes(path.read_bytes())
    return [
        *(sys.executable, "-m", "flamest.bench.flood_attacks", flood.kind, address, "--tls", str(held)),
        *("--connections", str(flood.connections), "--seconds", str(seconds), "--rate", str(flood.rate)),
        *("--requests", ",".join(_fetch_requests(folder, closed))),
    ]


def _caller_command(folder: Path, address: str, calls: int, seconds: float) -> list[str]:
    tls = map(str, _tls(folder, CALLER))
    arguments = ["--calls", str(calls), "--seconds", str(seconds * 0.9)]
    return [sys.executable, "-m", "flamest.bench.flood_caller", address, *tls, *arguments]


def _fetch_requests(folder: Path, closed: int) -> list[str]:
    """Return requests, in hexadecimal, for the models of the eight rounds after ``closed`` ones."""
    run = load_coordinator_settings(folder / "coordinator" / "coordinator.toml").run_settings()
    return [
        messages.encode_fetch_request(messages.FetchRequest(run.sha256, closed + each)).hex() for each in range(1, 9)
    ]


@contextlib.contextmanager
def _processes() -> Iterator[Any]:
    """Yield ``start(command)``; end all that runs at the exit."""
    started: list[subprocess.Popen[bytes]] = []

    def start(
        command: Sequence[str], *, limit: int = 0, log: Path | None = None, out: int = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        def lower() -> None:
            if limit:
                resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

        environment = {**os.environ, "PYTHONPATH": str(HERE.parent.parent)}
        with contextlib.ExitStack() as stack:
            error = stack.enter_context(log.open("wb")) if log else subprocess.DEVNULL
            process = subprocess.Popen(command, stdout=out, stderr=error, preexec_fn=lower, env=environment)
        started.append(process)
        return process

    try:
        yield start
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=1024, help="descriptors of the coordinator")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each flood")
    parser.add_argument("--wait", type=float, default=60.0, help="seconds after which memory is compared")
    parser.add_argument("--only", default="", help="names of floods, separated by commas")
    parser.add_argument("--unguarded", action="store_true")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--overlap", type=int, default=1, help="coordinators at one time, of which one is flooded")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",") if arguments.only else [each.name for each in FLOODS]
    chosen = [each for each in (*FLOODS, IDLE) if each.name in wanted]
    guarded = not arguments.unguarded
    figures: dict[str, Any] = {}

    def run(flood: Flood) -> None:
        done = run_flood(flood, arguments.limit, arguments.seconds, arguments.wait, guarded)
        figures[flood.name] = done
        sys.stderr.write(json.dumps({flood.name: done}) + "\n")

    with ThreadPoolExecutor(arguments.overlap) as pool:
        list(pool.map(run, chosen))
    print(json.dumps(figures) if arguments.json else json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
