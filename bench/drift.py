"""Drift: how often new clips that are like those trained on raise an alarm, and from which change on others do.

Each trial splits the groups of a data set at random: half of them are trained on, 12, 24 or 48 of the others are new.
Counted is the share of trials with a p-value of at most 5, 1 and 0.5 %, the level of the first look. The changes: every
new embedding moved in one random direction, by so many times the mean distance of an embedding from its class's mean;
new clips of half the classes alone; a quarter of the classes not trained on.

    python -m bench.drift --features ucf101_14classes_vgg16.npz
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flamest.agent.two_samples import compare_clips

from .feature_sets import FeatureSet, Rows, from_npz, miniworld
from .record import store_result

NEW_GROUPS = (12, 24, 48)
PERMUTATIONS = 1999
LEVELS = (0.05, 0.01, 0.005)
SHIFTS = (0.1, 0.2, 0.4, 0.8)
Change = Callable[[np.random.Generator, FeatureSet, Rows, Rows], tuple[Rows, Rows, Any]]


def unchanged(random: np.random.Generator, features: FeatureSet, old: Rows, new: Rows) -> tuple[Rows, Rows, Any]:
    """Return old rows, new rows, and the embeddings of the new ones: as they are."""
    return old, new, features.table.x[new]


def shifted(times: float) -> Change:
    """Return a change that moves every new embedding in one direction, drawn again for each trial."""

    def change(random: np.random.Generator, features: FeatureSet, old: Rows, new: Rows) -> tuple[Rows, Rows, Any]:
        x, y = features.table.x, features.table.y
        classes, numbers = np.unique(y[old], return_inverse=True)
        means = np.stack([x[old][numbers == number].mean(axis=0) for number in range(len(classes))])
        spread = float(np.linalg.norm(x[old] - means[numbers], axis=1).mean())
        direction = random.normal(size=x.shape[1])
        return old, new, x[new] + times * spread * direction / np.linalg.norm(direction)

    return change


def half_of_the_classes(
    random: np.random.Generator, features: FeatureSet, old: Rows, new: Rows
) -> tuple[Rows, Rows, Any]:
    """Keep the new clips of half the classes alone."""
    chosen = random.permutation(len(features.labels))[: len(features.labels) // 2]
    kept = new[np.isin(features.table.y[new], chosen)]
    return old, kept, features.table.x[kept]


def new_classes(random: np.random.Generator, features: FeatureSet, old: Rows, new: Rows) -> tuple[Rows, Rows, Any]:
    """Take a quarter of the classes from what was trained on."""
    left_out = random.permutation(len(features.labels))[: len(features.labels) // 4]
    return old[~np.isin(features.table.y[old], left_out)], new, features.table.x[new]


CHANGES: dict[str, Change] = {
    "none": unchanged,
    **{f"shifted by {times}": shifted(times) for times in SHIFTS},
    "half of the classes": half_of_the_classes,
    "a quarter of the classes is new": new_classes,
}


def p_values(features: FeatureSet, groups: int, change: Change, trials: int) -> list[float]:
    """Return the p-value of each trial with so many new groups."""
    every, found = np.array(features.groups), []
    names = np.unique(every)
    for trial in range(trials):
        random = np.random.default_rng([groups, trial])
        order = random.permutation(names)
        first = np.flatnonzero(np.isin(every, order[: len(names) // 2]))
        second = np.flatnonzero(np.isin(every, order[len(names) // 2 :][:groups]))
        old, new, x = change(random, features, first, second)
        sides = (every[old].tolist(), every[new].tolist())
        found.append(compare_clips(features.table.x[old], x, sides, seed=trial, permutations=PERMUTATIONS).p)
    return found


def shares(found: list[float]) -> dict[str, float]:
    """Return the share of p-values at most each level."""
    return {f"p <= {level}": float(np.mean(np.array(found) <= level)) for level in LEVELS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", type=Path, required=True, help="an .npz with x, y and group")
    parser.add_argument("--trials", type=int, default=200, help="without a change; with one a fifth of them")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    for features in (from_npz(options.features), miniworld()):
        for groups in NEW_GROUPS:
            for name, change in CHANGES.items():
                trials = options.trials if name == "none" else options.trials // 5
                found = shares(p_values(features, groups, change, trials))
                figures.setdefault(features.name, {}).setdefault(name, {})[f"{groups} new groups"] = found
                print(features.name, groups, name, found, flush=True)
    store_result("drift", {"trials": options.trials, "permutations": PERMUTATIONS, "shares": figures})


if __name__ == "__main__":
    main()
