"""Duration of a federated round compared with a minimal gRPC exchange: no training, mutual TLS, real processes.

    python bench/federation.py --silos 10 --rounds 20 --json

1,599,589 fp32 parameters down and up per silo and round. The floor (federation_floor.py), also in plaintext, runs in
the same call on the same machine: only the ratios are comparable elsewhere. Seconds per round are the median over
rounds as seen by the first silo; the first round is reported separately.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flamest.agent.identity import make_request
from flamest.coordinator.admin.authority import add_silo, init_federation
from flamest.fedproto.head import HeadSpec

HERE = Path(__file__).parent
SPEC = HeadSpec(inputs=2816, outputs=101)
SILOS, ROUNDS = (4, 10, 50, 100), 20
SETTINGS = """
[server]
listen = "127.0.0.1:{port}"
ca = "ca.pem"
certificate = "server.pem"
key = "server-key.pem"
silos = "silos.json"
state = "state"
keep_models = 2
[run]
name = "bench"
recipe = "paper"
labels = {labels}
fingerprint = "bench"
rounds = {rounds}
min_silos = {silos}
{codec}
"""


@dataclass(frozen=True)
class BenchFederation:
    """The federation of one benchmark: folder, certificates, port."""

    folder: Path
    silos: int
    rounds: int
    port: int

    @property
    def names(self) -> list[str]:
        return [f"silo-{number:03d}" for number in range(self.silos)]

    def key(self, name: str) -> Path:
        return self.folder / "keys" / name / f"{name}.key"

    def certificate(self, name: str, file: str) -> Path:
        return self.folder / "tls" / "silos" / name / file


def measure(silos: int = 4, rounds: int = ROUNDS, codec: str = "fp32") -> dict[str, Any]:
    """Figures of one benchmark, as stored in bench/results."""
    with tempfile.TemporaryDirectory(prefix="flamest-bench-") as folder:
        site = BenchFederation(Path(folder), silos, rounds, free_port())
        make_federation(site, codec)
        floor = run_floor(site, plaintext=False)
        plain = run_floor(site, plaintext=True)
        ours = run_ours(site)
    return {
        "silos": silos,
        "rounds": rounds,
        "codec": codec,
        "parameters": SPEC.parameters,
        **ours,
        "floor_seconds_per_round": floor["seconds_per_round"],
        "floor_peak_mb": floor["coordinator_peak_mb"],
        "plaintext_seconds_per_round": plain["seconds_per_round"],
        "floor_server_cpu_s_per_round": floor["server_cpu_s_per_round"],
        "floor_silo_cpu_s_per_round": floor["silo_cpu_s_per_round"],
        "times_floor": ours["seconds_per_round"] / floor["seconds_per_round"],
        "times_plaintext": ours["seconds_per_round"] / plain["seconds_per_round"],
    }


def run_ours(site: BenchFederation) -> dict[str, Any]:
    """Figures of flamest-coordinator with one process per silo, all started together."""
    config = site.folder / "tls" / "coordinator.toml"
    began = time.monotonic()
    with _processes() as start:
        server = start(
            "server", [sys.executable, "-m", "flamest.coordinator", "run", "--config", str(config), "--once"]
        )
        silos = []
        for place, name in enumerate(site.names):
            parts = (site.certificate(name, "ca.pem"), site.certificate(name, "silo.pem"), site.key(name))
            line = [f"127.0.0.1:{site.port}", *map(str, parts), str(100 + place)]
            silos.append(start(name, [sys.executable, str(HERE / "federation_silo.py"), *line]))
        peak, cpu, reports = _watched(server, silos)
    ends = reports[0]["ends"]
    moved = [silo["sent_bytes"] + silo["received_bytes"] for silo in reports]
    return {
        **_seconds(ends),
        **_cpu(cpu, reports, site.rounds),
        "first_round_s": ends[1] - began,
        "coordinator_peak_mb": peak,
        "bytes_per_silo_round": round(statistics.mean(moved) / site.rounds),
        "silo_waiting_mb": max(silo["waiting_mb"] for silo in reports),
        "silo_peak_mb": max(silo["peak_mb"] for silo in reports),
    }


def run_floor(site: BenchFederation, *, plaintext: bool) -> dict[str, Any]:
    script, port = str(HERE / "federation_floor.py"), free_port()
    common = ["--port", str(port), "--numbers", str(SPEC.parameters), "--rounds", str(site.rounds)]
    common += ["--tls", str(site.folder / "tls"), *(["--plaintext"] if plaintext else [])]
    uploads = site.folder / "uploads"
    uploads.mkdir(exist_ok=True)
    with _processes() as start:
        arguments = ["serve", *common, "--silos", str(site.silos), "--folder", str(uploads)]
        server = start("server", [sys.executable, script, *arguments])
        silos = [
            start(name, [sys.executable, script, "silo", *common, "--name", name, "--key", str(site.key(name))])
            for name in site.names
        ]
        peak, cpu, reports = _watched(server, silos)
    return {**_seconds(reports[0]["ends"]), "coordinator_peak_mb": peak, **_cpu(cpu, reports, site.rounds)}


def _seconds(ends: Sequence[float]) -> dict[str, float]:
    """Durations of the rounds after the first, during which processes still start."""
    lasted = [later - earlier for earlier, later in itertools.pairwise(ends)][1:] or [ends[-1] - ends[0]]
    return {"seconds_per_round": statistics.median(lasted), "slowest_round_s": max(lasted)}


def _cpu(server: Sequence[tuple[float, float]], reports: Sequence[Any], rounds: int) -> dict[str, float]:
    """CPU seconds per round of server and silos, which depend little on other load."""
    first, last = reports[0]["ends"][1], reports[0]["ends"][-1]
    used = [cpu for at, cpu in server if first <= at <= last] or [0.0]
    return {
        "server_cpu_s_per_round": (used[-1] - used[0]) / (rounds - 1),
        "silo_cpu_s_per_round": statistics.mean(silo["cpu_s"] for silo in reports) / (rounds - 1),
    }


def _watched(server: Any, silos: Sequence[Any]) -> tuple[float, list[tuple[float, float]], list[Any]]:
    """The server's peak resident memory in MB, its CPU seconds over time, and each silo's JSON line."""
    peak, cpu = 0.0, []
    for silo in silos:
        while silo.poll() is None:
            peak = max(peak, _peak_mb(server.pid))
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(") ")[2].split()
                cpu.append((time.monotonic(), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")))
            time.sleep(0.05)
    reports = []
    for silo in silos:
        out, _ = silo.communicate()
        if silo.returncode != 0:
            raise SystemExit(f"a silo ended with status {silo.returncode}; server: {server.poll()}")
        reports.append(json.loads(out.splitlines()[-1]))
    return peak, cpu, reports


def _peak_mb(pid: int) -> float:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3
    return 0.0


@contextlib.contextmanager
def _processes() -> Iterator[Any]:
    """Yield ``start(name, command)`` and end all running processes at the exit. BENCH_LOG: file of the server's log."""
    started: list[subprocess.Popen[str]] = []

    def start(name: str, command: Sequence[str]) -> subprocess.Popen[str]:
        log = Path(os.environ.get("BENCH_LOG", os.devnull)).open("a") if name == "server" else None  # noqa: SIM115
        out = log or subprocess.PIPE
        process = subprocess.Popen(command, stdout=out, stderr=log, text=True)
        if log:
            log.close()
        started.append(process)
        return process

    try:
        yield start
    finally:
        for process in started:
            if process.poll() is None:
                process.terminate()
        for process in started:
            process.wait()


def make_federation(site: BenchFederation, codec: str) -> None:
    labels = json.dumps([f"class-{number}" for number in range(SPEC.outputs)])
    line = "" if codec == "fp32" else f'codec = "{codec}"'
    text = SETTINGS.format(port=site.port, labels=labels, rounds=site.rounds, silos=site.silos, codec=line)
    init_federation(site.folder / "tls", ["127.0.0.1"], text)
    for name in site.names:
        made = make_request(name, site.folder / "keys" / name)
        add_silo(site.folder / "tls", name, made.csr_path.read_bytes())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--silos", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--codec", default="fp32")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--keep", action="store_true", help="store the figures in bench/results")
    arguments = parser.parse_args()
    figures = measure(arguments.silos, arguments.rounds, arguments.codec)
    if arguments.keep:
        sys.path.insert(0, str(HERE.parent))  # run as a script, the package is not there
        from bench.record import store_result

        store_result(f"federation_{arguments.codec}_{arguments.silos}", figures)
    print(json.dumps(figures) if arguments.json else json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
