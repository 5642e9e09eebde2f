"""A silo of the federation benchmark as a process: the agent's client, without training.

``python bench/federation_silo.py ADDRESS CA CERTIFICATE KEY EXAMPLES`` takes part until the run has finished and prints
one JSON line: the end of each round for this silo, bytes, and memory before the first model.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from flamest.agent.client import Backoff, ConnectionSettings, CoordinatorClient
from flamest.base.process import tune_malloc
from flamest.fedproto.codecs import encode_delta
from flamest.fedproto.records import EncodedUpdate, GlobalModel, Phase, RunSettings, Update


def memory_mb(field: str) -> float:
    """``VmRSS`` or ``VmHWM`` of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1e3


def answer(run: RunSettings, model: GlobalModel, examples: int) -> Update:
    """The model itself as update; with a lossy codec, a delta of the usual size."""
    name = os.urandom(16).hex()
    if run.codec == "fp32":
        return Update(model.round, model.sha256, name, examples, model.params)
    moved = {key: tensor * np.float32(1.01) for key, tensor in model.params.items()}
    encoded = encode_delta(run.codec, run.head, moved, model.params, None)
    made = EncodedUpdate(run.codec, encoded.payload, encoded.error)
    return Update(model.round, model.sha256, name, examples, None, None, made)


def main() -> None:
    address, ca, certificate, key, examples = sys.argv[1:]
    tune_malloc()  # as flamest-agent does
    settings = ConnectionSettings(address, Path(ca), Path(certificate), Path(key))
    opened, answered = [], 0
    with CoordinatorClient.open(
        settings, retry=Backoff(give_up_after_s=300.0, first_s=0.05, longest_s=0.5, spread_s=0.5)
    ) as client:
        run = client.join()
        waiting_mb = memory_mb("VmRSS")
        before = (client.sent_bytes, client.received_bytes)
        while (status := client.wait(run, answered, 60.0)).phase is not Phase.FINISHED:
            if status.phase is not Phase.OPEN:
                time.sleep(status.poll_after_s)
                continue
            opened.append(time.monotonic())
            if len(opened) == 2:
                began = time.process_time()
            model = client.fetch(run, status)
            client.submit(run, answer(run, model, int(examples)))
            answered = status.round
        opened.append(time.monotonic())
        report = {
            "ends": opened,
            "cpu_s": time.process_time() - began,
            "sent_bytes": client.sent_bytes - before[0],
            "received_bytes": client.received_bytes - before[1],
            "waiting_mb": waiting_mb,
            "peak_mb": memory_mb("VmHWM"),
        }
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
