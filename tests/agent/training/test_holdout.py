"""Holding out whole groups."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from flamest.agent.training.holdout import hold_out_groups, hold_out_groups_independently
from flamest.base.errors import InvariantError, UsageError


def scenes(groups: int, labels: int, clips: int) -> tuple[list[str], list[str]]:
    """Every group holds every label, as in the mini-world."""
    rows = [(f"g{g}", f"l{c}") for g, c, _ in itertools.product(range(groups), range(labels), range(clips))]
    return [group for group, _ in rows], [label for _, label in rows]


def own_groups(groups: int, labels: int, clips: int) -> tuple[list[str], list[str]]:
    """Every label has groups of its own, as in UCF101."""
    rows = [(f"l{c}g{g}", f"l{c}") for g, c, _ in itertools.product(range(groups), range(labels), range(clips))]
    return [group for group, _ in rows], [label for _, label in rows]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("make", [scenes, own_groups])
def test_every_row_is_on_one_side_and_no_group_on_both(make: object, seed: int) -> None:
    groups, labels = (scenes if make is scenes else own_groups)(7, 4, 3)
    train, test = hold_out_groups(groups, 0.25, seed, labels)
    assert sorted([*train, *test]) == list(range(len(groups)))
    assert train.dtype == test.dtype == np.int64
    assert not {groups[i] for i in train} & {groups[i] for i in test}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("make", [scenes, own_groups])
def test_share_held_out_of_every_label_is_near_the_fraction(make: object, seed: int) -> None:
    groups, labels = (scenes if make is scenes else own_groups)(20, 5, 3)
    test = hold_out_groups(groups, 0.2, seed, labels)[1]
    assert [[labels[i] for i in test].count(f"l{c}") for c in range(5)] == [12] * 5


def test_label_with_two_groups_is_on_both_sides() -> None:
    groups, labels = own_groups(2, 6, 5)
    for side in hold_out_groups(groups, 0.05, 0, labels):
        assert {labels[i] for i in side} == {f"l{c}" for c in range(6)}


def test_label_with_one_group_stays_in_train() -> None:
    groups = ["a", "a", "b", "b", "c", "c"]
    labels = ["run", "jump", "run", "jump", "rare", "run"]
    for seed in range(10):
        train, test = hold_out_groups(groups, 0.5, seed, labels)
        assert "rare" in {labels[i] for i in train}
        assert len(test) > 0


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.99])
def test_neither_side_is_empty_with_two_groups(fraction: float) -> None:
    for labels in (None, ["run", "run", "jump"]):
        train, test = hold_out_groups(["a", "a", "b"], fraction, 3, labels)
        assert len(train) > 0
        assert len(test) > 0


def test_one_group_alone_is_all_train() -> None:
    train, test = hold_out_groups(["a"] * 4, 0.5, 0)
    assert list(train) == [0, 1, 2, 3]
    assert len(test) == 0


def test_nothing_is_held_out_at_fraction_zero() -> None:
    train, test = hold_out_groups(["a", "b", "c"], 0.0, 0)
    assert len(train) == 3
    assert len(test) == 0


def test_clip_without_a_group_is_a_group_of_its_own() -> None:
    train, test = hold_out_groups([None] * 50, 0.2, 1, ["run", "jump"] * 25)
    assert len(test) == 10
    assert len(train) == 40


def test_split_does_not_depend_on_the_order_of_the_clips() -> None:
    groups, labels = own_groups(6, 3, 4)
    test = {groups[i] for i in hold_out_groups(groups, 0.3, 5, labels)[1]}
    backwards = hold_out_groups(groups[::-1], 0.3, 5, labels[::-1])[1]
    assert {groups[::-1][i] for i in backwards} == test


def test_same_seed_same_split_and_another_seed_another() -> None:
    groups, labels = scenes(12, 3, 2)
    first, again, other = (hold_out_groups(groups, 0.25, seed, labels)[1] for seed in (0, 0, 1))
    assert list(first) == list(again)
    assert list(first) != list(other)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_fraction_outside_its_range_is_refused(fraction: float) -> None:
    for split in (hold_out_groups, hold_out_groups_independently):
        with pytest.raises(UsageError, match="share of clips"):
            split(["a", "b"], fraction, 0)


def test_labels_of_another_number_are_refused() -> None:
    with pytest.raises(InvariantError, match="2 groups and 1 labels"):
        hold_out_groups(["a", "b"], 0.5, 0, ["run"])


def drawn_groups(seed: int) -> list[str]:
    """Clips of groups of several sizes, one of them often the only one of its name."""
    random = np.random.default_rng(seed)
    return [f"g{number}" for number in random.integers(0, random.integers(1, 40), random.integers(1, 120))]


def test_groups_alone_every_row_is_on_one_side_no_group_on_both() -> None:
    for seed in range(50):
        groups = drawn_groups(seed)
        train, test = hold_out_groups_independently(groups, 0.3, seed)
        assert sorted([*train, *test]) == list(range(len(groups)))
        assert train.dtype == test.dtype == np.int64
        assert not {groups[i] for i in train} & {groups[i] for i in test}


def test_groups_alone_meet_the_share_within_four_standard_deviations() -> None:
    groups = [f"scene {number}" for number in range(20_000)]
    for seed, fraction in ((0, 0.2), (1, 0.2), (2, 0.5), (3, 0.9)):
        held_out = len(hold_out_groups_independently(groups, fraction, seed)[1]) / len(groups)
        assert abs(held_out - fraction) < 4 * (fraction * (1 - fraction) / len(groups)) ** 0.5


def test_groups_alone_hold_out_nothing_at_zero_and_depend_on_the_seed() -> None:
    groups = [f"g{number}" for number in range(300)]
    assert len(hold_out_groups_independently(groups, 0.0, 0)[1]) == 0
    first, again, other = (list(hold_out_groups_independently(groups, 0.3, seed)[1]) for seed in (0, 0, 1))
    assert first == again
    assert first != other
