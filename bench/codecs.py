"""Accuracy cost of each codec: the same federated run with fp32, fp16, int8 and sparse int8.

    python bench/codecs.py FOLDER --out codecs.json

FOLDER holds one .npz with ``x`` [N, D], ``y`` (label names) and ``group``. Four silos, Dirichlet 0.6, whole groups
held out (a fifth of the clips), 80 rounds of 5 local epochs, FedAvg: the daemons' own codec, training and
aggregation, simulated. Every seed draws its own split, partition and first model, and all codecs share them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from flamest.agent.training.dataset import FeatureTable
from flamest.agent.training.holdout import hold_out_groups
from flamest.experiments.partition import dirichlet
from flamest.experiments.simulation import SimulatedSilo, simulate
from flamest.fedproto.codecs import CODECS, Codec
from flamest.fedproto.head import HeadSpec
from flamest.fedproto.records import RunSettings, Strategy, TrainSettings

SILOS, BETA, HELD_OUT = 4, 0.6, 0.2
NEAR = 0.95  # of the final accuracy; the bytes until then are reported


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--codecs", nargs="+", choices=CODECS, default=list(CODECS))
    parser.add_argument("--rounds", type=int, default=80)
    parser.add_argument("--learning-rate", type=float, default=TrainSettings().learning_rate)
    parser.add_argument(
        "--average-last", type=int, default=0, help="the final model is the mean of this many rounds' models"
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found = sorted(arguments.folder.glob("*.npz"))
    if len(found) != 1:
        sys.exit(f"{arguments.folder}: {len(found)} .npz files, expected one")
    rows: list[dict[str, Any]] = []
    with np.load(found[0], allow_pickle=False) as data:
        x, y, groups = data["x"].astype(np.float32), data["y"], data["group"]
    for seed, codec in itertools.product(range(arguments.seeds), arguments.codecs):
        rows.append(
            one_run(
                x, y, groups, codec, RunOptions(seed, arguments.rounds, arguments.learning_rate, arguments.average_last)
            )
        )
        figures = {"data": found[0].name, "rounds": arguments.rounds, "silos": SILOS, "dirichlet": BETA}
        figures |= {
            "learning_rate": arguments.learning_rate,
            "average_last": arguments.average_last,
            "summary": summary(rows),
            "rows": rows,
        }
        if arguments.out:
            arguments.out.write_text(json.dumps(figures, indent=1) + "\n")
        print(json.dumps(figures["summary"]), flush=True)


@dataclass(frozen=True)
class RunOptions:
    """Settings of a run, apart from data and codec."""

    seed: int
    rounds: int
    learning_rate: float
    average_last: int


def one_run(x: Any, y: Any, groups: Any, codec: Codec, options: RunOptions) -> dict[str, Any]:
    seed = options.seed
    labels = sorted(set(y.tolist()))
    classes = np.searchsorted(labels, y)
    whole = [f"{label}/{group}" for label, group in zip(y, groups, strict=True)]
    train, test = hold_out_groups(whole, HELD_OUT, seed, y.tolist())
    split = dirichlet(classes[train], silos=SILOS, beta=BETA, seed=seed)
    silos = [
        SimulatedSilo(f"silo-{number}", FeatureTable(x[train[part]], classes[train[part]]))
        for number, part in enumerate(split.silos)
    ]
    run = RunSettings(
        run="codecs",
        labels=tuple(labels),
        head=HeadSpec(inputs=x.shape[1], outputs=len(labels)),
        rounds=options.rounds,
        min_silos=SILOS,
        deadline_s=600.0,
        fingerprint="bench",
        seed=seed,
        train=TrainSettings(learning_rate=options.learning_rate),
        strategy=Strategy(average_last=options.average_last),
    )
    return measured(run, codec, silos, FeatureTable(x[test], classes[test]))


def measured(run: RunSettings, codec: Codec, silos: Sequence[SimulatedSilo], test: FeatureTable) -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0))
    made = simulate(msgspec.structs.replace(run, codec=codec), silos, test=test, threads=1, workers=cores)
    curve = [each.correct / each.count for each in made.rounds]
    near = next(number for number, accuracy in enumerate(curve, 1) if accuracy >= NEAR * curve[-1])
    return {
        "seed": run.seed,
        "codec": codec,
        "accuracy": curve[-1],
        "last_ten": statistics.mean(curve[-10:]),
        "best": max(curve),
        "test_clips": len(test),
        "bytes_per_silo_round": made.bytes_per_silo_round,
        "parameters": run.head.parameters,
        "bytes_to_95_percent": near * made.bytes_per_silo_round,
        "rounds_to_95_percent": near,
    }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean over seeds per codec, and points lost against fp32, seed by seed."""
    exact = {row["seed"]: row for row in rows if row["codec"] == "fp32"}
    by_codec = {}
    for codec in CODECS:
        mine = [row for row in rows if row["codec"] == codec]
        if not mine or len(exact) < len(mine):
            continue
        lost = [100 * (exact[row["seed"]]["accuracy"] - row["accuracy"]) for row in mine]
        by_codec[codec] = {
            "accuracy": statistics.mean(row["accuracy"] for row in mine),
            "last_ten": statistics.mean(row["last_ten"] for row in mine),
            "points_lost": statistics.mean(lost),
            "points_lost_each": [round(each, 2) for each in lost],
            "bytes_per_silo_round": round(statistics.mean(row["bytes_per_silo_round"] for row in mine)),
            "bytes_to_95_percent": round(statistics.mean(row["bytes_to_95_percent"] for row in mine)),
        }
    return by_codec


if __name__ == "__main__":
    main()
