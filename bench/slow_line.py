"""A round over a slow connection: 20 Mbit/s each way and 80 ms round trip, through experiments/faults.py.

    python bench/slow_line.py --json

One silo, no training, 1,599,589 parameters, mutual TLS; a round is the request for work, the model down and the update
up until the receipt. The lower bound is bytes divided by bandwidth.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from flamest.agent.client import Backoff, ConnectionSettings, CoordinatorClient
from flamest.experiments.faults import FaultProxy
from flamest.fedproto.codecs import CODECS, encode_delta
from flamest.fedproto.records import EncodedUpdate, GlobalModel, Phase, RunSettings, Update

BITS_PER_S, ROUND_TRIP_S = 20e6, 0.08


def measure(rounds: int = 3, codec: str = "fp32") -> dict[str, Any]:
    sys.path.insert(0, str(Path(__file__).parent.parent))  # run as a script, the package is not there
    from bench import federation

    with tempfile.TemporaryDirectory(prefix="flamest-bench-") as folder:
        site = federation.BenchFederation(Path(folder), 1, rounds, federation.free_port())
        federation.make_federation(site, codec)
        config = str(site.folder / "tls" / "coordinator.toml")
        server = subprocess.Popen(
            [sys.executable, "-m", "flamest.coordinator", "run", "--config", config, "--once"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            target = f"127.0.0.1:{site.port}"
            with FaultProxy(target, bytes_per_s=BITS_PER_S / 8, delay_s=ROUND_TRIP_S / 2) as proxy:
                seconds, moved = drive(site, proxy)
            server.wait(60)
        finally:
            server.terminate()
            server.wait()
    least = [8 * size / BITS_PER_S for size in moved]
    return {
        "mbit_per_s": BITS_PER_S / 1e6,
        "round_trip_ms": ROUND_TRIP_S * 1e3,
        "codec": codec,
        "rounds": rounds,
        "bytes_per_silo_round": round(statistics.mean(moved)),
        "seconds_per_round": statistics.median(seconds),
        "least_seconds": statistics.median(least),
        "times_least": statistics.median(a / b for a, b in zip(seconds, least, strict=True)),
        "times_least_each": [round(a / b, 3) for a, b in zip(seconds, least, strict=True)],
    }


def drive(site: Any, proxy: FaultProxy) -> tuple[list[float], list[int]]:
    """Seconds and bytes through the proxy of every round, both directions."""
    name = site.names[0]
    settings = ConnectionSettings(
        proxy.address, site.certificate(name, "ca.pem"), site.certificate(name, "silo.pem"), site.key(name)
    )
    seconds, moved, answered = [], [], 0
    with CoordinatorClient.open(
        settings, retry=Backoff(give_up_after_s=120.0, first_s=0.1, longest_s=0.5, spread_s=0.5)
    ) as client:
        run = client.join()
        while True:
            began, before = time.monotonic(), client.sent_bytes + client.received_bytes
            status = client.wait(run, answered, 60.0)
            if status.phase is not Phase.OPEN:
                if status.phase is Phase.FINISHED:
                    return seconds, moved
                continue
            model = client.fetch(run, status)
            fetched = time.monotonic()
            update = trained(run, model)  # not counted: training is not measured
            trained_s = time.monotonic() - fetched
            client.submit(run, update)
            seconds.append(time.monotonic() - began - trained_s)
            moved.append(client.sent_bytes + client.received_bytes - before)
            answered = status.round


def trained(run: RunSettings, model: GlobalModel) -> Update:
    random = np.random.default_rng(model.round)
    params = {
        name: tensor + 0.01 * random.standard_normal(tensor.shape, dtype=np.float32)
        for name, tensor in model.params.items()
    }
    if run.codec == "fp32":
        return Update(model.round, model.sha256, f"{model.round:032x}", 100, params)
    encoded = encode_delta(run.codec, run.head, params, model.params, None)
    made = EncodedUpdate(run.codec, encoded.payload, encoded.error)
    return Update(model.round, model.sha256, f"{model.round:032x}", 100, None, None, made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--codec", choices=CODECS, default="fp32")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--keep", action="store_true", help="store the figures in bench/results")
    arguments = parser.parse_args()
    figures = measure(arguments.rounds, arguments.codec)
    if arguments.keep:
        from bench.record import store_result

        store_result(f"slow_line_{arguments.codec}", figures)
    print(json.dumps(figures) if arguments.json else json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
