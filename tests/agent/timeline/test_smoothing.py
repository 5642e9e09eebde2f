"""Smoothing over time: a single window keeps its own answer, and one odd window among many changes nothing."""

import itertools
import math

import numpy as np
import pytest
from flamest.agent.timeline import smoothing
from flamest.agent.timeline.smoothing import Smoother, Smoothing


def smoothed(evidence, **settings):
    """States of all windows, and how many were decided before the end."""
    smoother = Smoother(evidence.shape[1], Smoothing(**settings), stride_s=1.5, share=0.5)
    states = list(itertools.chain.from_iterable(smoother.add(row) for row in evidence))
    early = len(states)
    return states + smoother.end(), early


def clear(labels, states=4, strength=4.0):
    """Evidence for these states, each clear."""
    return np.array([[0.0 if state == label else -strength for state in range(states)] for label in labels])


def best_sequence(evidence, stay, leave, share):
    """The best of all sequences, tried one by one."""
    best, found = -math.inf, ()
    for path in itertools.product(range(evidence.shape[1]), repeat=len(evidence)):
        score = sum(share * evidence[at, state] for at, state in enumerate(path))
        score += sum(stay if one == other else leave for one, other in itertools.pairwise(path))
        if score > best + 1e-9:
            best, found = score, path
    return list(found)


def test_an_odd_window_is_outvoted_and_a_lasting_change_is_not():
    states, _ = smoothed(clear([0] * 8 + [1] + [0] * 8 + [2] * 8))
    assert states == [0] * 17 + [2] * 8


def test_the_sequence_is_the_best_of_all_and_decided_early():
    random = np.random.default_rng(3)
    for _ in range(20):
        evidence = -4 * random.random((7, 3))
        smoother = Smoother(3, Smoothing(seconds=6), stride_s=1.5, share=0.5)
        states = list(itertools.chain.from_iterable(smoother.add(row) for row in evidence)) + smoother.end()
        assert states == best_sequence(evidence, smoother._stay, smoother._leave, 0.5)
    labels = np.repeat(random.integers(0, 4, 30), 10)
    states, early = smoothed(clear(labels))
    assert states == labels.tolist()
    assert early > 280, "a stream of windows is not kept until its end"


def test_undecided_windows_are_bounded_however_unclear_the_evidence(monkeypatch):
    monkeypatch.setattr(smoothing, "MOST_UNDECIDED", 20)
    smoother = Smoother(3, Smoothing(), stride_s=1.5, share=0.5)
    decided = []
    for _ in range(100):
        decided += smoother.add(np.array([0.0, 0.0, -4.0]))
        assert smoother._undecided <= 21
        assert len(smoother._came_from) <= 20
    assert len(decided + smoother.end()) == 100
    assert set(decided) == {0}


@pytest.mark.parametrize("doubt", [-math.inf, -3.0, -0.01, 0.01, 2.0, 90.0])
def test_one_window_alone_gets_the_answer_that_it_has_without_smoothing(doubt):
    probability = np.array([0.2, 0.5, 0.3])
    smoother = Smoother(4, Smoothing(), stride_s=1.5, share=0.5)
    states = smoother.add(Smoothing().evidence(probability, doubt)) + smoother.end()
    assert states == [3 if doubt > 0 else 1]


def test_evidence_of_one_window_is_bounded_also_of_a_certain_one():
    settings = Smoothing()
    certain = settings.evidence(np.array([1.0, 0.0, 0.0]), -500.0)
    assert certain.tolist() == [0.0, *[-settings.most_evidence] * 3]
    doubtful = settings.evidence(np.array([1.0, 0.0, 0.0]), 500.0)
    assert doubtful.tolist() == [0.0, *[-settings.most_doubt] * 2, settings.most_doubt]
    assert settings.evidence(np.array([1.0, 0.0]), -math.inf)[-1] == -math.inf


def test_unknown_that_is_never_answered_stays_out_of_the_sequence():
    evidence = np.array([Smoothing().evidence(np.array([0.4, 0.35, 0.25]), -math.inf)] * 10)
    states, _ = smoothed(evidence)
    assert states == [0] * 10


def test_a_new_sequence_begins_after_the_end_of_one():
    smoother = Smoother(3, Smoothing(seconds=1000), stride_s=1.5, share=0.5)
    first = list(itertools.chain.from_iterable(smoother.add(row) for row in clear([0] * 5, 3))) + smoother.end()
    second = smoother.add(clear([1], 3)[0]) + smoother.end()
    assert (first, second) == ([0] * 5, [1])
    assert smoother.end() == []
