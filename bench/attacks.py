"""Final accuracy with two hostile silos of ten, without and with each defence, on synthetic features.

Twenty Gaussian classes in 64 dimensions, 2,000 rows over ten silos by a Dirichlet draw (beta 0.5), 1,000 test rows, a
head with one hidden layer of 32, 40 rounds of two epochs, three seeds. Every figure is the mean over the seeds, in %.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from flamest.agent.training.dataset import FeatureTable
from flamest.experiments.hostile import Attack, InflatedExamples, Noise, SignFlip, only_by
from flamest.experiments.partition import dirichlet
from flamest.experiments.simulation import Scenario, SimulatedSilo, simulate
from flamest.fedproto.head import HeadSpec
from flamest.fedproto.records import RunSettings, Strategy, TrainSettings

SEEDS = (0, 1, 2)
CLASSES, WIDTH, ROWS, TEST, ROUNDS = 20, 64, 2000, 1000, 40
HOSTILE = frozenset({"silo-3", "silo-7"})
ABSENT = "the two take no part"
DEFENCES = {
    "weighted mean": (Strategy(), 0.0),
    "norm bound": (Strategy(), 4.0),
    "clip 1": (Strategy(clip=1.0), 0.0),
    "trimmed mean 0.2": (Strategy(combine="trimmed_mean", trim=0.2), 0.0),
    "median": (Strategy(combine="median"), 0.0),
    "norm bound and median": (Strategy(combine="median"), 4.0),
}
ATTACKS: dict[str, Attack | None] = {
    "none": None,
    ABSENT: None,  # the best that a defence can reach by refusing all of their updates
    "sign flip x10": SignFlip(10.0),
    "sign flip x1": SignFlip(1.0),
    "noise x10": Noise(10.0),
    "sign flip, 100 times the examples": InflatedExamples(100),
}


def measure() -> dict[str, Any]:
    """Accuracy for every attack and defence."""
    rows = []
    for attack_name, attack in ATTACKS.items():
        for defence_name, (strategy, norm_times) in DEFENCES.items():
            absent = HOSTILE if attack_name == ABSENT else frozenset[str]()
            found = [_run(seed, strategy, norm_times, attack, absent) for seed in SEEDS]
            rows.append(
                {
                    "attack": attack_name,
                    "defence": defence_name,
                    "accuracy": round(float(np.mean([accuracy for accuracy, _ in found])), 2),
                    "refused": sum(refused for _, refused in found),
                }
            )
    return {"silos": 10, "hostile": len(HOSTILE), "rounds": ROUNDS, "seeds": len(SEEDS), "rows": rows}


def _run(
    seed: int, strategy: Strategy, norm_times: float, attack: Attack | None, absent: frozenset[str]
) -> tuple[float, int]:
    """Accuracy of the last model in %, and the number of refused updates."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(CLASSES, WIDTH))
    y = random.integers(0, CLASSES, ROWS + TEST)
    x = (centres[y] + 2.5 * random.normal(size=(ROWS + TEST, WIDTH))).astype(np.float32)
    train, test = FeatureTable(x[:ROWS], y[:ROWS]), FeatureTable(x[ROWS:], y[ROWS:])
    split = dirichlet(train.y, beta=0.5, silos=10, seed=seed, smallest=20)
    drawn = [SimulatedSilo(f"silo-{index}", train.rows(rows)) for index, rows in enumerate(split.silos)]
    silos = [silo for silo in drawn if silo.name not in absent]
    settings = TrainSettings(epochs=2, batch_size=32)
    labels = tuple(map(str, range(CLASSES)))
    head = HeadSpec(WIDTH, CLASSES, (32,))
    run = RunSettings("attacks", labels, head, ROUNDS, 1, 1.0, "f", seed=seed, strategy=strategy, train=settings)
    scenario = Scenario(norm_times=norm_times) if attack is None else Scenario(only_by(HOSTILE, attack), norm_times)
    done = simulate(run, silos, test=test, workers=2, scenario=scenario)
    return 100 * done.rounds[-1].correct / done.rounds[-1].count, len(done.refused)
