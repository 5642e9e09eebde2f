"""Number of embeddings that attacks recover from one update, by the number of clips in it.

The paper's head (2816, 512, 256, 101) from its initial weights, one round of five epochs, batch 128, on synthetic
features (768 normal values like BLIP's, and 2048 that are never negative like Slow's). The division attack on an update
of plain gradient descent at rate 0.01, without and with ``privacy = "clip"``, and on an update of Adam; the
optimisation attack on Adam's. A clip counts as recovered when a candidate is within 5 % of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from flamest.agent.egress.policy import DEFAULT_CLIP_NORM, DEFAULT_NOISE
from flamest.agent.training.dataset import FeatureTable
from flamest.agent.training.private import Protection, fresh_generator, protected
from flamest.agent.training.trainer import HeadTrainer, shuffle_seed
from flamest.experiments.inversion.updates import Reconstruction, Search, divide, nearest, optimise, sgd_update
from flamest.fedproto.head import HeadSpec, Params, initial_params
from flamest.fedproto.records import TrainSettings

SPEC, SETTINGS = HeadSpec(2816, 101), TrainSettings()
COUNTS, SEEDS = (1, 4, 16, 64, 256), (0, 1, 2)
SEARCH = Search(aligning=200, unrolled=40)
OTHERS = 1000  # seed of clips of the attacker's own
CLIP = Protection("clip", DEFAULT_CLIP_NORM, DEFAULT_NOISE)


def measure() -> dict[str, Any]:
    trainer = HeadTrainer(SPEC)
    rows = [_row(trainer, count, seed) for count in COUNTS for seed in SEEDS]
    return {
        "inputs": SPEC.inputs,
        "hidden": SPEC.hidden,
        "epochs": SETTINGS.epochs,
        "search": vars(SEARCH),
        "rows": rows,
    }


def synthetic(count: int, seed: int) -> FeatureTable:
    random = np.random.default_rng(seed)
    vlm = random.normal(size=(count, 768))
    cnn = np.maximum(random.gamma(0.6, 0.7, size=(count, 2048)) - 0.05, 0.0)
    return FeatureTable(np.concatenate([vlm, cnn], axis=1).astype(np.float32), random.integers(0, SPEC.outputs, count))


def _row(trainer: HeadTrainer, count: int, seed: int) -> dict[str, Any]:
    table, base = synthetic(count, seed), initial_params(SPEC, seed)
    shuffles = shuffle_seed(0, 1, f"silo-{seed}")
    plain = sgd_update(SPEC, base, table, SETTINGS, shuffles)
    clipped = protected(base, plain, CLIP, fresh_generator())
    adam = trainer.train(base, table, SETTINGS, seed=shuffles).params
    mean_clip = synthetic(2000, OTHERS).x.mean(axis=0, keepdims=True)
    attacks = {
        "sgd, division": nearest(divide(base, plain), table.x),
        "sgd with clip, division": nearest(divide(base, clipped), table.x),
        "adam, division": nearest(divide(base, adam), table.x),
        "no update, the mean clip": nearest(mean_clip, table.x),
    }
    if seed == SEEDS[0]:
        attacks["adam, optimisation"] = _optimised(base, adam, table, shuffles)
    return {"clips": count, "seed": seed, **{name: _figures(found) for name, found in attacks.items()}}


def _optimised(base: Params, adam: Params, table: FeatureTable, shuffles: int) -> Reconstruction:
    found = optimise(SPEC, base, adam, table.y, (SETTINGS, shuffles), SEARCH)
    usual = np.linalg.norm(synthetic(200, OTHERS).x, axis=1).mean()  # the attack finds directions; lengths are similar
    return nearest(found * (usual / np.linalg.norm(found, axis=1, keepdims=True)), table.x)


def _figures(found: Reconstruction) -> dict[str, Any]:
    return {
        "recovered": found.recovered,
        "least_error": round(float(found.errors.min()), 4),
        "median_error": round(float(np.median(found.errors)), 4),
        "best_cosine": round(float(found.cosines.max()), 4),
        "median_cosine": round(float(np.median(found.cosines)), 4),
    }
