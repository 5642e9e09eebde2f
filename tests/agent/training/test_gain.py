"""Gains between models on the same clips: intervals over groups, and the test that a gain is beyond doubt."""

from __future__ import annotations

import numpy as np
import pytest
from flamest.agent.training.gain import CLASS_CLIPS, DOUBT, class_gains, doubts, paired_gain
from scipy.stats import binomtest


def clips(*counts: tuple[bool, bool, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return (model, own) for so many clips of each outcome."""
    rows = [(model, own) for model, own, count in counts for _ in range(count)]
    return np.array([model for model, _ in rows]), np.array([own for _, own in rows])


def alone(count: int) -> list[str]:
    return [f"clip{number}" for number in range(count)]


@pytest.mark.parametrize(("better", "worse"), [(1, 0), (5, 0), (7, 1), (3, 3), (9, 2)])
def test_of_single_clips_the_doubt_is_mcnemars_exact_p_value(better, worse):
    model, own = clips((True, False, better), (False, True, worse), (True, True, 30), (False, False, 2))
    found = doubts(own, {"model": model}, alone(len(own)))["model"]
    assert found == pytest.approx(binomtest(better, better + worse, alternative="greater").pvalue)


def test_clips_of_one_group_are_no_evidence_beyond_the_group():
    model, own = clips((True, False, 40), (True, True, 10))
    assert doubts(own, {"model": model}, alone(50))["model"] < 1e-3
    assert doubts(own, {"model": model}, ["one"] * 40 + alone(10))["model"] == 0.5


def test_fewer_than_five_groups_that_differ_never_pass():
    for groups in range(1, 7):
        model, own = clips((True, False, 3 * groups))
        found = doubts(own, {"model": model}, [str(number // 3) for number in range(3 * groups)])["model"]
        assert (found <= DOUBT) == (groups >= 5)


def test_models_without_a_difference_are_in_doubt():
    same = np.array([True, False, True])
    assert doubts(same, {"a": same, "b": same}, alone(3)) == {"a": 1.0, "b": 1.0}
    assert doubts(same, {}, alone(3)) == {}


def test_many_groups_are_sampled_and_agree_with_the_exact_test():
    model, own = clips((True, False, 15), (False, True, 5), (True, True, 20))
    found = doubts(own, {"model": model}, alone(40))["model"]
    assert found == pytest.approx(binomtest(15, 20, alternative="greater").pvalue, abs=0.01)
    assert found == doubts(own, {"model": model}, alone(40))["model"], "the same clips give the same answer"


def test_candidates_that_are_no_better_pass_one_time_in_twenty():
    random, passed, trials = np.random.default_rng(3), 0, 800
    groups = [str(number // 3) for number in range(36)]
    for _ in range(trials):
        hard = np.repeat(random.random(12), 3)  # a group's clips are alike
        own, *others = (random.random(36) < hard for _ in range(5))
        passed += min(doubts(own, {str(n): each for n, each in enumerate(others)}, groups).values()) <= DOUBT
    assert passed / trials <= DOUBT + 2 * np.sqrt(DOUBT * (1 - DOUBT) / trials)


def test_equal_candidates_cost_nothing():
    model, own = clips((True, False, 6), (True, True, 20))
    one = doubts(own, {"a": model}, alone(26))["a"]
    assert doubts(own, {"a": model, "b": model, "c": model}, alone(26)) == dict.fromkeys("abc", one)


def test_the_interval_has_the_gain_nineteen_times_in_twenty():
    random, trials, gain = np.random.default_rng(4), 600, 0.15
    for size in (1, 4):
        groups = [str(number // size) for number in range(40 * size)]
        covered = 0
        for _ in range(trials):
            parts = random.dirichlet((0.2 / 0.1, 0.05 / 0.1, 0.75 / 0.1), size=40).repeat(size, axis=0)
            drawn = (random.random(len(parts))[:, None] > parts.cumsum(axis=1)).sum(axis=1)
            found = paired_gain(drawn == 0, drawn == 1, groups)
            covered += found.low <= gain <= found.high
        assert covered / trials >= 0.93


def test_agreement_on_few_clips_is_no_certainty():
    same = np.ones(6, np.bool_)
    few = paired_gain(same, same, alone(6))
    assert (few.gain, few.clips, few.groups) == (0.0, 6, 6)
    assert few.low < -0.2
    assert few.high > 0.2


def test_one_group_says_nothing():
    found = paired_gain(np.ones(9, np.bool_), np.zeros(9, np.bool_), ["one"] * 9)
    assert (found.gain, found.low, found.high) == (1.0, -1.0, 1.0)


def test_a_class_of_few_clips_or_groups_has_no_gain():
    model, own = clips((True, False, 3 * CLASS_CLIPS))
    y = np.repeat([0, 1, 2], CLASS_CLIPS)
    groups = [*alone(CLASS_CLIPS), *(f"scene{number % 2}" for number in range(CLASS_CLIPS)), *alone(CLASS_CLIPS)]
    y[-1] = 3  # a clip of another class
    assert list(class_gains(model, own, groups, y)) == [0]
