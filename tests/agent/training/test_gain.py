"""Gains between models on the same clips: intervals over groups, and the test that a gain is beyond doubt."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from flamest.agent.training.gain import (
    ALL_FLIPS,
    CLASS_CLIPS,
    DOUBT,
    accuracy_interval,
    class_gains,
    doubts,
    paired_gain,
)
from scipy.stats import binomtest, t


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


def test_a_few_groups_say_nothing_however_many_clips_they_have():
    for groups in range(1, 5):
        names = [f"g{number % groups}" for number in range(60)]
        found = paired_gain(np.ones(60, np.bool_), np.zeros(60, np.bool_), names)
        assert (found.gain, found.low, found.high) == (1.0, -1.0, 1.0)
    five = paired_gain(np.ones(60, np.bool_), np.zeros(60, np.bool_), [f"g{number % 5}" for number in range(60)])
    assert five.low > 0


def test_the_interval_holds_where_few_groups_of_many_clips_differ():
    """Eight scenes of twelve clips, each nearly all alike: one added clip had the gain in half of the cases."""
    random, covered, trials = np.random.default_rng(6), 0, 400
    groups = [str(number // 12) for number in range(96)]
    for _ in range(trials):
        parts = random.dirichlet((0.015, 0.003, 0.282), size=8).repeat(12, axis=0)
        drawn = (random.random(96)[:, None] > parts.cumsum(axis=1)).sum(axis=1)
        found = paired_gain(drawn == 0, drawn == 1, groups)
        covered += found.low <= 0.04 <= found.high
    assert covered / trials >= 0.95


def test_a_class_of_few_clips_or_groups_has_no_gain():
    model, own = clips((True, False, 3 * CLASS_CLIPS))
    y = np.repeat([0, 1, 2], CLASS_CLIPS)
    groups = [*alone(CLASS_CLIPS), *(f"scene{number % 2}" for number in range(CLASS_CLIPS)), *alone(CLASS_CLIPS)]
    y[-1] = 3  # a clip of another class
    assert list(class_gains(model, own, groups, y)) == [0]


def enumerated(own: np.ndarray, candidates: dict[str, np.ndarray], groups: list[str]) -> dict[str, float]:
    """The p-values by every choice of signs, one after the other."""
    names = sorted(set(groups))
    sums = {
        name: [sum(scores[row] - own[row] for row in range(len(own)) if groups[row] == group) for group in names]
        for name, scores in candidates.items()
    }

    def statistic(differences, signs):
        length = math.sqrt(sum(one * one for one in differences))
        return sum(sign * one for sign, one in zip(signs, differences, strict=True)) / length

    largest = [
        max(statistic(each, signs) for each in sums.values()) for signs in itertools.product((1, -1), repeat=len(names))
    ]
    return {
        name: sum(one >= statistic(each, [1] * len(names)) - 1e-9 for one in largest) / len(largest)
        for name, each in sums.items()
    }


@pytest.mark.parametrize("seed", range(6))
def test_the_doubts_are_those_of_every_choice_of_signs(seed):
    random = np.random.default_rng(seed)
    groups = [f"g{number}" for number in range(8) for _ in range(int(random.integers(1, 5)))]
    own = random.random(len(groups))
    candidates = {name: np.clip(own + random.normal(0.15, 0.3, len(own)), 0, 1) for name in ("a", "b", "c")}
    assert doubts(own, candidates, groups) == pytest.approx(enumerated(own, candidates, groups))


def test_two_candidates_worked_out_by_hand():
    """Differences (1, 1) and (1, -1): the largest statistic of the four choices is twice sqrt(2) and twice 0."""
    own = np.array([0.0, 1.0])
    found = doubts(own, {"both": np.array([1.0, 2.0]), "one": np.array([1.0, 0.0])}, ["g", "h"])
    assert found["one"] == 1.0
    assert found["both"] == 0.5, "sqrt(2) is reached at (+, +), and by the other one at (+, -)"


def test_beyond_the_enumerated_groups_p_values_are_never_zero():
    groups = alone(ALL_FLIPS + 8)
    found = doubts(np.zeros(len(groups)), {"model": np.ones(len(groups))}, groups)["model"]
    assert 0 < found < 1e-3


def test_a_candidate_like_the_own_head_stays_in_doubt():
    model, own = clips((True, False, 9), (True, True, 20))
    found = doubts(own, {"same": own, "better": model}, alone(29))
    assert (found["same"], found["better"]) == (1.0, 2.0**-9)


def test_an_interval_worked_out_by_hand():
    """Differences 1, 1, 0, 0, 0, and 1 and -1 added: mean 2/7, squares about it 24/7, error 2/7, with 4 degrees."""
    found = paired_gain(np.array([1, 1, 0, 0, 0], bool), np.zeros(5, bool), alone(5))
    assert found.gain == pytest.approx(2 / 5)
    assert found.low == pytest.approx(2 / 7 - t.ppf(0.975, 4) * 2 / 7)
    assert found.high == 1.0
    assert found.text == "+40.0 points (95 % interval -50.8 to +100.0)"


def test_an_interval_of_accuracy_worked_out_by_hand():
    assert accuracy_interval(np.array([1, 1, 1, 0], bool), list("gghh")) == (0.0, 1.0), "one degree of freedom"
    many = accuracy_interval(np.arange(40) < 30, alone(40))
    values = np.array([1] * 32 + [0] * 12)
    error = values.std(ddof=1) / np.sqrt(44)
    assert many == pytest.approx((32 / 44 - t.ppf(0.975, 39) * error, 32 / 44 + t.ppf(0.975, 39) * error))
