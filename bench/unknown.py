"""Unknown: does a model know that it does not know, and do its probabilities and its coverage hold?

    python -m bench.unknown UCF101.npz [--folder build/bench] [--seeds 5]

A part of the classes is left out of training: 4 of UCF101's 14, 5 of the mini-world's 25, drawn by the seed. Of the
others' training groups a fifth are held out, whole; the rest is split over four silos (IID, Dirichlet 0.6), and the
default recipe trains. The final model is calibrated as a silo does it with all held-out clips (``own``), and by the
silos' counts (``counts``: exact, ``noised``: as they leave by the default policy). Judged on test groups: the area
under the ROC curve of the score of known, of known against unknown clips; the calibration error of known clips, of all
and of each silo's share of classes; the share of known clips that are answered, 95 % being asked for.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from flamest.agent.egress.policy import Policy
from flamest.agent.egress.reported_calibration import reported_calibration
from flamest.agent.evaluate import calibration_error
from flamest.agent.training.dataset import FeatureTable, SiloData
from flamest.agent.training.holdout import hold_out_groups
from flamest.agent.training.trainer import HeadTrainer
from flamest.coordinator.storage.calibrations import weigh
from flamest.experiments.simulation import SimulatedSilo, simulate
from flamest.fedproto.calibration import Calibration, is_known, known_scores, make_calibration, probabilities
from flamest.fedproto.calibration_counts import calibration_of, temperature_of
from flamest.fedproto.head import Params

from .feature_sets import FOLDER, FeatureSet, from_npz, miniworld
from .recipes import SPLITS, STUDENT, UCF_TEST, UCF_TRAIN, Trial, run_of, settings_of
from .record import store_result

HELD_OUT = 0.2  # of the training groups
DRAWS = 1000  # of a calibrated model's error
Rows = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float64]


def auroc(known: Logits, unknown: Logits) -> float:
    """Return the chance that a known clip's score is above an unknown one's; ties count half."""
    ordered = np.sort(unknown)
    below = np.searchsorted(ordered, known, side="left") + np.searchsorted(ordered, known, side="right")
    return float(below.mean() / 2 / len(unknown))


def relabelled(every: FeatureSet, rows: Rows, kept: list[int]) -> FeatureTable:
    """Return rows of the kept classes, numbered by their place among these."""
    of_kept = rows[np.isin(every.table.y[rows], kept)]
    return FeatureTable(every.table.x[of_kept], np.searchsorted(kept, every.table.y[of_kept]))


def judged(
    calibration: Calibration | None, known: Logits, y: Rows, unknown: Logits, mixes: list[Rows]
) -> dict[str, Any]:
    """Return the figures on test clips; without a calibration those of the bare model. ``mixes``: silos' test rows."""
    probability = probabilities(known, calibration)
    most, correct = probability.max(axis=1), probability.argmax(axis=1) == y
    found = {
        "auroc": auroc(known_scores(probability), known_scores(probabilities(unknown, calibration))),
        "error": calibration_error(most, correct),
        "covered": float(is_known(probability, calibration).mean()),
        "unknown_refused": float(1 - is_known(probabilities(unknown, calibration), calibration).mean()),
        "clips": len(y),
    }
    random = np.random.default_rng(0)
    within = []
    for rows in mixes:
        drawn = random.random((DRAWS, len(rows))) < most[rows]
        band = np.quantile([calibration_error(most[rows], one) for one in drawn], 0.95)
        within.append(bool(calibration_error(most[rows], correct[rows]) <= band))
    return found | {"silos_within_band": sum(within), "silos": len(within)}


def by_counts(trainer: HeadTrainer, params: Params, silos: list[SiloData], noise: bool) -> Calibration | None:
    """Return the calibration by the silos' counts, in the two steps of a run."""
    policy = Policy(min_samples=1, min_samples_override=True, evaluation_noise=3.0 if noise else 0.0)

    def ask(temperature: float) -> Any:
        return weigh(
            {
                str(number): reported_calibration(trainer, params, silo, policy, temperature, str(number).encode())
                for number, silo in enumerate(silos)
            }
        )

    temperature = temperature_of(ask(0.0))
    if temperature is None:
        return None
    return calibration_of(temperature, ask(temperature), trainer.spec.outputs)


