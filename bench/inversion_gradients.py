"""Clips out of the exact gradients of a whole run: by clips of the silo, by clips of a class, and with noise.

    python -m bench.inversion_gradients --features FILE.npz [--case NAME]

Silos send exact gradients of softmax regression on standardised rows (``experiments/inversion/gradients.py``); four of
them, 80 rounds, FedAdam. Features: UCF101 of an .npz file, the mini-world of ``bench.feature_sets``. Test groups
(a quarter) measure the accuracy; a quarter of the other rows are the attacker's own, and a silo's too. Five seeds.

``clips``: a silo of so many clips of all classes. ``class``: a silo of 256, and so many of one more class: figures
are of these alone. ``search``: without knowing the probabilities, one seed.

Cosines are of standardised rows after the attacker's mean row was taken off, so that what all clips share counts for
nothing. A clip counts as recovered where an estimate is within 5 % of it. Beside the attack: the guess, the mean of the
class's clips that the attacker has, and the exact mean of the class's clips at the silo, which is no single clip. The
attack has found single clips where its median cosine exceeds the exact class mean's by more than 0.02; a class is too
small where even its exact mean is nearer to a clip than the guess by more than 0.1. ``member``: the chance that the
estimates' mean of the class is more like a clip of the silo than like another clip of the class.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from flamest.experiments.inversion.gradients import (
    Array,
    Rounds,
    federated_gradients,
    search,
    solve,
    standardised,
    with_ones,
)

from .feature_sets import FeatureSet, from_npz, miniworld

SEEDS, ROUNDS, SILO = 5, 80, 256
COUNTS, CLASS_COUNTS = (16, 64, 256, 512), (1, 2, 5, 10, 20, 40)
NOISES = (0.0, 0.3, 1.0, 2.0)
SEARCHED, EVALUATIONS = 64, 400
PARTS = Path(__file__).parents[1] / "build" / "bench" / "inversion_gradients"


class Target:
    """One seed's silos, the attacker's clips, and the test rows."""

    def __init__(self, features: FeatureSet, seed: int, clips: int, rare: tuple[int, int] | None = None) -> None:
        """``rare``: a class, and how many clips of it the first silo has beside ``clips`` others."""
        self.random = np.random.default_rng(seed)
        self.z, self.y, self.classes = standardised(features.table.x), features.table.y, len(features.labels)
        train, self.test = features.split(0.25, seed)
        train = self.random.permutation(train)
        self.own, rest = train[: len(train) // 4], train[len(train) // 4 :]
        if rare is None:
            self.silo, others = rest[:clips], rest[clips:]
            self.looked_at = np.arange(len(self.silo))
        else:
            chosen, number = rare
            common, of_class = rest[self.y[rest] != chosen], rest[self.y[rest] == chosen]
            self.silo = np.concatenate([of_class[:number], common[:clips]])
            self.looked_at, others = np.arange(number), np.concatenate([of_class[number:], common[clips:]])
        self.others = np.array_split(self.random.permutation(np.concatenate([others, self.own])), 3)
        self.mean = self.z[self.own].mean(axis=0, dtype=np.float64)
        self.clips, self.labels = self.z[self.silo].astype(np.float64), self.y[self.silo]
        self.guess = self._class_means(self.own)[self.labels]
        self.exact = self._class_means(self.silo)[self.labels]

    def _class_means(self, rows: Array) -> Array:
        means = [self.z[rows[self.y[rows] == c]] for c in range(self.classes)]
        return np.stack([each.mean(axis=0, dtype=np.float64) if len(each) else self.mean for each in means])

    def keep(self, features: Array) -> None:
        """Look at some features only from here on."""
        self.z, self.mean, self.clips = self.z[:, features], self.mean[features], self.clips[:, features]
        self.guess, self.exact = self.guess[:, features], self.exact[:, features]

    def rounds(self, noise: float) -> Rounds:
        silos = [(self.z[rows], self.y[rows]) for rows in (self.silo, *self.others)]
        return federated_gradients(silos, self.classes, ROUNDS, noise, self.random)

    def accuracy(self, seen: Rounds) -> float:
        answers = (with_ones(self.z[self.test]) @ seen.last.T).argmax(axis=1)
        return float((answers == self.y[self.test]).mean())

    def member(self, found: Array) -> float:
        """Return the chance that the mean estimate is more like a clip of the silo than like one it has not seen."""
        chosen = self.labels[self.looked_at[0]]
        unseen = self.test[self.y[self.test] == chosen]
        mean = found[self.looked_at].mean(axis=0) - self.mean
        inside, outside = ((rows - self.mean) for rows in (self.clips[self.looked_at], self.z[unseen]))
        likeness = [rows @ mean / np.linalg.norm(rows, axis=1) for rows in (inside, outside)]
        return float((likeness[0][:, None] > likeness[1]).mean())

    def figures(self, found: Array) -> dict[str, float]:
        clips, estimates = self.clips[self.looked_at], found[self.looked_at]
        errors = np.linalg.norm(estimates - clips, axis=1) / np.linalg.norm(clips, axis=1)
        away, moved = clips - self.mean, estimates - self.mean
        sizes = np.linalg.norm(away, axis=1) * np.linalg.norm(moved, axis=1)
        cosines = (away * moved).sum(axis=1) / np.maximum(sizes, 1e-300)
        return {
            "recovered": int((errors < 0.05).sum()),
            "least_error": float(errors.min()),
            "cosine": float(np.median(cosines)),
            "best_cosine": float(cosines.max()),
        }


def attacked(target: Target, noise: float) -> dict[str, Any]:
    seen = target.rounds(noise)
    estimates = solve(seen, target.clips, target.labels, target.guess)
    best = max(estimates, key=lambda found: target.figures(found)["cosine"])
    return {
        "accuracy": target.accuracy(seen),
        "attack": target.figures(best),
        "member": target.member(best),
        **_beside(target),
    }


def searched(target: Target, noise: float) -> dict[str, Any]:
    seen = target.rounds(noise)
    start = target.guess + 0.3 * (target.z[target.random.choice(target.own, len(target.silo))] - target.guess)
    return {"attack": target.figures(search(seen, target.labels, start, EVALUATIONS)), **_beside(target)}


def _beside(target: Target) -> dict[str, Any]:
    return {"guess": target.figures(target.guess), "class_mean": target.figures(target.exact)}


def cases(features: FeatureSet) -> list[tuple[str, dict[str, Any]]]:
    made: list[tuple[str, dict[str, Any]]] = []
    for noise in NOISES:
        counts = COUNTS if noise in (0.0, 1.0) else (SILO,)
        made += [("clips", {"clips": count, "noise": noise}) for count in counts]
    made += [("class", {"clips": count, "noise": 0.0}) for count in (1, 10)]
    made += [("class", {"clips": count, "noise": 1.0}) for count in CLASS_COUNTS]
    if features.name == "miniworld":
        made += [("search", {"clips": SEARCHED, "noise": noise}) for noise in (0.0, 1.0)]
    return made


def one(features: FeatureSet, kind: str, given: dict[str, Any], seed: int) -> dict[str, Any]:
    if kind == "class":
        return attacked(
            Target(features, seed, SILO, (seed % len(features.labels), int(given["clips"]))), given["noise"]
        )
    target = Target(features, seed, int(given["clips"]))
    return searched(target, given["noise"]) if kind == "search" else attacked(target, given["noise"])


def measure(features: FeatureSet) -> list[dict[str, Any]]:
    """Measure every case that ``PARTS`` does not have yet."""
    rows = []
    for kind, given in cases(features):
        name = f"{features.name}-{kind}-{given['clips']}-{given['noise']:g}"
        part = PARTS / f"{name}.json"
        if not part.is_file():
            seeds = range(1 if kind == "search" else SEEDS)
            found = [one(features, kind, given, seed) for seed in seeds]
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps({"features": features.name, "case": kind, **given, **summary(found)}))
            print(part.read_text(), flush=True)
        rows.append(json.loads(part.read_text()))
    return rows


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means over seeds; of recovered clips the sum, of the least error the least."""
    made: dict[str, Any] = {"seeds": len(found)}
    for name in ("attack", "guess", "class_mean"):
        each = [one[name] for one in found]
        made[name] = {
            "recovered": sum(one["recovered"] for one in each),
            "least_error": round(min(one["least_error"] for one in each), 4),
            "cosine": round(float(np.mean([one["cosine"] for one in each])), 4),
            "best_cosine": round(float(np.mean([one["best_cosine"] for one in each])), 4),
        }
    for name in ("accuracy", "member"):
        if name in found[0]:
            made[name] = round(float(np.mean([one[name] for one in found])), 4)
    return made


def main() -> None:
    from .record import store_result

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True, help=".npz with x [N, D], y [N] and group [N]")
    given = parser.parse_args()
    rows = [row for features in (miniworld(), from_npz(given.features, "ucf101")) for row in measure(features)]
    print(f"stored in {store_result('inversion_gradients', {'rounds': ROUNDS, 'silo': SILO, 'rows': rows})}")


if __name__ == "__main__":
    main()
