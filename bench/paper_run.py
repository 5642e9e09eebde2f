"""The paper's federated run on random features: ours, Flower's simulation engine, and a plain PyTorch loop.

4 silos, 10,619 x 2,816 samples in all, head 512-256-101, 5 local epochs, batch 128, fp32, FedAvg, 80 rounds.
All three do the same arithmetic on every core of the machine. ``FLOWER_PYTHON`` is a Python with flwr, ray and torch
(Flower is not a dependency of ours); without it Flower is "not run". ``BENCH_ROUNDS`` shortens our run on a busy
machine; the figures then record it.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from flamest.agent.training.dataset import FeatureTable
from flamest.experiments.simulation import SimulatedSilo, simulate
from flamest.fedproto.head import HeadSpec, initial_params
from flamest.fedproto.records import RunSettings, TrainSettings

from .training import gemm_peak

ROWS = (2655, 2655, 2655, 2654)  # 10,619: UCF101's training clips in the paper's split
ROUNDS = 80
SHORT = 2  # rounds of each interleaved run
REPEATS = 2
CORES = len(os.sched_getaffinity(0))
RUN = RunSettings(
    run="bench",
    labels=tuple(str(label) for label in range(101)),
    head=HeadSpec(inputs=2816, outputs=101),
    rounds=ROUNDS,
    min_silos=len(ROWS),
    deadline_s=600.0,
    fingerprint="random features",
    train=TrainSettings(),
)


def measure() -> dict[str, Any]:
    rounds = int(os.environ.get("BENCH_ROUNDS", ROUNDS))
    load = os.getloadavg()[0]
    silos = [SimulatedSilo(f"silo-{number}", _rows(number)) for number in range(len(ROWS))]
    peak, bandwidth = gemm_peak(), copy_bandwidth()
    seconds: dict[str, list[float]] = {"flamest": [], "torch_loop": [], "flower_simulation": []}
    for _ in range(REPEATS):  # interleaved, because the machine may be shared
        seconds["flamest"] += ours(silos, SHORT)
        seconds["torch_loop"] += torch_loop(silos, SHORT)
        seconds["flower_simulation"] += flower(SHORT)
    per_round = {name: statistics.median(each) if each else "not run" for name, each in seconds.items()}
    began = time.perf_counter()
    full = ours(silos, rounds)
    wall = time.perf_counter() - began
    peak = max(peak, gemm_peak())
    return {
        "what": f"{len(ROWS)} silos, {sum(ROWS)} x {RUN.head.inputs}, {RUN.train.epochs} epochs, batch 128, fp32",
        "load_average": {"before": load, "after": os.getloadavg()[0]},
        "cores": CORES,
        "seconds_per_round_in_turns": {"each": seconds, "median": per_round},
        "times_faster_than": {
            name: value / per_round["flamest"]
            for name, value in per_round.items()
            if name != "flamest" and isinstance(value, float)
        },
        "flamest_run": {"rounds": rounds, "of": ROUNDS, "seconds": wall, "round_median": statistics.median(full)},
        "seconds_for_80_rounds": wall * ROUNDS / rounds,
        "extrapolated": rounds < ROUNDS,
        **roofline(peak, bandwidth, wall * ROUNDS / rounds),
    }


def roofline(peak: float, bandwidth: float, seconds: float) -> dict[str, float]:
    """Lower bounds of the run time: matmuls at their peak, and every weight and moment moved once per step."""
    first, *others = (a * b for a, b in itertools.pairwise(RUN.head.widths))
    samples = sum(ROWS) * RUN.train.epochs * ROUNDS
    flop = 2 * samples * (2 * first + 3 * sum(others))  # the features need no gradient
    steps = sum(-(-rows // RUN.train.batch_size) for rows in ROWS) * RUN.train.epochs * ROUNDS
    moved = steps * 2 * 3 * 4 * RUN.head.parameters  # weight and two moments, read and written
    floors = {"gemm_floor_s": flop / peak, "memory_floor_s": moved / bandwidth}
    return {
        "tflop": flop / 1e12,
        "gemm_peak_gflops": peak / 1e9,
        "copy_bandwidth_gb_s": bandwidth / 1e9,
        **floors,
        "percent_of_gemm_peak": 100 * floors["gemm_floor_s"] / seconds,
        "percent_of_roofline": 100 * max(floors.values()) / seconds,
    }


def ours(silos: list[SimulatedSilo], rounds: int) -> list[float]:
    """Seconds of every round; loading the graphs counts as part of the first."""
    import msgspec

    ends = [time.perf_counter()]
    run = msgspec.structs.replace(RUN, rounds=rounds)
    simulate(run, silos, threads=1, workers=CORES, on_round=lambda _: ends.append(time.perf_counter()))
    return [later - earlier for earlier, later in itertools.pairwise(ends)]


def torch_loop(silos: list[SimulatedSilo], rounds: int) -> list[float]:
    """Seconds of every round of a plain loop: silo after silo on all cores, fused Adam, weighted mean."""
    import torch

    torch.set_num_threads(CORES)
    params = {name: torch.from_numpy(tensor) for name, tensor in initial_params(RUN.head, 0).items()}
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        parts = [(len(silo.train), _torch_silo(params, silo.train)) for silo in silos]
        total = sum(count for count, _ in parts)
        params = {name: sum(count * part[name].double() for count, part in parts) / total for name in params}
        params = {name: tensor.float() for name, tensor in params.items()}
        seconds.append(time.perf_counter() - began)
    return seconds


def _torch_silo(params: dict[str, Any], table: FeatureTable) -> dict[str, Any]:
    import torch

    weights = {name: tensor.clone().requires_grad_() for name, tensor in params.items()}
    rate, decay = RUN.train.learning_rate, RUN.train.weight_decay
    adam = torch.optim.Adam(weights.values(), lr=rate, weight_decay=decay, fused=True)
    x, y = torch.from_numpy(table.x), torch.from_numpy(table.y)
    for _ in range(RUN.train.epochs):
        for rows in torch.randperm(len(table)).split(RUN.train.batch_size):
            h = x[rows]
            for layer in range(3):
                h = torch.nn.functional.linear(h, weights[f"{layer}.weight"], weights[f"{layer}.bias"])
                h = h if layer == 2 else torch.relu(h)
            adam.zero_grad()
            torch.nn.functional.cross_entropy(h, y[rows]).backward()
            adam.step()
    return {name: tensor.detach() for name, tensor in weights.items()}


def flower(rounds: int) -> list[float]:
    """Seconds of ``rounds`` rounds after a first one, in which Flower's actors start; [] without FLOWER_PYTHON."""
    python = os.environ.get("FLOWER_PYTHON")
    if not python:
        return []
    work = {
        "rows": ROWS,
        "widths": RUN.head.widths,
        "rate": RUN.train.learning_rate,
        "decay": RUN.train.weight_decay,
        "epochs": RUN.train.epochs,
        "batch": RUN.train.batch_size,
        "rounds": rounds + 1,
        "cores": CORES,
    }
    script = Path(__file__).with_name("flower_run.py")
    done = subprocess.run(
        [python, str(script), json.dumps(work)], capture_output=True, text=True, check=False, timeout=900
    )
    if done.returncode != 0:
        sys.exit(f"Flower's run ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    ends = json.loads(done.stdout.splitlines()[-1])["ends"]
    return [later - earlier for earlier, later in itertools.pairwise(ends)]


def copy_bandwidth() -> float:
    """Bytes read and written per second by every core copying at once, the best of five."""
    size = 32 << 20  # values per core, more than the caches hold
    pairs = [(np.ones(size, np.float32), np.empty(size, np.float32)) for _ in range(CORES)]
    best = float("inf")
    with ThreadPoolExecutor(CORES) as pool:
        for _ in range(6):
            began = time.perf_counter()
            list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs))
            best = min(best, time.perf_counter() - began)
    return CORES * 2 * 4 * size / best


def _rows(silo: int) -> FeatureTable:
    random = np.random.default_rng(silo)
    x = random.standard_normal((ROWS[silo], RUN.head.inputs), dtype=np.float32)
    return FeatureTable(x, random.integers(0, RUN.head.outputs, ROWS[silo]))
