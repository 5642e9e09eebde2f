"""Two silos of ten that claim more examples than they have, by the limit on claims; and its cost for honest runs.

Data, head and rounds of ``bench/attacks.py``, with its norm bound of 4. The two silos are those of middle size, claim a
million examples, and send what training made of poisoned rows, or their honest update reversed or scaled. Accuracy in %
on clean test rows; for the backdoor also the share in % of the triggered test rows that get the attacker's class.
``honest`` has federations of very unequal silos without an attacker, and the number of claims that were cut.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from flamest.agent.training.dataset import FeatureTable
from flamest.agent.training.trainer import HeadTrainer, evaluate
from flamest.coordinator.strategies.claims import lower_median
from flamest.experiments.hostile import (
    Attack,
    Boosted,
    Claims,
    SignFlip,
    as_trained,
    only_by,
    triggered,
    with_backdoor,
    with_flipped_labels,
)
from flamest.experiments.partition import dirichlet
from flamest.experiments.simulation import Scenario, SimulatedSilo, simulate
from flamest.fedproto.head import HeadSpec
from flamest.fedproto.records import RunSettings, TrainSettings

SEEDS = (0, 1, 2)
CLASSES, WIDTH, ROWS, TEST, ROUNDS = 20, 64, 2000, 1000, 20
TIMES = (0.0, 3.0, 2.0, 1.5)
TARGET = 0
MILLION = 1_000_000
HONEST, ABSENT, POISONED = "none", "the two take no part", "honest claims"
BACKDOOR = "backdoor"
DATA = {"reversed": "", "reversed x4": "", "flipped labels": "flip", BACKDOOR: BACKDOOR, "backdoor x4": BACKDOOR}
ATTACKS: dict[str, Attack] = {
    "reversed": SignFlip(1.0),
    "reversed x4": SignFlip(4.0),
    "flipped labels": as_trained,
    BACKDOOR: as_trained,
    "backdoor x4": Boosted(4.0),
}
CLAIMS = {
    POISONED: None,
    "a million": (MILLION, 1.0, 1),
    "a fifth more every round": (200, 1.2, 1),
    "a million every second round": (MILLION, 1.0, 2),
}


def measure() -> dict[str, Any]:
    """Attacks by limit, and honest federations by limit."""
    attacks = [_row(attack, claim, times) for attack in (HONEST, ABSENT) for claim in (POISONED,) for times in TIMES]
    attacks += [_row(attack, claim, times) for attack in ATTACKS for claim in CLAIMS for times in TIMES]
    return {"silos": 10, "hostile": 2, "rounds": ROUNDS, "seeds": len(SEEDS), "attacks": attacks, "honest": _honest()}


def _row(attack: str, claim: str, times: float) -> dict[str, Any]:
    found = np.array([_run(seed, attack, claim, times) for seed in SEEDS]).mean(axis=0)
    figures = dict(zip(("accuracy", "triggered"), found.round(2).tolist(), strict=True))
    print(f"{attack:22} claims {claim:30} times {times:3} {figures}", flush=True)
    return {"attack": attack, "claims": claim, "examples_times": times, **figures}


def _tables(seed: int) -> tuple[FeatureTable, FeatureTable]:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(CLASSES, WIDTH))
    y = random.integers(0, CLASSES, ROWS + TEST)
    x = (centres[y] + 1.2 * random.normal(size=(ROWS + TEST, WIDTH))).astype(np.float32)
    return FeatureTable(x[:ROWS], y[:ROWS]), FeatureTable(x[ROWS:], y[ROWS:])


def _settings(seed: int, rounds: int = ROUNDS) -> RunSettings:
    train = TrainSettings(epochs=2, batch_size=32)
    head = HeadSpec(WIDTH, CLASSES, (32,))
    return RunSettings("r", tuple(map(str, range(CLASSES))), head, rounds, 1, 1.0, "f", seed=seed, train=train)


def _run(seed: int, attack: str, claim: str, times: float) -> tuple[float, float]:
    """Accuracy on clean rows, and the share of triggered rows that get the target, in %."""
    train, test = _tables(seed)
    split = dirichlet(train.y, beta=0.5, silos=10, seed=seed, smallest=20)
    silos = [SimulatedSilo(f"silo-{index}", train.rows(rows)) for index, rows in enumerate(split.silos)]
    hostile = {silo.name for silo in sorted(silos, key=lambda silo: len(silo.train))[4:6]}
    scenario = Scenario(norm_times=4.0, examples_times=times)
    if attack == ABSENT:
        silos = [silo for silo in silos if silo.name not in hostile]
    elif attack != HONEST:
        silos = [replace(silo, train=_poisoned(silo.train, attack)) if silo.name in hostile else silo for silo in silos]
        sent, claimed = ATTACKS[attack], CLAIMS[claim]
        if claimed is not None:
            sent = Claims(sent, *claimed)
        scenario = replace(scenario, attack=only_by(frozenset(hostile), sent))
    run = _settings(seed)
    done = simulate(run, silos, test=test, workers=2, scenario=scenario)
    others = test.rows(np.flatnonzero(test.y != TARGET))
    marked = FeatureTable(triggered(others.x), np.full(len(others), TARGET, others.y.dtype))
    hit = evaluate(HeadTrainer(run.head, threads=1), done.params, marked)
    return 100 * done.rounds[-1].correct / done.rounds[-1].count, 100 * hit.correct / hit.count


def _poisoned(table: FeatureTable, attack: str) -> FeatureTable:
    if DATA[attack] == BACKDOOR:
        return with_backdoor(table, TARGET)
    return with_flipped_labels(table, CLASSES) if DATA[attack] else table


def _honest() -> list[dict[str, Any]]:
    """Honest federations of very unequal silos: accuracy by limit, and how many silos' claims it cuts."""
    rows = []
    for beta in (0.1, 0.5):
        for times in TIMES:
            accuracy, cut = [], 0
            for seed in (*SEEDS, 3, 4):
                train, test = _tables(seed)
                split = dirichlet(train.y, beta=beta, silos=10, seed=seed, smallest=5)
                silos = [SimulatedSilo(f"silo-{index}", train.rows(part)) for index, part in enumerate(split.silos)]
                scenario = Scenario(norm_times=4.0, examples_times=times)
                done = simulate(_settings(seed), silos, test=test, workers=2, scenario=scenario)
                accuracy.append(100 * done.rounds[-1].correct / done.rounds[-1].count)
                cut += times > 0 and sum(size > times * lower_median(split.sizes) for size in split.sizes)
            row = {"beta": beta, "examples_times": times, "accuracy": round(float(np.mean(accuracy)), 2), "cut": cut}
            print(row, flush=True)
            rows.append(row)
    return rows
