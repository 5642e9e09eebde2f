"""Does ``policy.adopt = "auto"`` ever leave a silo with a worse head? Twenty federations of silos unlike each other.

    python -m bench.adoption --features UCF101.npz [--recipe default] [--federations 10] [--folder build/bench]

Ten federations of each set, UCF101's features and the mini-world's, of five silos each (unlike_silos.py). Every silo
chooses by its held-out clips, as after a run; the heads are then judged on test clips that nobody has seen, of the
silo's own classes, camera and words. What is done is kept in the folder, and not repeated.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flamest.agent.training.adoption import Adoption, Answered, answered, candidates, choose_by, own_head
from flamest.agent.training.gain import DOUBT, doubts
from flamest.agent.training.trainer import HeadTrainer
from flamest.experiments.simulation import SimulatedSilo, simulate
from flamest.fedproto.head import Params
from flamest.fedproto.recipes import RECIPES, Recipe, recipe_settings
from flamest.fedproto.records import RunSettings
from scipy.stats import beta, t

from .feature_sets import FOLDER, FeatureSet, from_npz, miniworld
from .record import store_result
from .unlike_silos import HOLD_OUT, TRAITS, UnlikeSilo, unlike_silos

ROUNDS: dict[Recipe, int] = {"default": 80, "paper": 40}  # the paper's head takes minutes for 40
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True, help="UCF101's features, an .npz")
    parser.add_argument("--sets", nargs="+", choices=("ucf101", "miniworld"), default=("ucf101", "miniworld"))
    parser.add_argument("--recipe", choices=RECIPES, default="default")
    parser.add_argument("--federations", type=int, default=10, help="of each set")
    parser.add_argument("--minutes", type=float, default=7.5, help="after which no further federation is begun")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--store", action="store_true", help="write what is there to bench/results")
    options = parser.parse_args()
    kept, until = options.folder / "adoption", time.monotonic() + 60 * options.minutes
    kept.mkdir(parents=True, exist_ok=True)
    for features, seed in _federations(options):
        path = kept / f"{options.recipe}-{features.name}-{seed}.json"
        if not path.exists() and time.monotonic() < until:
            path.write_text(json.dumps(federation(features, seed, options.recipe)))
            print(path.stem, *(_text(row) for row in json.loads(path.read_text())), sep="\n  ", flush=True)
    figures = {}
    for recipe in RECIPES:
        for name in ("", "ucf101", "miniworld"):
            if rows := [row for row in _kept(kept, recipe) if row["federation"].startswith(name)]:
                figures[f"{recipe}, {name or 'both sets'}"] = summary(rows, texts=bool(name))
    setting = {"silos": len(TRAITS), "rounds": ROUNDS, "hold_out": HOLD_OUT, "recipes": figures}
    print(json.dumps(figures, indent=2))
    if options.store:
        print(store_result("adoption", setting))


def _federations(options: argparse.Namespace) -> Iterator[tuple[FeatureSet, int]]:
    sets = [
        from_npz(options.features, name) if name == "ucf101" else miniworld(options.folder) for name in options.sets
    ]
    for seed in range(options.federations):
        for features in sets:
            yield features, seed


def _kept(folder: Path, recipe: str) -> list[Row]:
    return [row for path in sorted(folder.glob(f"{recipe}-*.json")) for row in json.loads(path.read_text())]


def _text(row: Row) -> str:
    test = ", ".join(f"{name} {value:.3f}" for name, value in row["test"].items())
    return f"{row['trait']:12} {row['clips']:4} + {row['held_out']} in {row['groups']}: {row['adopted']}; {test}"


def federation(features: FeatureSet, seed: int, recipe: Recipe) -> list[Row]:
    """Run a federation, and let each of its silos choose."""
    silos = unlike_silos(features, seed)
    chosen = recipe_settings(recipe, features.table.x.shape[1], len(features.labels))
    head, settings = chosen.head, {"seed": seed, "train": chosen.train, "strategy": chosen.strategy}
    run = RunSettings("adoption", features.labels, head, ROUNDS[recipe], 1, 9.0, features.name, **settings)
    federated = simulate(run, [SimulatedSilo(silo.name, silo.train) for silo in silos]).params
    trainer = HeadTrainer(head, threads=1)
    return [{"federation": f"{features.name}-{seed}", **_row(trainer, run, federated, silo)} for silo in silos]


def _row(trainer: HeadTrainer, run: RunSettings, federated: Params, silo: UnlikeSilo) -> Row:
    heads = candidates(trainer, run, federated, own_head(trainer, run, silo.train), silo.train)
    found = choose_by(
        {name: answered(trainer.logits(head, silo.held_out.x), silo.held_out.y) for name, head in heads.items()},
        silo.groups,
    )
    test = {name: answered(trainer.logits(head, silo.test.x), silo.test.y) for name, head in heads.items()}
    accuracy = {name: _accuracy(each, silo) for name, each in test.items()}
    return {
        "silo": silo.name,
        "trait": silo.trait,
        "clips": len(silo.train),
        "held_out": found.clips,
        "groups": found.groups,
        "adopted": found.model,
        "doubts": found.doubts,
        "correct": found.correct,
        "gain": [found.gain.gain, found.gain.low, found.gain.high],
        "test_clips": len(silo.test),
        "test": accuracy,
        "own_better": _own_better(test, found, silo),
    }


def _accuracy(answers: Answered, silo: UnlikeSilo) -> float:
    return float((answers.correct * silo.weight).sum() / silo.weight.sum())


def _own_better(test: dict[Any, Answered], found: Adoption, silo: UnlikeSilo) -> float:
    """Return the p-value, on the test clips and by groups, of the own head being better than the adopted one."""
    own, adopted = (test[name].correct * silo.weight for name in ("own", found.model))
    return doubts(adopted, {"own": own}, silo.test_groups)["own"]


def summary(rows: list[Row], *, texts: bool = False) -> dict[str, Any]:
    """Return the figures over all silos: gains on the test clips, in points over the own head."""
    others = [row for row in rows if row["adopted"] != "own"]
    worse = [row for row in others if row["own_better"] <= DOUBT]
    adopted = [_points(row, row["adopted"]) for row in rows]
    return {
        "federations": len({row["federation"] for row in rows}),
        "silos": len(rows),
        "adopted": {name: sum(row["adopted"] == name for row in rows) for name in ("own", *rows[0]["test"])},
        "lower_on_test": sum(_points(row, row["adopted"]) < 0 for row in others),
        "worse_beyond_doubt": len(worse),
        "worse_share": len(worse) / len(rows),
        "worse_share_at_most": _at_most(len(worse), len(rows)),
        "gain_in_interval": sum(row["gain"][1] <= _points(row, "federated") / 100 <= row["gain"][2] for row in rows),
        "auto": _gains(rows, adopted),
        "always_federated": _gains(rows, [_points(row, "federated") for row in rows]),
        "most_correct": _gains(rows, [_points(row, max(row["correct"], key=row["correct"].get)) for row in rows]),
        "best_on_test": _gains(rows, [max(_points(row, name) for name in row["test"]) for row in rows]),
        "by_trait": {
            trait: {
                "silos": sum(row["trait"] == trait for row in rows),
                "another_adopted": sum(row["trait"] == trait for row in others),
                "auto": _mean(_points(row, row["adopted"]) for row in rows if row["trait"] == trait),
                "always_federated": _mean(_points(row, "federated") for row in rows if row["trait"] == trait),
            }
            for trait in sorted(set(TRAITS))
        },
        **({"rows": [f"{row['federation']} {_text(row)}" for row in rows]} if texts else {}),
    }


def _points(row: Row, name: str) -> float:
    return float(100 * (row["test"][name] - row["test"]["own"]))


def _mean(values: Iterator[float]) -> float:
    return float(np.mean(list(values)))


def _gains(rows: list[Row], points: list[float]) -> dict[str, Any]:
    """Return mean, its 95 % interval over federations, worst silo, and silos that lose."""
    federations = sorted({row["federation"] for row in rows})
    means = [
        np.mean([gain for row, gain in zip(rows, points, strict=True) if row["federation"] == one])
        for one in federations
    ]
    error = float(np.std(means, ddof=1) / np.sqrt(len(means))) if len(means) > 1 else 0.0
    margin = float(t.ppf(0.975, max(len(means) - 1, 1))) * error
    mean = float(np.mean(means))
    return {
        "mean": mean,
        "low": mean - margin,
        "high": mean + margin,
        "worst": min(points),
        "lost": sum(point < 0 for point in points),
        "lost_a_point": sum(point <= -1 for point in points),
    }


def _at_most(count: int, of: int) -> float:
    """Return the upper end of the 95 % interval of a share (Clopper and Pearson 1934)."""
    return 1.0 if count == of else float(beta.ppf(0.975, count + 1, of - count))


if __name__ == "__main__":
    main()
