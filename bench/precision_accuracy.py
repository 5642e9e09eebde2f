"""Accuracy cost of a lower precision: federated training and test on two stores of the same clips.

    python -m bench.precision_accuracy --fp32 STORE --other STORE [--rounds 40] [--seeds 5] [--test-share 0.75]

The stores are made by ``flamest-agent extract`` with an fp32 bundle and one of lower precision. Four
silos hold whole groups and a share of the groups is held out for the test; the paper's head and training.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from flamest.agent.extraction.store import FeatureStore, StoredFeatures
from flamest.agent.training.dataset import feature_table
from flamest.experiments.simulation import SimulatedSilo, simulate
from flamest.fedproto.head import HeadSpec
from flamest.fedproto.records import RunSettings
from flamest.runtime.similarity import row_cosines

from .record import store_result

SILOS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fp32", type=Path, required=True)
    parser.add_argument("--other", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--test-share",
        type=float,
        default=0.75,
        help="share of the groups held out; by default the mini-world experiments' own",
    )
    parser.add_argument("--name", default="int8", help="name of the result, bench/results/precision_accuracy_NAME.json")
    arguments = parser.parse_args()
    figures = measure(
        _read(arguments.fp32), _read(arguments.other), arguments.rounds, arguments.seeds, arguments.test_share
    )
    print(json.dumps(figures, indent=2))
    print(f"stored in {store_result(f'precision_accuracy_{arguments.name}', figures)}")


def _read(path: Path) -> StoredFeatures:
    with FeatureStore.open(path, read_only=True) as store:
        return store.read()


def measure(fp32: StoredFeatures, other: StoredFeatures, rounds: int, seeds: int, test_share: float) -> dict[str, Any]:
    if fp32.clips != other.clips or fp32.fingerprint != other.fingerprint:
        raise SystemExit("the stores hold different clips or features with different fingerprints")
    rows: dict[str, list[float]] = {fp32.precision: [], other.precision: []}
    for seed in range(seeds):
        for stored in (fp32, other):
            rows[stored.precision].append(_accuracy(stored, rounds, seed, test_share))
    lost = [100 * (a - b) for a, b in zip(rows[fp32.precision], rows[other.precision], strict=True)]
    width = fp32.vlm_width
    parts = {"vlm": (slice(None, width)), "cnn": slice(width, None)} if width else {"all": slice(None)}
    return {
        "clips": len(fp32.clips),
        "test_share": test_share,
        "rounds": rounds,
        "accuracy": rows,
        "mean_accuracy": {precision: statistics.mean(each) for precision, each in rows.items()},
        "points_lost": lost,
        "mean_points_lost": statistics.mean(lost),
        "standard_error": statistics.stdev(lost) / len(lost) ** 0.5 if len(lost) > 1 else None,
        "captions_equal": sum(a == b for a, b in zip(fp32.captions, other.captions, strict=True)),
        "smallest_cosine": {
            name: float(row_cosines(other.x[:, part], fp32.x[:, part]).min())
            for name, part in parts.items()
            if fp32.x[:, part].size
        },
    }


def _accuracy(stored: StoredFeatures, rounds: int, seed: int, test_share: float) -> float:
    labels = sorted({label for label in stored.labels if label is not None})
    table = feature_table(stored.x, [label or "" for label in stored.labels], labels)
    groups = np.array(stored.groups)
    order = np.random.default_rng(seed).permutation(sorted(set(stored.groups)))
    count = max(1, round(len(order) * test_share))
    held_out, kept = order[:count], order[count:]
    silos = [
        SimulatedSilo(f"silo-{number}", table.rows(np.flatnonzero(np.isin(groups, kept[number::SILOS]))))
        for number in range(SILOS)
    ]
    test = table.rows(np.flatnonzero(np.isin(groups, held_out)))
    run = RunSettings(
        run="precision",
        labels=tuple(labels),
        head=HeadSpec(inputs=stored.x.shape[1], outputs=len(labels)),
        rounds=rounds,
        min_silos=SILOS,
        deadline_s=600.0,
        fingerprint=stored.fingerprint,
        seed=seed,
    )
    last = simulate(run, silos, test=test).rounds[-1]
    return last.correct / last.count


if __name__ == "__main__":
    main()
