"""Floor of the federation benchmark: bare gRPC that moves the same bytes with minimal work.

A script with one process per part: ``serve`` is the server, ``silo`` a client. One call per round and silo: the update
is sent in one message; the server hashes it, writes it to a file with fsync and adds it to a NumPy sum; when all have
arrived, the mean is returned. No checks, no restart, no identity beyond the TLS handshake.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0)]
CALL = "/floor.Floor/Round"


class Floor:
    """Sums the updates of ``silos`` clients in every round."""

    def __init__(self, silos: int, numbers: int, folder: Path) -> None:
        self._silos = silos
        self._folder = folder
        self._arrived = threading.Condition()
        self._total = np.zeros(numbers, np.float32)
        self._reports = 0
        self._round = 0
        self._done = 0
        self._mean = b""

    def exchange(self, update: bytes, _: grpc.ServicerContext) -> bytes:
        hashlib.sha256(update).digest()
        values = np.frombuffer(update, np.float32)
        with self._arrived:
            number, slot = self._round, self._reports
            self._reports += 1
        with (self._folder / f"{slot}.f32").open("wb") as file:
            file.write(update)
            file.flush()
            os.fsync(file.fileno())
        with self._arrived:
            self._total += 100.0 * values
            self._done += 1
            if self._done == self._silos:
                self._mean = (self._total / (100.0 * self._silos)).astype(np.float32).tobytes()
                self._total[:] = 0
                self._reports = self._done = 0
                self._round += 1
                self._arrived.notify_all()
            else:
                self._arrived.wait_for(lambda: self._round > number)
            return self._mean


def serve(arguments: argparse.Namespace) -> None:
    floor = Floor(arguments.silos, arguments.numbers, arguments.folder)
    server = grpc.server(ThreadPoolExecutor(arguments.silos + 2), options=OPTIONS)
    handler = grpc.unary_unary_rpc_method_handler(floor.exchange)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("floor.Floor", {"Round": handler}),))
    address = f"127.0.0.1:{arguments.port}"
    if arguments.plaintext:
        server.add_insecure_port(address)
    else:
        pair = ((arguments.tls / "server-key.pem").read_bytes(), (arguments.tls / "server.pem").read_bytes())
        authority = (arguments.tls / "ca.pem").read_bytes()
        credentials = grpc.ssl_server_credentials([pair], root_certificates=authority, require_client_auth=True)
        server.add_secure_port(address, credentials)
    server.start()
    server.wait_for_termination()


def silo(arguments: argparse.Namespace) -> None:
    address = f"127.0.0.1:{arguments.port}"
    if arguments.plaintext:
        channel = grpc.insecure_channel(address, options=OPTIONS)
    else:
        parts = (arguments.tls / "ca.pem", arguments.key, arguments.tls / "silos" / arguments.name / "silo.pem")
        credentials = grpc.ssl_channel_credentials(*(part.read_bytes() for part in parts))
        channel = grpc.secure_channel(address, credentials, options=OPTIONS)
    payload = np.random.default_rng(0).standard_normal(arguments.numbers, dtype=np.float32).tobytes()
    ends = []
    for _ in range(arguments.rounds + 1):
        payload = channel.unary_unary(CALL, None, None)(payload, wait_for_ready=True)
        ends.append(time.monotonic())
        if len(ends) == 2:
            began = time.process_time()
    print(json.dumps({"ends": ends, "cpu_s": time.process_time() - began}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=["serve", "silo"])
    parser.add_argument("--port", type=int)
    parser.add_argument("--silos", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--numbers", type=int)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--tls", type=Path)
    parser.add_argument("--key", type=Path)
    parser.add_argument("--name", default="")
    parser.add_argument("--plaintext", action="store_true")
    arguments = parser.parse_args()
    (serve if arguments.part == "serve" else silo)(arguments)


if __name__ == "__main__":
    main()
