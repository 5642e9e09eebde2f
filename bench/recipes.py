"""Accuracy of the recipes beside scikit-learn's classifiers, held out by group; trials of the default one's rate.

    python -m bench.recipes UCF101.npz [--folder build/bench] [--seeds 5] [--search] [--minutes 7]

The test rows are of groups that nothing was chosen on: UCF101's groups 20 to 25, the mini-world's scenes 100 to 139. A
seed draws the training groups (UCF101: 10 of 12; mini-world: 5, 10, 20 or 100 scenes) and the partition over four
silos. Each cell is kept in the folder, so that the command can be run again until all are there. ``--search`` trains
with several rates on training groups alone, and judges on the training groups left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from flamest.agent.training.dataset import FeatureTable
from flamest.agent.training.local import train_locally
from flamest.agent.training.trainer import HeadTrainer
from flamest.experiments.partition import Partition, dirichlet, iid
from flamest.experiments.recordings import smallest_share
from flamest.experiments.simulation import SimulatedSilo, simulate
from flamest.fedproto.recipes import Recipe, RecipeSettings, recipe_settings
from flamest.fedproto.records import RunSettings

from .feature_sets import FOLDER, FeatureSet, from_npz, miniworld, miniworld_split
from .record import RESULTS, machine

SILOS, ROUNDS = 4, 80
CLIPS = (5, 10, 20, 100)  # of the mini-world, in each class
UCF_TEST, UCF_TRAIN, UCF_DRAWN = range(20, 26), range(8, 20), 10  # groups
SPLITS: dict[str, Callable[[FeatureTable, int], Partition]] = {
    "IID": lambda table, seed: iid(len(table), silos=SILOS, seed=seed),
    "0.6": lambda table, seed: _skewed(table, 0.6, seed),
    "0.1": lambda table, seed: _skewed(table, 0.1, seed),
}
SKLEARN = ("LinearSVC", "logistic regression", "5-NN")
COLUMNS = (*SKLEARN, "default", *(f"default, {name}" for name in SPLITS), "paper", "paper, 0.6")
STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}  # 97.5 %, by seeds
RATES = [(rate, decay) for rate in (3e-4, 1e-3, 3e-3) for decay in (1.0, 0.95)]
Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Trial:
    """Rows to train on and to judge on."""

    data: str
    train: FeatureTable
    test: FeatureTable
    labels: tuple[str, ...]
    blocks: tuple[int, ...]
    seed: int


def trials(ucf: FeatureSet, world: FeatureSet, seed: int) -> Iterator[Trial]:
    """Yield the data of the table for one seed."""
    groups = np.array([int(group.rsplit("/g", 1)[1]) for group in ucf.groups])
    drawn = np.random.default_rng(seed).permutation(list(UCF_TRAIN))[:UCF_DRAWN]
    rows = np.flatnonzero(np.isin(groups, drawn)), np.flatnonzero(np.isin(groups, list(UCF_TEST)))
    for clips in CLIPS:
        yield _trial(f"mini-world, {clips}", world, miniworld_split(world, clips, seed), (128, 256), seed)
    yield _trial("UCF101", ucf, rows, (), seed)


def validations(ucf: FeatureSet, world: FeatureSet, seed: int) -> Iterator[Trial]:
    """Yield splits of the training groups alone, small silos as often as large ones."""
    for data, every, blocks, allowed in (("UCF101", ucf, (), UCF_TRAIN), ("mini-world", world, (128, 256), range(100))):
        numbers = np.array([int(group.rsplit("/", 1)[-1][1:]) for group in every.groups])
        held_out = np.random.default_rng(seed).permutation(list(allowed))[: len(allowed) // 4]
        judged = np.flatnonzero(np.isin(numbers, held_out))
        usable = np.flatnonzero(np.isin(numbers, list(allowed)) & ~np.isin(numbers, held_out))
        for clips in (5, 10, 20):
            yield _trial(f"{data}, {clips}", every, (_some(every, usable, clips, seed), judged), blocks, seed)


def _some(every: FeatureSet, rows: npt.NDArray[np.int64], clips: int, seed: int) -> npt.NDArray[np.int64]:
    """Draw so many clips of each class."""
    shuffled = np.random.default_rng(seed).permutation(rows)
    y = every.table.y[shuffled]
    return np.sort(np.concatenate([shuffled[y == label][:clips] for label in np.unique(y)]))


def _trial(data: str, every: FeatureSet, rows: tuple[Any, Any], blocks: tuple[int, ...], seed: int) -> Trial:
    return Trial(data, every.table.rows(rows[0]), every.table.rows(rows[1]), every.labels, blocks, seed)


def _skewed(table: FeatureTable, beta: float, seed: int) -> Partition:
    return dirichlet(table.y, silos=SILOS, beta=beta, seed=seed, smallest=smallest_share(len(table), len(table), SILOS))


def settings_of(trial: Trial, recipe: Recipe, **given: Any) -> RecipeSettings:
    return recipe_settings(recipe, trial.train.x.shape[1], len(trial.labels), blocks=trial.blocks, given=given)


def run_of(trial: Trial, chosen: RecipeSettings) -> RunSettings:
    return RunSettings(
        run="recipes",
        labels=trial.labels,
        head=chosen.head,
        rounds=ROUNDS,
        min_silos=SILOS,
        deadline_s=600.0,
        fingerprint="bench",
        seed=trial.seed,
        strategy=chosen.strategy,
        train=chosen.train,
    )


def federated(trial: Trial, chosen: RecipeSettings, split: str) -> Row:
    """Return the final model's accuracy, and the deviation over the last ten rounds, in points."""
    parts = [trial.train.rows(rows) for rows in SPLITS[split](trial.train, trial.seed).silos]
    silos = [SimulatedSilo(f"silo-{number}", part) for number, part in enumerate(parts, start=1)]
    curve = [each.correct / each.count for each in simulate(run_of(trial, chosen), silos, test=trial.test).rounds]
    return {"accuracy": curve[-1], "last_ten_deviation": statistics.pstdev(curve[-10:])}


