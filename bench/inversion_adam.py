"""Clips out of updates of softmax regression by local Adam: by clips of the silo, and by clips of one class.

    python -m bench.inversion_adam --features FILE.npz

Softmax regression on standardised rows from zeros, four silos, local Adam in shuffled batches, eight rounds
(``experiments/inversion/adam_rounds.py``). Features, split, figures and words as in ``bench.inversion_gradients``; the
attack looks for 48 of a clip's features, which do not depend on each other once the probabilities are known, and the
figures are of these. The attacker knows labels, shuffles and the probabilities of every step; five seeds.

``clips``: a silo of so many clips, of which the attacker knows none. ``class``: a silo of 256 clips, all of which the
attacker knows, and so many of one more class, which are looked for: as much as anyone could know.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from flamest.agent.egress.policy import DEFAULT_CLIP_NORM, DEFAULT_NOISE
from flamest.agent.training.private import UNPROTECTED, Protection
from flamest.experiments.inversion.adam_rounds import federated_adam, unrolled
from flamest.experiments.inversion.gradients import with_ones
from flamest.fedproto.records import TrainSettings

from .feature_sets import FeatureSet, from_npz, miniworld
from .inversion_gradients import PARTS, SEEDS, SILO, Target, summary

SETTINGS = TrainSettings(epochs=5, batch_size=128, learning_rate=1e-3, learning_rate_decay=0.95)
ROUNDS, FEATURES, ITERATIONS = 8, 48, 80
PROTECTIONS = {"off": UNPROTECTED, "clip": Protection("clip", DEFAULT_CLIP_NORM, DEFAULT_NOISE)}
CASES = [
    *(("class", clips, "off") for clips in (1, 5, 10, 20, 40)),
    *(("class", clips, "clip") for clips in (1, 10, 20)),
    *(("clips", clips, "off") for clips in (16, 64, 256)),
    ("class", 2, "off"),
    ("clips", 64, "clip"),
]


def attacked(features: FeatureSet, seed: int, kind: str, clips: int, privacy: str) -> dict[str, Any]:
    of_class = kind == "class"
    target = Target(
        features, seed, SILO if of_class else clips, (seed % len(features.labels), clips) if of_class else None
    )
    silos = [(target.z[rows], target.y[rows]) for rows in (target.silo, *target.others)]
    seen, last = federated_adam(silos, target.classes, ROUNDS, SETTINGS, PROTECTIONS[privacy], target.random)
    answers = (with_ones(target.z[target.test]) @ last.T).argmax(axis=1)
    unknown = np.isin(np.arange(len(target.silo)), target.looked_at)[:, None]
    start = np.where(unknown, target.guess, target.clips)
    chosen = np.sort(target.random.permutation(target.z.shape[1])[:FEATURES])
    found = unrolled(seen, start, chosen, ITERATIONS, target.looked_at).astype(np.float64)
    target.keep(chosen)
    return {
        "accuracy": float((answers == target.y[target.test]).mean()),
        "attack": target.figures(found),
        "member": target.member(found) if of_class else 0.5,
        "guess": target.figures(target.guess),
        "class_mean": target.figures(target.exact),
    }


def measure(features: FeatureSet) -> list[dict[str, Any]]:
    """Measure every case that ``PARTS`` does not have yet."""
    rows = []
    for kind, clips, privacy in CASES:
        part = PARTS / f"{features.name}-adam-{kind}-{clips}-{privacy}.json"
        if not part.is_file():
            found = [attacked(features, seed, kind, clips, privacy) for seed in range(SEEDS)]
            case = {"features": features.name, "case": kind, "clips": clips, "privacy": privacy}
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps({**case, **summary(found)}))
            print(part.read_text(), flush=True)
        rows.append(json.loads(part.read_text()))
    return rows


def main() -> None:
    import torch

    from .record import store_result

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True, help=".npz with x [N, D], y [N] and group [N]")
    parser.add_argument("--only", choices=("miniworld", "ucf101"), help="Measure these and store nothing.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    sets = {"miniworld": miniworld, "ucf101": lambda: from_npz(given.features, "ucf101")}
    rows = [row for name, make in sets.items() if given.only in (None, name) for row in measure(make())]
    if given.only is None:
        figures = {"rounds": ROUNDS, "features": FEATURES, "iterations": ITERATIONS, "silo": SILO, "rows": rows}
        print(f"stored in {store_result('inversion_adam', figures)}")


if __name__ == "__main__":
    main()
