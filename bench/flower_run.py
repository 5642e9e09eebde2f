"""The paper's federated run in Flower's simulation engine: a script for a Python with flwr, ray and torch.

``python bench/flower_run.py '{"silos": 4, "rows": 2655, …}'`` prints one JSON line: the seconds until the end of every
round. The same work as ours: FedAvg weighted by examples, Adam with L2, fp32, one core per silo.
"""

from __future__ import annotations

import json
import os
import sys
import time

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_DISABLE_DOCKER_CPU_WARNING", "1")

import numpy as np
import torch
from flwr.client import ClientApp, NumPyClient
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.simulation import run_simulation

WORK = json.loads(sys.argv[1])
DATA: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # of the silos trained in this process
ENDS: list[float] = []


def head() -> torch.nn.Sequential:
    layers: list[torch.nn.Module] = []
    for width_in, width_out in zip(WORK["widths"], WORK["widths"][1:], strict=False):
        layers += [torch.nn.Linear(width_in, width_out), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def rows(silo: int) -> tuple[torch.Tensor, torch.Tensor]:
    if silo not in DATA:
        random = np.random.default_rng(silo)
        x = random.standard_normal((WORK["rows"][silo], WORK["widths"][0]), dtype=np.float32)
        DATA[silo] = torch.from_numpy(x), torch.from_numpy(random.integers(0, WORK["widths"][-1], len(x)))
    return DATA[silo]


class Silo(NumPyClient):
    def __init__(self, number: int) -> None:
        self.number = number

    def fit(self, parameters, config):
        torch.set_num_threads(1)
        model, (x, y) = head(), rows(self.number)
        with torch.no_grad():
            for own, received in zip(model.parameters(), parameters, strict=True):
                own.copy_(torch.from_numpy(received))
        adam = torch.optim.Adam(model.parameters(), lr=WORK["rate"], weight_decay=WORK["decay"], fused=True)
        for _ in range(WORK["epochs"]):
            order = torch.randperm(len(y))
            for start in range(0, len(y), WORK["batch"]):
                some = order[start : start + WORK["batch"]]
                adam.zero_grad()
                torch.nn.functional.cross_entropy(model(x[some]), y[some]).backward()
                adam.step()
        return [own.detach().numpy() for own in model.parameters()], len(y), {}


class Timed(FedAvg):
    def aggregate_fit(self, server_round, results, failures):
        if failures or len(results) != len(WORK["rows"]):
            sys.exit(f"round {server_round}: {len(results)} results, {failures}")
        done = super().aggregate_fit(server_round, results, failures)
        ENDS.append(time.time())
        return done


def server(context) -> ServerAppComponents:
    start = ndarrays_to_parameters([own.detach().numpy() for own in head().parameters()])
    silos = len(WORK["rows"])
    strategy = Timed(
        fraction_evaluate=0.0, min_fit_clients=silos, min_available_clients=silos, initial_parameters=start
    )
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=WORK["rounds"]))


if __name__ == "__main__":
    began = time.time()
    run_simulation(
        server_app=ServerApp(server_fn=server),
        client_app=ClientApp(client_fn=lambda context: Silo(int(context.node_config["partition-id"])).to_client()),
        num_supernodes=len(WORK["rows"]),
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": WORK["cores"]}},
    )
    print(json.dumps({"ends": [end - began for end in ENDS]}))