def centralised(trial: Trial, chosen: RecipeSettings) -> Row:
    trainer = HeadTrainer(chosen.head, threads=1)
    made = train_locally(trainer, trial.train, trial.test, chosen.train, rounds=ROUNDS, seed=trial.seed)
    return {"accuracy": made.last}


def sklearn_accuracy(trial: Trial, name: str) -> Row:
    """Return the accuracy of one of scikit-learn's classifiers on rows of norm 1."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import LinearSVC

    made = {
        "LinearSVC": LinearSVC(random_state=0),
        "logistic regression": LogisticRegression(max_iter=1000),
        "5-NN": KNeighborsClassifier(5),
    }[name]
    train, test = (table.x / np.linalg.norm(table.x, axis=1, keepdims=True) for table in (trial.train, trial.test))
    return {"accuracy": float(made.fit(train, trial.train.y).score(test, trial.test.y))}


def measure(trial: Trial, column: str) -> Row:
    if column in SKLEARN:
        return sklearn_accuracy(trial, column)
    recipe: Recipe = "paper" if column.startswith("paper") else "default"
    chosen = settings_of(trial, recipe)
    split = column.partition(", ")[2]
    return federated(trial, chosen, split) if split else centralised(trial, chosen)


def search(trial: Trial, kept: Path) -> None:
    """Keep the accuracy with every rate of the search, over IID and Dirichlet silos and without any."""
    for rate, decay in RATES:
        given = {"train": {"learning_rate": rate, "learning_rate_decay": decay}}
        chosen = settings_of(trial, "default", **given)
        path = kept / f"search-{trial.data}-{rate}-{decay}-{trial.seed}.json"
        if not path.is_file():
            row = {"centralised": centralised(trial, chosen)["accuracy"]}
            row |= {split: federated(trial, chosen, split)["accuracy"] for split in ("IID", "0.6")}
            path.write_text(json.dumps({"data": trial.data, "rate": rate, "decay": decay, **row}))


def summary(rows: list[Row]) -> dict[str, Any]:
    """Return mean accuracy in percent with its 95 % interval over seeds (Student), by data and column."""
    table: dict[str, Any] = {}
    for data in dict.fromkeys(row["data"] for row in rows):
        for column in COLUMNS:
            mine = [row for row in rows if (row["data"], row["column"]) == (data, column)]
            if len(mine) < 2:
                continue
            values = [100 * row["accuracy"] for row in mine]
            half = STUDENT[len(values)] * statistics.stdev(values) / len(values) ** 0.5
            cell = {"percent": statistics.mean(values), "interval": half, "seeds": len(values)}
            if "last_ten_deviation" in mine[0]:
                cell["last_ten_deviation"] = 100 * statistics.mean(row["last_ten_deviation"] for row in mine)
            table.setdefault(data, {})[column] = cell
    return table


def search_summary(kept: Path) -> list[Row]:
    """Return the mean over data and seeds for each rate, in percent."""
    found = [json.loads(path.read_text()) for path in sorted(kept.glob("search-*.json"))]
    parts = ("centralised", "IID", "0.6")
    return [
        {"rate": rate, "decay": decay, "trials": len(mine)}
        | {part: 100 * statistics.mean(row[part] for row in mine) for part in parts}
        for rate, decay in RATES
        if (mine := [row for row in found if (row["rate"], row["decay"]) == (rate, decay)])
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ucf", type=Path)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--seeds", type=int, choices=STUDENT, default=5)
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=list(COLUMNS))
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--minutes", type=float, default=7.0, help="begin no new cell after so long")
    options = parser.parse_args()
    ends, kept = time.monotonic() + 60 * options.minutes, options.folder / "recipes"
    kept.mkdir(parents=True, exist_ok=True)
    ucf, world = from_npz(options.ucf, "UCF101"), miniworld(options.folder)
    for seed in range(options.seeds):
        for trial in (validations if options.search else trials)(ucf, world, seed):
            if options.search and time.monotonic() < ends:
                search(trial, kept)
            for column in () if options.search else options.columns:
                path = kept / f"{trial.data}-{column}-{seed}.json"
                if not path.is_file() and time.monotonic() < ends:
                    row = {"data": trial.data, "column": column, "seed": seed, "test": len(trial.test)}
                    path.write_text(json.dumps(row | {"train": len(trial.train)} | measure(trial, column)))
    rows = [json.loads(path.read_text()) for path in sorted(kept.glob("*.json")) if not path.name.startswith("search-")]
    figures = {"machine": machine(), "rounds": ROUNDS, "silos": SILOS, "table": summary(rows), "rows": rows}
    figures["search"] = search_summary(kept)
    (RESULTS / "recipes.json").write_text(json.dumps(figures, indent=1) + "\n")
    for data, cells in figures["table"].items():
        print(data, {column: f"{cell['percent']:.1f} ± {cell['interval']:.1f}" for column, cell in cells.items()})


if __name__ == "__main__":
    main()
