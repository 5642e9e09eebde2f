"""A two-sample test over whole groups: Gretton's statistic, its p-value, its level."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from flamest.agent import two_samples
from flamest.agent.two_samples import compare_clips


def samples(random, *, shift=0.0, groups=(24, 12), clips=3, width=6):
    """Clips of two sides whose groups differ by more than clips of one group do."""
    sides, names = [], []
    for side, count in enumerate(groups):
        centres = random.normal(size=(count, width)) + shift * side
        sides.append((centres[:, None] + 0.2 * random.normal(size=(count, clips, width))).reshape(-1, width))
        names.append([f"{side}/{number // clips}" for number in range(count * clips)])
    return sides[0], sides[1], (names[0], names[1])


def mean_discrepancy(first, second):
    """Gretton's squared mean discrepancy as its formula has it, over single clips; the width is the median distance."""
    pooled = np.concatenate([first, second])
    apart = [((a - b) ** 2).sum() for a, b in itertools.combinations(pooled, 2)]

    def mean(some, others):
        return np.mean([np.exp(-((a - b) ** 2).sum() / np.median(apart)) for a in some for b in others])

    return mean(first, first) + mean(second, second) - 2 * mean(first, second)


def test_the_statistic_is_that_of_its_formula_for_groups_of_one_clip():
    random = np.random.default_rng(0)
    first, second = random.normal(size=(7, 3)), random.normal(size=(5, 3)) + 1
    found = compare_clips(first, second, (list("abcdefg"), list("hijkl")), permutations=9)
    assert found.mmd2 == pytest.approx(mean_discrepancy(first, second), rel=1e-9)
    assert (found.clips, found.groups) == ((7, 5), (7, 5))


def test_the_p_value_is_that_of_all_permutations():
    random = np.random.default_rng(3)
    first, second = random.normal(size=(5, 2)), random.normal(size=(4, 2)) + 0.8
    pooled = np.concatenate([first, second])
    every = []
    for chosen in itertools.combinations(range(9), 5):
        others = [row for row in range(9) if row not in chosen]
        every.append(mean_discrepancy(pooled[list(chosen)], pooled[others]))
    exact = np.mean(np.array(every) >= every[0] - 1e-12)
    found = compare_clips(first, second, (list("abcde"), list("fghi")), permutations=4999)
    assert 0.01 < exact < 0.5
    assert found.p == pytest.approx(exact, abs=0.02)


def test_without_drift_small_p_values_are_as_rare_as_they_say():
    random = np.random.default_rng(7)
    p = [compare_clips(*samples(random), permutations=199, seed=number).p for number in range(200)]
    assert np.mean(np.array(p) <= 0.05) <= 0.1  # 10 of 200 expected, three standard deviations are 9
    assert 0.4 < np.mean(p) < 0.6


def test_a_shift_is_found_where_there_is_one():
    random = np.random.default_rng(5)
    first, second, groups = samples(random, shift=1.0)
    assert compare_clips(first, second, groups).p <= 0.001
    few = samples(random, groups=(6, 4), clips=25)
    alone = tuple([str(number) for number in range(len(side))] for side in few[:2])
    assert compare_clips(*few).p > 0.05
    assert compare_clips(few[0], few[1], alone).p <= 0.001


def test_parts_of_the_embedding_weigh_alike_however_large_their_numbers():
    random = np.random.default_rng(2)
    first, second, groups = samples(random, width=4)
    second[:, :2] += 2.0  # the drift is in the first part, the second one is a thousand times larger
    scale = np.array([1, 1, 1000, 1000])
    assert compare_clips(first * scale, second * scale, groups, widths=(2, 2)).p <= 0.01
    assert compare_clips(first * scale, second * scale, groups).p > 0.05


def test_of_many_clips_whole_groups_are_compared(monkeypatch):
    monkeypatch.setattr(two_samples, "MOST_CLIPS", 50)
    first, second, groups = samples(np.random.default_rng(1), groups=(40, 10), clips=4)
    found = compare_clips(first, second, groups, permutations=99)
    assert (found.clips, found.groups) == ((48, 40), (12, 10))
    one = [["only"] * len(first), ["other"] * len(second)]
    assert compare_clips(first, second, (one[0], one[1]), permutations=9).clips == (50, 40)


def test_equal_embeddings_are_no_drift():
    same = np.ones((10, 3))
    names = [str(number) for number in range(10)]
    assert compare_clips(same, same, (names, names), permutations=99).p == 1.0
