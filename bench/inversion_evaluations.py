"""A held-out clip out of a silo's reports of evaluations: by mode and number of reports, with and without the rules.

    python -m bench.inversion_evaluations [--features FILE.npz]

Every report is made by the silo's own code (``reported_evaluation``), on the clips that its own code holds out. Made-up
clips as in ``bench.inversion``, all of one class, which suits the attacker best; with ``--features`` also the rows of a
file with the arrays x, y and group: a third of the groups are the attacker's own clips, of the others six classes are
the silo's, about the smallest silo whose evaluations are reported at all. Five seeds.

The budgets are the reports of a run of 80 rounds, of a day, and of 30 days. A clip counts as recovered when the
estimate is within 5 % of it. The attack is no better than guessing when the estimate's cosine with the clip that it
isolated (with the nearest one, when it isolated none) exceeds the mean clip's by at most 0.02, in the mean of the
seeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from flamest.agent.egress.policy import DEFAULT_EVALUATIONS, MONTHLY_EVALUATIONS, Policy
from flamest.agent.egress.reported_evaluation import loss_cap, loss_step, reported_evaluation
from flamest.agent.extraction.store import StoredFeatures
from flamest.agent.training.dataset import SiloData, silo_data
from flamest.agent.training.trainer import HeadTrainer
from flamest.experiments.inversion.belief import Prior
from flamest.experiments.inversion.evaluations import HIDDEN, Channel, EvaluationAttack
from flamest.experiments.inversion.updates import nearest
from flamest.fedproto.head import HeadSpec

from .inversion import synthetic

SEEDS, OTHERS = 5, 1000
RUN, WITHOUT_END = 81, 6000  # reports: 80 rounds and the final model; more than dimensions
CLIPS, IN_GROUP, CLASSES = 330, 5, 6
BETTER = 0.02  # of cosine
MODES = {
    "off": Policy(),
    "clip": Policy(privacy="clip"),
    "record-dp": Policy(privacy="record-dp"),
    "record-dp, report_evaluation": Policy(privacy="record-dp", report_evaluation=True),
}
EXACT = Policy(report_loss="exact", report_loss_override=True, evaluation_noise=0.0)
CASES = [
    *((mode, policy, reports) for mode, policy in MODES.items() for reports in (RUN, DEFAULT_EVALUATIONS)),
    *((mode, policy, MONTHLY_EVALUATIONS) for mode, policy in MODES.items()),
    ("rounded, no noise", Policy(evaluation_noise=0.0), RUN),
    ("rounded, no noise", Policy(evaluation_noise=0.0), MONTHLY_EVALUATIONS),
    ("no rules", EXACT, WITHOUT_END),
]


class Target:
    """The clips of a silo, and what the attacker has: clips of the same kind."""

    def __init__(self, name: str, prior: Prior, stored: list[StoredFeatures]) -> None:
        self.name, self.prior, self.stored = name, prior, stored

    def data(self, seed: int, policy: Policy) -> SiloData:
        stored, independent = self.stored[seed], policy.privacy == "record-dp"
        labels = sorted({label for label in stored.labels if label})
        return silo_data(stored, labels, hold_out=policy.hold_out, seed=seed, independent=independent)


def made_up() -> Target:
    stored = []
    for seed in range(SEEDS):
        groups = tuple(f"g{row // IN_GROUP}" for row in range(CLIPS))
        stored.append(features(synthetic(CLIPS, seed).x, ("class",) * CLIPS, groups))
    return Target("made-up", Prior.of(synthetic(2000, OTHERS).x, rotated=False), stored)


def from_file(path: Path) -> Target:
    with np.load(path) as arrays:
        x, y, group = arrays["x"].astype(np.float32), arrays["y"], arrays["group"]
    names, numbers = np.unique(group, return_inverse=True)
    own = numbers % 3 == 0
    stored = []
    for seed in range(SEEDS):
        chosen = np.random.default_rng(seed).permutation(np.unique(y))[:CLASSES]
        rows = np.flatnonzero(~own & np.isin(y, chosen))
        groups = tuple(f"{y[row]} {names[numbers[row]]}" for row in rows)
        stored.append(features(x[rows], tuple(map(str, y[rows])), groups))
    return Target("from a file", Prior.of(x[own], rotated=True), stored)


def features(x: np.ndarray, labels: tuple[str, ...], groups: tuple[str, ...]) -> StoredFeatures:
    count = len(x)
    hashes = tuple(f"{row:064x}" for row in range(count))
    return StoredFeatures(x=x, labels=labels, groups=groups, clips=hashes, captions=("",) * count, paths=hashes,
                          fingerprint="f", precision="fp32", vlm_width=0)  # fmt: skip


def attacked(target: Target, seed: int, policy: Policy, reports: int) -> dict[str, Any]:
    data = target.data(seed, policy)
    clips, classes = len(data.held_out), int(data.train.y.max()) + 2  # one more class, which no clip has
    spec = HeadSpec(data.train.x.shape[1], classes, HIDDEN)
    trainer, secret = HeadTrainer(spec, threads=1), f"secret {seed}".encode()
    noise, cap = policy.evaluation_noise, loss_cap(classes)
    channel = Channel(clips, loss_step(classes, clips), cap, noise * cap / max(clips, 1), noise)
    if policy.report_loss == "exact":
        channel = Channel(clips)
    attack = EvaluationAttack(
        spec, channel, target.prior, lambda params: reported_evaluation(trainer, params, data, policy, secret), reports,
        along=seed if target.name == "made-up" else seed % 3,
    )  # fmt: skip
    stolen = attack.run()
    found = nearest(stolen.estimate[None], data.held_out.x)
    guess = nearest(target.prior.mean[None], data.held_out.x)
    place, guessed = int(found.cosines.argmax()), int(guess.cosines.argmax())
    if stolen.gate is not None:
        above = np.flatnonzero(data.held_out.x @ stolen.gate.direction > stolen.gate.threshold)
        place, guessed = (int(above[0]),) * 2 if len(above) == 1 else (place, guessed)
    return {
        "asked": stolen.asked,
        "held_out": clips,
        "isolated": stolen.gate is not None and place == guessed,
        "error": float(found.errors.min()),
        "cosine": float(found.cosines[place]),
        "mean_clip_cosine": float(guess.cosines[guessed]),
    }


def measure(target: Target) -> list[dict[str, Any]]:
    rows = []
    for mode, policy, reports in CASES:
        found = [attacked(target, seed, policy, reports) for seed in range(SEEDS)]
        gains = [one["cosine"] - one["mean_clip_cosine"] for one in found]
        rows.append(
            {
                "clips": target.name,
                "policy": mode,
                "reports": reports,
                "received": max(one["asked"] for one in found),
                "isolated": sum(one["isolated"] for one in found),
                "recovered": sum(one["error"] < 0.05 for one in found),
                "least_error": round(min(one["error"] for one in found), 4),
                "cosine": round(float(np.mean([one["cosine"] for one in found])), 4),
                "mean_clip_cosine": round(float(np.mean([one["mean_clip_cosine"] for one in found])), 4),
                "gain": round(float(np.mean(gains)), 4),
                "largest_gain": round(max(gains), 4),
                "no_better_than_guessing": bool(np.mean(gains) <= BETTER),
                "held_out": [one["held_out"] for one in found],
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    from .record import store_result

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, help=".npz with x [N, D], y [N] and group [N]")
    given = parser.parse_args()
    targets = [made_up(), *([from_file(given.features)] if given.features else [])]
    rows = [row for target in targets for row in measure(target)]
    figures = {"seeds": SEEDS, "noise_clips": Policy().evaluation_noise, "better": BETTER, "rows": rows}
    print(f"stored in {store_result('inversion_evaluations', figures)}")


if __name__ == "__main__":
    main()
