"""An honest silo that opens a connection for every call, while others flood: how many of its calls are answered.

``python -m flamest.bench.flood_caller ADDRESS CA CERTIFICATE KEY --calls 80 --seconds 20`` spreads the calls over the
seconds, each with the agent's own client over a connection of its own, and prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from pathlib import Path

from flamest.agent.client import ConnectionSettings, CoordinatorClient
from flamest.base.errors import FlamestError

DEADLINE_S = 20.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("address", "ca", "certificate", "key"):
        parser.add_argument(name)
    parser.add_argument("--calls", type=int, default=80)
    parser.add_argument("--seconds", type=float, default=20.0)
    chosen = parser.parse_args()
    settings = ConnectionSettings(chosen.address, Path(chosen.ca), Path(chosen.certificate), Path(chosen.key))
    took: list[float] = []
    failed: list[str] = []

    def call() -> None:
        began = time.monotonic()
        try:
            with CoordinatorClient.open(settings) as client:
                client.join()
                took.append(time.monotonic() - began)
        except FlamestError as error:
            failed.append(error.code or type(error).__name__)

    threads = []
    for _ in range(chosen.calls):
        threads.append(threading.Thread(target=call, daemon=True))
        threads[-1].start()
        time.sleep(chosen.seconds / chosen.calls)
    until = time.monotonic() + DEADLINE_S
    for thread in threads:
        thread.join(max(until - time.monotonic(), 0))
    served = sorted(seconds for seconds in list(took) if seconds <= DEADLINE_S)
    middle, slowest = (served[len(served) // 2], served[-1]) if served else (None, None)
    figures = {"calls": chosen.calls, "served": len(served), "median_s": middle, "slowest_s": slowest, "failed": failed}
    print(json.dumps(figures), flush=True)
    os._exit(0)  # calls that are late have threads


if __name__ == "__main__":
    main()
