"""``python bench/learning_rates.py FEATURES.npz``: accuracy by learning rate, of a federation on given features.

FedAvg of four silos (beta 0.6) for 20 rounds, all else at its default, with the Python API. Prints one JSON object: the
accuracy after the last round by learning rate and seed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import flamest as fl

RATES, SEEDS = (0.01, 0.001, 0.0003), (0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("features", type=Path)
    options = parser.parse_args()
    features = fl.load(options.features)
    measured: dict[str, dict[str, float]] = {str(rate): {} for rate in RATES}
    for seed in SEEDS:
        silos, test = fl.split(features, silos=4, beta=0.6, seed=seed)
        for rate in RATES:
            run = fl.simulate(silos, test=test, rounds=20, learning_rate=rate, seed=seed)
            measured[str(rate)][str(seed)] = run.accuracy
    print(json.dumps({"version": fl.__version__, "clips": len(features), "accuracy": measured}))


if __name__ == "__main__":
    main()
