"""Federations whose silos are unlike each other, drawn from a feature set: for the benchmark of ``policy.adopt``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from flamest.agent.training.dataset import FeatureTable
from flamest.agent.training.holdout import hold_out_groups

from .feature_sets import TRAINING_SCENES, FeatureSet, Rows

Trait = Literal["plain", "camera", "wrong labels", "other words"]
TRAITS: tuple[Trait, ...] = ("plain", "plain", "camera", "wrong labels", "other words")  # of a federation's silos
HOLD_OUT = 0.2  # policy.hold_out's default
TEST_SHARE = 0.35  # of the groups of a set that has no test rows of its own
LEAST_CLIPS, LEAST_CLASSES = 24, 3  # of a silo
CAMERA_OFFSET, CAMERA_GAIN = 0.5, 0.3  # in standard deviations of a feature; of the logarithm of its scale
WRONG_LABELS = 0.2  # share of a silo's clips that have another of its classes as their label


@dataclass(frozen=True, eq=False)
class UnlikeSilo:
    """A silo's clips, and test clips as that silo would have them."""

    name: str
    trait: Trait
    train: FeatureTable
    held_out: FeatureTable
    groups: tuple[str, ...]  # of the held-out clips
    test: FeatureTable
    test_groups: tuple[str, ...]
    weight: npt.NDArray[np.float64]  # of each test clip, mean 1: classes count as often as the silo has them


def unlike_silos(features: FeatureSet, seed: int) -> list[UnlikeSilo]:
    """Draw a federation: every group of clips in one silo, a third of the groups in none, for the test.

    Silos differ in size (shares of groups by a Dirichlet draw of 1.5), in their classes (a silo keeps of each class a
    share of its own, by a Beta draw that is near 0 or near 1 for most), and by trait: a camera that shifts and scales
    every feature, wrong labels (not in the test), and two pairs of classes that it calls the other way round.
    """
    random = np.random.default_rng([seed, len(features.table)])
    train, test = _sides(features, seed)
    while True:  # until no silo is too small
        parts = _parts(features, train, random)
        if all(_is_enough(features, rows, seed) for rows in parts):
            break
    traits = random.permutation(np.array(TRAITS)).tolist()
    return [
        _silo(features, f"silo-{number}", trait, rows, test, np.random.default_rng([seed, number]))
        for number, (trait, rows) in enumerate(zip(traits, parts, strict=True))
    ]


def _sides(features: FeatureSet, seed: int) -> tuple[Rows, Rows]:
    if features.name != "miniworld":
        return features.split(TEST_SHARE, seed)
    scenes = np.array([int(group[1:]) for group in features.groups])
    return np.flatnonzero(scenes < TRAINING_SCENES), np.flatnonzero(scenes >= TRAINING_SCENES)


def _parts(features: FeatureSet, train: Rows, random: np.random.Generator) -> list[Rows]:
    """Return each silo's rows."""
    groups = sorted({features.groups[row] for row in train})
    shares = random.dirichlet([1.5] * len(TRAITS))
    owner = dict(zip(groups, random.choice(len(TRAITS), len(groups), p=shares).tolist(), strict=True))
    owners = np.array([owner[features.groups[row]] for row in train])
    parts = []
    for number in range(len(TRAITS)):
        rows, kept = train[owners == number], random.beta(0.5, 0.4, len(features.labels))
        parts.append(rows[random.random(len(rows)) < kept[features.table.y[rows]]])
    return parts


def _is_enough(features: FeatureSet, rows: Rows, seed: int) -> bool:
    if len(rows) < LEAST_CLIPS or len({features.groups[row] for row in rows}) < 3:
        return False
    return len(set(features.table.y[rows].tolist())) >= LEAST_CLASSES


def _silo(
    features: FeatureSet, name: str, trait: Trait, rows: Rows, test: Rows, random: np.random.Generator
) -> UnlikeSilo:
    y, classes = features.table.y, np.unique(features.table.y[rows])
    groups = [features.groups[row] for row in rows]
    train, held_out = hold_out_groups(groups, HOLD_OUT, 0, [features.labels[label] for label in y[rows]])
    tested = test[np.isin(y[test], classes)]
    share = np.bincount(y[rows], minlength=len(features.labels)) / len(rows)
    of_class = np.bincount(y[tested], minlength=len(features.labels))
    weight = (share / np.maximum(of_class, 1))[y[tested]]
    own, others = _as_seen(features, rows, tested, trait, random)
    return UnlikeSilo(
        name,
        trait,
        own.rows(train),
        own.rows(held_out),
        tuple(groups[row] for row in held_out),
        others,
        tuple(features.groups[row] for row in tested),
        weight / weight.mean(),
    )


def _as_seen(
    features: FeatureSet, rows: Rows, tested: Rows, trait: Trait, random: np.random.Generator
) -> tuple[FeatureTable, FeatureTable]:
    """Return a silo's rows and its test rows with its trait."""
    own, others = features.table.rows(rows), features.table.rows(tested)
    classes = np.unique(own.y)
    if trait == "camera":
        spread, width = features.table.x.std(axis=0), own.x.shape[1]
        offset = CAMERA_OFFSET * spread * random.normal(size=width)
        scale = np.exp(CAMERA_GAIN * random.normal(size=width))
        seen = lambda x: np.ascontiguousarray(x * scale + offset, np.float32)  # noqa: E731
        return FeatureTable(seen(own.x), own.y), FeatureTable(seen(others.x), others.y)
    if trait == "wrong labels":
        wrong = random.random(len(own)) < WRONG_LABELS
        return FeatureTable(own.x, np.where(wrong, random.choice(classes, len(own)), own.y)), others
    if trait == "other words":
        called = np.arange(len(features.labels))
        pairs = random.permutation(classes)[: len(classes) // 2 * 2][:4].reshape(-1, 2)
        for one, other in pairs:
            called[one], called[other] = other, one
        return FeatureTable(own.x, called[own.y]), FeatureTable(others.x, called[others.y])
    return own, others
