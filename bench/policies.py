"""Accuracy cost of a silo's policy: rounded counts, clipped and noised updates, differential privacy.

Twenty Gaussian classes in 64 dimensions, 4,000 rows over four silos by a Dirichlet draw (beta 0.6), 1,000 test rows, a
head with one hidden layer of 32, 40 rounds of one epoch in batches of 64, three seeds. Every figure is the mean over
the seeds, in %; epsilon is that of the smallest silo, the largest, at delta 1e-5.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from flamest.agent.egress.accountant import Spend, epsilon_of
from flamest.agent.egress.policy import DEFAULT_CLIP_NORM, DEFAULT_DELTA, DEFAULT_NOISE, DEFAULT_SAMPLE_CLIP, Policy
from flamest.agent.training.dataset import FeatureTable
from flamest.agent.training.private import UNPROTECTED, Protection, Sampling
from flamest.coordinator.strategies.contributions import Contribution
from flamest.experiments.partition import dirichlet
from flamest.experiments.simulation import Scenario, SimulatedSilo, simulate
from flamest.fedproto.head import HeadSpec, Params
from flamest.fedproto.records import RunSettings, TrainSettings

SEEDS = (0, 1, 2)
CLASSES, WIDTH, ROWS, TEST, SILOS, ROUNDS = 20, 64, 4000, 1000, 4, 40
SETTINGS = TrainSettings(epochs=1, batch_size=64)
POLICIES = {
    "off": (Policy(), UNPROTECTED),
    "counts as powers of two": (Policy(report_counts="power-of-two"), UNPROTECTED),
    "clip, as it comes": (Policy(), Protection("clip", DEFAULT_CLIP_NORM, DEFAULT_NOISE)),
    "clip, five times as far": (Policy(), Protection("clip", 5 * DEFAULT_CLIP_NORM, DEFAULT_NOISE)),
    "record-dp, noise 1": (Policy(), Protection("record-dp", DEFAULT_SAMPLE_CLIP, 1.0)),
    "record-dp, noise 2": (Policy(), Protection("record-dp", DEFAULT_SAMPLE_CLIP, 2.0)),
    "record-dp, noise 4": (Policy(), Protection("record-dp", DEFAULT_SAMPLE_CLIP, 4.0)),
}


def measure() -> dict[str, Any]:
    rows = []
    for name, (policy, protection) in POLICIES.items():
        found = [_run(seed, policy, protection) for seed in SEEDS]
        row = {"policy": name, "accuracy": round(float(np.mean([accuracy for accuracy, _ in found])), 2)}
        if protection.mode == "record-dp":
            row["epsilon"] = round(max(_epsilon(smallest, protection) for _, smallest in found), 2)
        rows.append(row)
    return {"silos": SILOS, "rounds": ROUNDS, "seeds": len(SEEDS), "rows": rows}


def _epsilon(rows: int, protection: Protection) -> float:
    sampling = Sampling.of(rows, SETTINGS)
    return epsilon_of([Spend(sampling.rate, protection.noise, sampling.steps)] * ROUNDS, DEFAULT_DELTA)


def _run(seed: int, policy: Policy, protection: Protection) -> tuple[float, int]:
    """Accuracy of the last model in %, and the rows of the smallest silo, which has the largest epsilon."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(CLASSES, WIDTH))
    y = random.integers(0, CLASSES, ROWS + TEST)
    x = (centres[y] + 2.5 * random.normal(size=(ROWS + TEST, WIDTH))).astype(np.float32)
    train, test = FeatureTable(x[:ROWS], y[:ROWS]), FeatureTable(x[ROWS:], y[ROWS:])
    split = dirichlet(train.y, beta=0.6, silos=SILOS, seed=seed, smallest=256)
    silos = [SimulatedSilo(f"silo-{index}", train.rows(rows)) for index, rows in enumerate(split.silos)]
    head = HeadSpec(WIDTH, CLASSES, (32,))
    run = RunSettings("policies", tuple(map(str, range(CLASSES))), head, ROUNDS, 1, 1.0, "f", seed=seed, train=SETTINGS)

    def rounded(_round: int, _base: Params, honest: Contribution) -> Contribution:
        return replace(honest, examples=policy.rounded_count(honest.examples))

    done = simulate(run, silos, test=test, workers=2, scenario=Scenario(rounded, protection=protection))
    return 100 * done.rounds[-1].correct / done.rounds[-1].count, min(len(silo.train) for silo in silos)
