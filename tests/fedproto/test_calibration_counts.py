"""A calibration of the silos' counts is as good as one of their clips, and promises no more with noise."""

import math

import numpy as np
import pytest
from flamest.fedproto.calibration import fit_temperature, is_known, known_scores, probabilities
from flamest.fedproto.calibration_counts import (
    BINS,
    NOTHING_UNKNOWN,
    ClassScores,
    ConfidenceSums,
    ScoreCounts,
    Weighed,
    calibration_of,
    confidence_sums,
    edge_threshold,
    score_edges,
    score_histogram,
    scores_at,
    temperature_of,
)

CLASSES = 6


def clips(count: int, seed: int, sharpness: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits of clips whose classes are drawn from their probabilities, then sharpened."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(count, CLASSES)) * 3
    chances = probabilities(logits)
    y = np.array([random.choice(CLASSES, p=row) for row in chances])
    return logits * sharpness, y


def sums_of(logits: np.ndarray, y: np.ndarray, noise: float = 0.0, seed: int = 0) -> ConfidenceSums:
    random = np.random.default_rng(seed)
    excess, lost = confidence_sums(logits, y)
    return ConfidenceSums(
        round(excess + random.normal() * noise), tuple(round(value + random.normal() * noise) for value in lost)
    )


def counts_of(logits: np.ndarray, temperature: float, noise: float = 0.0, seed: int = 0) -> ScoreCounts:
    histogram = score_histogram(scores_at(logits, temperature), CLASSES)
    drawn = np.random.default_rng(seed).normal(size=BINS) * noise
    return ScoreCounts(tuple(int(value) for value in np.rint(histogram + drawn)))


@pytest.mark.parametrize("sharpness", [0.2, 0.7, 1.0, 2.5, 9.0])
def test_silos_sums_give_the_temperature_that_their_clips_give(sharpness):
    parts = [clips(400, seed, sharpness) for seed in range(4)]
    reports = [(Weighed(400, 1.0, 0.0), sums_of(*part)) for part in parts]
    whole = fit_temperature(np.concatenate([one for one, _ in parts]), np.concatenate([y for _, y in parts]))
    assert temperature_of(reports) == pytest.approx(whole, rel=0.12)
    assert temperature_of(reports) == pytest.approx(sharpness, rel=0.15)


def test_noise_leaves_the_temperature_of_many_clips_nearly_alone():
    parts = [clips(500, seed, 2.0) for seed in range(4)]
    found = []
    for seed in range(20):
        reports = [(Weighed(500, 1.0, 1.5), sums_of(*part, 1.5, 10 * seed + k)) for k, part in enumerate(parts)]
        found.append(temperature_of(reports))
    assert np.mean(found) == pytest.approx(2.0, rel=0.1)
    assert np.std(found) < 0.25


def test_where_every_clip_is_right_the_temperature_stays_finite():
    logits = np.full((40, CLASSES), -5.0)
    logits[:, 0] = 5.0
    found = temperature_of([(Weighed(40, 1.0, 0.0), sums_of(logits, np.zeros(40, np.int64)))])
    assert 1 / 32 <= found <= 32
    assert temperature_of([(Weighed(18, 1.0, 0.0), ConfidenceSums(0, (0,) * 10))]) is None


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("noise", [0.0, 1.5])
def test_known_clips_reach_the_threshold_at_least_as_often_as_asked(coverage, noise):
    random, kept = np.random.default_rng(5), []
    for seed in range(60):
        parts = [clips(150, int(random.integers(1 << 30))) for _ in range(3)]
        reports = [
            (Weighed(150, 1.0, noise), counts_of(one, 1.0, noise, 10 * seed + k)) for k, (one, _) in enumerate(parts)
        ]
        made = calibration_of(1.0, reports, CLASSES, coverage)
        new, _ = clips(400, int(random.integers(1 << 30)))
        kept.append(is_known(probabilities(new), made).mean())
    assert coverage - 0.006 <= np.mean(kept) <= coverage + 0.2 * (1 - coverage) + 0.01


def test_a_threshold_is_the_lower_edge_of_its_bin():
    scores = np.linspace(-0.5, 2.5, 400)
    threshold = edge_threshold(score_histogram(scores, CLASSES).astype(float), 400, CLASSES, 0.95)
    edges = score_edges(CLASSES)
    exact = np.sort(scores)[round(401 * 0.05) - 1]
    assert threshold in edges
    assert edges[np.searchsorted(edges, exact, side="right") - 1] == threshold
    assert (np.sum(scores < threshold) + 1) / 401 <= 0.05


def test_in_doubt_nothing_is_unknown():
    low = np.zeros(BINS)
    low[0] = 100  # every clip below the lowest edge
    assert edge_threshold(low, 100, CLASSES, 0.95) == NOTHING_UNKNOWN
    assert calibration_of(1.0, [(Weighed(18, 1.0, 0.0), ScoreCounts((0,) * BINS))], CLASSES) is None


def test_a_class_with_enough_clips_has_a_threshold_of_its_own():
    sure, unsure = np.zeros(BINS, int), np.zeros(BINS, int)
    sure[25], unsure[12] = 100, 60
    by_class = (ClassScores(2, 100, tuple(sure.tolist())), ClassScores(4, 10, tuple([0] * 12 + [10] + [0] * 16)))
    counts = ScoreCounts(tuple((sure + unsure).tolist()), by_class)
    made = calibration_of(1.0, [(Weighed(160, 1.0, 0.0), counts)], CLASSES)
    edges = score_edges(CLASSES)
    assert made.classes == (2,)
    assert made.thresholds[2] == edges[24]
    assert set(made.thresholds[:2] + made.thresholds[3:]) == {edges[11]}
    noisy = calibration_of(1.0, [(Weighed(160, 1.0, 6.0), counts)], CLASSES)
    assert noisy.classes == (), "with so much noise the class's 5 clips below a threshold do not show"


def test_a_silo_counts_for_no_more_than_its_share():
    honest = [(Weighed(100, 1.0, 0.0), counts_of(clips(100, seed)[0], 1.0)) for seed in range(3)]
    boast = np.zeros(BINS, int)
    boast[-1] = 10**6
    hostile = ScoreCounts(tuple(boast.tolist()))
    limited = calibration_of(1.0, [*honest, (Weighed(10**6, 1e-6, 0.0), hostile)], CLASSES)
    assert limited.thresholds == calibration_of(1.0, honest, CLASSES).thresholds
    assert limited.clips == 10**6 + 300


def test_scores_of_two_classes_fall_into_bins():
    scores = known_scores(probabilities(np.array([[0.0, 0.0], [1.0, 0.0], [40.0, 0.0]])))
    assert score_histogram(scores, 2).sum() == 3
    assert math.isfinite(score_edges(2)[-1])
