"""Splits over silos: every partition, and one that is handed in."""

from __future__ import annotations

import flamest as fl
import numpy as np
import pytest
from flamest.agent.training.holdout import hold_out_groups
from flamest.experiments.partition import dirichlet, iid, label_skew


def held_out(features: fl.Features, seed: int) -> fl.Features:
    rest, _ = hold_out_groups(features.groups, 0.2, seed, labels=features.names)
    return features[rest]


def test_the_test_set_holds_out_whole_groups(features):
    silos, test = fl.split(features, silos=4, beta=0.6, seed=0)
    trained = {group for silo in silos.values() for group in silo.groups}
    assert len(test) == 40
    assert not trained & set(test.groups)
    assert sum(map(len, silos.values())) == 160
    assert list(silos) == ["silo-1", "silo-2", "silo-3", "silo-4"]


@pytest.mark.parametrize("partition", ["dirichlet", "iid", "label-skew", "a label skew's record"])
def test_every_partition_is_that_of_the_experiments(features, partition):
    rest = held_out(features, 7)
    skew = fl.LabelSkew(most_silos=8, base=0.3)
    expected = {
        "dirichlet": lambda: dirichlet(rest.y, silos=3, beta=0.6, seed=7, smallest=6),
        "iid": lambda: iid(len(rest), silos=3, seed=7),
        "label-skew": lambda: label_skew(rest.y, silos=3, seed=7),
        "a label skew's record": lambda: label_skew(rest.y, silos=3, seed=7, skew=skew),
    }[partition]()
    silos, _ = fl.split(features, silos=3, seed=7, partition=skew if partition not in fl_names() else partition)
    assert [silo.clips for silo in silos.values()] == [rest[rows].clips for rows in expected.silos]
    assert silos.partition is not None
    assert silos.partition.scheme == expected.scheme


def fl_names() -> tuple[str, ...]:
    return ("dirichlet", "iid", "label-skew")


def test_the_same_seed_gives_the_same_split_and_another_another(features):
    def clips(seed: int) -> list[tuple[str, ...]]:
        return [silo.clips for silo in fl.split(features, silos=4, seed=seed).silos.values()]

    assert clips(1) == clips(1) != clips(2)


def test_a_partition_is_a_function_of_features_silos_and_random(features):
    def by_group(given, silos, random):
        owner = dict(zip(sorted(set(given.groups)), random.permutation(16) % silos, strict=True))
        return [[row for row, group in enumerate(given.groups) if owner[group] == silo] for silo in range(silos)]

    silos, test = fl.split(features, silos=4, seed=3, partition=by_group)
    again, _ = fl.split(features, silos=4, seed=3, partition=by_group)
    groups = [set(silo.groups) for silo in silos.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 16
    assert not set.union(*groups) & set(test.groups)
    assert [silo.clips for silo in silos.values()] == [silo.clips for silo in again.values()]
    assert silos.partition is None


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (5, "it returned int"),
        ([], "it returned 0 silos, expected 2"),
        ([[0], [1], [2]], "it returned 3 silos, expected 2"),
        ([[0], []], "silo 2 got"),
        ([[0], [0.5]], "silo 2 got"),
        ([[[0], [1, 2]], [3]], "it returned list"),
        ([[True, False], [False, True]], r"silo 1 got bool\[2\]"),
        ([[0, 1], [160]], "silo 2 got rows 160 to 160, expected 0 to 159"),
        ([[0, 1], [1]], "a row is in it twice"),
    ],
)
def test_a_partition_that_returns_no_split_is_refused(features, returned, message):
    with pytest.raises(fl.FlamestError, match=message) as raised:
        fl.split(features, silos=2, partition=lambda _features, _silos, _random: returned)
    assert raised.value.code == "bad_partition"
    assert raised.value.fix


def test_a_mask_over_all_rows_gives_a_silo(features):
    silos, _ = fl.split(features, silos=2, partition=lambda given, *_: [given.y == 0, given.y > 0])
    assert [set(silo.y.tolist()) for silo in silos.values()] == [{0}, {1, 2, 3, 4}]


def test_a_class_that_is_wholly_held_out_is_a_warning():
    f = fl.Features.from_arrays(np.eye(4), ["a", "a", "b", "b"], groups=["g", "g", "h", "h"])
    with pytest.warns(UserWarning, match=r"all clips of [ab] are in the test set"):
        _, test = fl.split(f, silos=1, partition="iid")
    assert len(test) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"partition": lambda *_: [], "beta": 0.6}, "beta: not with a partition of one's own"),
        ({"partition": lambda *_: [], "smallest": 2}, "smallest: not with a partition of one's own"),
        ({"partition": "dirichle"}, "there is no partition 'dirichle'; known: dirichlet, iid, label-skew"),
        ({"partition": "iid", "beta": 0.6}, "beta is a parameter of the partition dirichlet, not of iid"),
        ({"partition": "label-skew", "smallest": 3}, "the partition label-skew has no smallest silo"),
        ({"silos": 0}, "silos is 0, expected a whole number of 1 or more"),
        ({"beta": -1.0}, "expected a number above 0"),
        ({"test": 1.0}, "the share of clips to hold out is 1.0"),
        ({"silos": 400}, "cannot give each of 400 silos"),
    ],
)
def test_arguments_that_no_split_has_are_refused(features, arguments, message):
    with pytest.raises(fl.FlamestError, match=message):
        fl.split(features, **arguments)


def test_clips_without_a_label_are_left_out_and_one_group_stays_whole():
    f = fl.Features.from_arrays(np.eye(8), ["a", "b", "a", "b", "a", "b", "", ""], groups=["g"] * 8)
    with pytest.raises(fl.FlamestError, match="all clips are of one group"):
        fl.split(f, silos=2)
    silos, test = fl.split(f, silos=2, test=0, partition="iid")
    assert len(test) == 0
    assert sum(map(len, silos.values())) == 6
    with pytest.raises(fl.FlamestError, match="no clip has a label"):
        fl.split(f[[6, 7]])


def test_a_split_prints_its_silos_and_names_a_missing_one(split):
    silos, test = split
    lines = repr(fl.split(silos.union, silos=2, seed=0)).splitlines()
    assert lines[0].split() == ["silo", "clips", "classes", "largest", "class"]
    assert lines[-1].startswith("test: Features: ")
    assert len(silos.union) == sum(map(len, silos.values()))
    with pytest.raises(fl.FlamestError, match="there is no silo 'silo-9'; there are silo-1, silo-2"):
        silos["silo-9"]
    with pytest.raises(fl.FlamestError, match="there is no silo 4"):
        silos[4]
    assert silos[0] is silos["silo-1"]
    assert silos[-1] is silos["silo-4"]
    assert len(test) == 40
