"""Floods of connections and frames as one process: an attacker, without any of this package's code.

``python -m flamest.bench.flood_attacks KIND ADDRESS --connections 64 --seconds 20 [--tls FOLDER] [--rate 150]``
connects only to loopback, prints one JSON line with its own counts, and ends. ``FOLDER`` holds a silo's ``ca.pem``,
``silo.pem`` and ``silo.key``.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from . import flood_connections as connections
from . import flood_frames as frames
from .flood_wire import Attack

KINDS: dict[str, Callable[[Attack, int], None]] = {
    each.__name__: each
    for each in (
        connections.plain,
        connections.many_addresses,
        connections.churn,
        connections.half_handshake,
        connections.slow_handshake,
        connections.hello,
        connections.garbage,
        connections.idle,
        frames.continuation,
        frames.continuation_string,
        frames.continuation_empty,
        frames.continuation_indexed,
        frames.call_then_continuation,
        frames.ping,
        frames.settings,
        frames.priority,
        frames.stray_data,
        frames.unknown_frames,
        frames.rapid_reset,
        frames.big_metadata,
        frames.gzip_bombs,
        frames.never_sent,
        frames.never_read,
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("address")
    parser.add_argument("--connections", type=int, default=64, help="at one time, each in a thread")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=0.0, help="new connections a second, all together")
    parser.add_argument("--tls", type=Path)
    parser.add_argument("--requests", default="", help="hexadecimal, separated by commas: the messages of calls")
    chosen = parser.parse_args()
    host, _, port = chosen.address.rpartition(":")
    host = host.strip("[]")
    if not (host.startswith("127.") or host == "::1"):
        sys.exit("only loopback is attacked")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    threading.stack_size(256 << 10)
    attack = Attack(
        host,
        int(port),
        chosen.connections,
        chosen.seconds,
        chosen.rate,
        chosen.tls,
        [bytes.fromhex(each) for each in chosen.requests.split(",")],
        chosen.kind,
    )
    attack.until = time.monotonic() + chosen.seconds

    def run(number: int) -> None:
        while not attack.over:
            try:
                KINDS[chosen.kind](attack, number)
            except OSError:
                attack.count("refused")
            time.sleep(0.01)

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(chosen.connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(attack.until + 15 - time.monotonic(), 0))
    print(json.dumps(attack.counts), flush=True)


if __name__ == "__main__":
    main()