def trial(every: FeatureSet, train: Rows, test: Rows, left_out: int, split: str, seed: int) -> dict[str, Any]:
    """Return the figures of one seed, by calibration."""
    random = np.random.default_rng(seed)
    classes = len(every.labels)
    kept = sorted(random.permutation(classes)[left_out:].tolist())
    train = train[np.isin(every.table.y[train], kept)]
    groups = [every.groups[row] for row in train]
    used, held = hold_out_groups(groups, HELD_OUT, seed, [every.labels[number] for number in every.table.y[train]])
    known_test = test[np.isin(every.table.y[test], kept)]
    tables = [relabelled(every, rows, kept) for rows in (train[used], train[held], known_test)]
    fitted, held_out, tested = tables
    labels = tuple(every.labels[number] for number in kept)
    of = Trial(every.name, fitted, tested, labels, (128, 256) if every.name == "miniworld" else (), seed)
    chosen = settings_of(of, "default")
    parts = [fitted.rows(rows) for rows in SPLITS[split](fitted, seed).silos]
    made = simulate(run_of(of, chosen), [SimulatedSilo(f"silo-{n}", part) for n, part in enumerate(parts)], test=tested)
    trainer = HeadTrainer(chosen.head, threads=1)
    share = np.stack([np.bincount(part.y, minlength=len(kept)) for part in parts]).astype(float)
    share /= np.maximum(share.sum(axis=0), 1)
    owner = np.array([random.choice(len(parts), p=share[:, label]) for label in held_out.y])
    silos = [SiloData(part, held_out.rows(np.flatnonzero(owner == n)), 0) for n, part in enumerate(parts)]
    of_test = np.array([random.choice(len(parts), p=share[:, label]) for label in tested.y])
    mixes = [rows for n in range(len(parts)) if len(rows := np.flatnonzero(of_test == n)) >= 20]
    logits = trainer.logits(made.params, tested.x).astype(np.float64)
    others = test[~np.isin(every.table.y[test], kept)]
    unknown = trainer.logits(made.params, every.table.x[others]).astype(np.float64)
    own = make_calibration(trainer.logits(made.params, held_out.x), held_out.y)
    calibrations = {
        "none": None,
        "own": own,
        "counts": by_counts(trainer, made.params, silos, noise=False),
        "noised": by_counts(trainer, made.params, silos, noise=True),
    }
    found = {name: judged(one, logits, tested.y, unknown, mixes) for name, one in calibrations.items()}
    return {"held_out": len(held_out), **found}


def summary(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means with their 95 % intervals over seeds, by calibration."""
    table: dict[str, Any] = {}
    for name in ("none", "own", "counts", "noised"):
        for figure in ("auroc", "error", "covered", "unknown_refused"):
            values = [each[name][figure] for each in trials]
            half = STUDENT[len(values)] * statistics.stdev(values) / len(values) ** 0.5
            table.setdefault(name, {})[figure] = {"mean": statistics.mean(values), "interval": half}
        within, silos = (sum(each[name][key] for each in trials) for key in ("silos_within_band", "silos"))
        table[name]["silos_within_band"] = f"{within} of {silos}"
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ucf", type=Path)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--seeds", type=int, choices=STUDENT, default=5)
    options = parser.parse_args()
    ucf, world = from_npz(options.ucf, "UCF101"), miniworld(options.folder)
    numbers = np.array([int(group.rsplit("/g", 1)[1]) for group in ucf.groups])
    scenes = np.array([int(group[1:]) for group in world.groups])
    sets = (
        (ucf, np.flatnonzero(np.isin(numbers, list(UCF_TRAIN))), np.flatnonzero(np.isin(numbers, list(UCF_TEST))), 4),
        (world, np.flatnonzero(scenes < 100), np.flatnonzero(scenes >= 100), 5),
    )
    figures: dict[str, Any] = {}
    for every, train, test, left_out in sets:
        for split in ("IID", "0.6"):
            found = [trial(every, train, test, left_out, split, seed) for seed in range(options.seeds)]
            figures.setdefault(every.name, {})[split] = {"table": summary(found), "trials": found}
            print(every.name, split, figures[every.name][split]["table"], flush=True)
    store_result("unknown", {"seeds": options.seeds, "figures": figures})


if __name__ == "__main__":
    main()
