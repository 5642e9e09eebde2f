"""Recipes: what they fill in, that the paper's stays as it was, and that the default one is worth having."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from flamest.agent.training.dataset import FeatureTable
from flamest.base.errors import UsageError
from flamest.coordinator.settings import RunTable
from flamest.experiments.partition import dirichlet
from flamest.experiments.simulation import SimulatedSilo, simulate
from flamest.fedproto.head import HeadSpec
from flamest.fedproto.recipes import completed, recipe_settings
from flamest.fedproto.records import RunSettings, Strategy, TrainSettings

# Canonical settings of a run of the paper's recipe, as releases wrote them before there were recipes.
PAPER = (
    b'{"run":"r","labels":["a","b"],"head":{"inputs":8,"outputs":2,"hidden":[512,256],"kind":"mlp"},"rounds":80,'
    b'"min_silos":2,"deadline_s":600.0,"fingerprint":"f","seed":0,"strategy":{"name":"fedavg","mu":0.0},'
    b'"train":{"epochs":5,"batch_size":128,"learning_rate":0.01,"weight_decay":0.0001}}'
)
WIDTH, CLASSES, GROUPS = 48, 6, 10


def grouped(groups: range, *, seed: int = 3) -> FeatureTable:
    """Clips of groups (people, say): values of very different sizes, and a group's own shift on all its clips."""
    centres = np.random.default_rng(seed).normal(size=(CLASSES, WIDTH))
    scale = np.exp(np.random.default_rng(seed + 1).normal(size=WIDTH))
    rows, labels = [], []
    for group in groups:
        random = np.random.default_rng([seed, group])
        shift, size = random.normal(size=WIDTH), random.uniform(0.5, 3)
        for label in range(CLASSES):
            clips = centres[label] + shift + random.normal(size=(3, WIDTH))
            rows.append(size * (5 + scale * clips))
            labels += [label] * 3
    return FeatureTable(np.concatenate(rows).astype(np.float32), np.array(labels))


def run_of(recipe, **changes) -> RunSettings:
    chosen = recipe_settings(recipe, WIDTH, CLASSES)
    names = tuple("abcdef"[:CLASSES])
    fields = {"run": "r", "labels": names, "head": chosen.head, "rounds": 40, "min_silos": 1, "deadline_s": 1.0}
    fields |= {"fingerprint": "f", "strategy": chosen.strategy, "train": chosen.train}
    return RunSettings(**{**fields, **changes})


def accuracy(run: RunSettings, silos, test: FeatureTable) -> float:
    last = simulate(run, silos, test=test).rounds[-1]
    return last.correct / last.count


def test_the_papers_recipe_has_the_bytes_of_earlier_releases():
    chosen = recipe_settings("paper", 8, 2)
    run = RunSettings("r", ("a", "b"), chosen.head, 80, 2, 600.0, "f", strategy=chosen.strategy, train=chosen.train)
    assert run.encode() == PAPER
    assert (chosen.head, chosen.train, chosen.strategy) == (HeadSpec(8, 2), TrainSettings(), Strategy())


def test_the_papers_recipe_fills_in_nothing():
    run = {"recipe": "paper", "train": {"epochs": 2}}
    assert completed(run) == run


def test_default_is_softmax_regression_from_zeros():
    chosen = recipe_settings("default", 8, 2, blocks=(3, 5))
    assert chosen.head == HeadSpec(8, 2, (), blocks=(3, 5), standardise=True, start="zero")
    assert chosen.train.learning_rate < TrainSettings().learning_rate
    assert chosen.train.learning_rate_decay < 1
    assert chosen.strategy.average_last > 1


def test_what_is_given_is_not_filled_in():
    given = {"train": {"learning_rate": 0.5}, "strategy": {"average_last": 2}, "head": {"standardise": False}}
    chosen = recipe_settings("default", 8, 2, given=given)
    assert (chosen.train.learning_rate, chosen.strategy.average_last, chosen.head.standardise) == (0.5, 2, False)


@pytest.mark.parametrize("given", [{"hidden": [16]}, {"head": {"kind": "rgcf", "blocks": [3, 5]}}])
def test_a_head_with_layers_is_standardised_and_starts_from_drawn_weights(given):
    chosen = recipe_settings("default", 8, 2, given=given)
    assert (chosen.head.standardise, chosen.head.start) == (True, "uniform")
    assert chosen.train == recipe_settings("default", 8, 2).train


def test_a_value_of_the_wrong_type_is_left_for_the_decoder():
    assert completed({"train": 3})["train"] == 3
    with pytest.raises(msgspec.ValidationError, match="train"):
        msgspec.convert({"name": "r", "labels": ["a"], "fingerprint": "f", **completed({"train": 3})}, RunTable)


def test_an_unknown_recipe_is_refused():
    with pytest.raises(UsageError, match="no recipe 'best'"):
        recipe_settings("best", 8, 2)


def test_default_is_better_than_the_papers_where_silos_differ():
    train, test = grouped(range(GROUPS)), grouped(range(GROUPS, 3 * GROUPS))
    parts = [train.rows(rows) for rows in dirichlet(train.y, silos=3, beta=0.1, seed=1, smallest=8).silos]
    silos = [SimulatedSilo(f"silo-{number}", rows) for number, rows in enumerate(parts)]
    assert accuracy(run_of("default"), silos, test) > accuracy(run_of("paper"), silos, test) + 0.1
