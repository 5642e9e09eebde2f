"""Calibration of a federation's model: what a silo counts, and what follows from the silos' counts together.

A silo reports numbers of clips alone, in two steps (docs/decisions/046-calibration-by-counts.md):

1. *Confidence.* Of its held-out clips, the sum of the largest probabilities less the number of correct predictions,
   at temperature 1, and how much that sum falls between neighbouring temperatures of ``GRID``. The temperature at which
   the mean confidence of all silos' clips equals their accuracy follows from it ("expectation consistency", Clarté et
   al. 2023, arXiv 2303.02644).
2. *Scores.* At that temperature, how many clips have a score of known (``calibration``) between neighbouring edges.
   The edges are fixed but for the number of classes. Thresholds are edges (split conformal; Lu et al. 2023, arXiv
   2305.17564, for federations): the highest with so few clips below that the coverage holds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .calibration import COVERAGE, MAX_CLIPS, MAX_LOG_ODDS, Calibration, Floats, known_scores, probabilities

GRID = tuple(2.0**power for power in range(-5, 6))  # temperatures
REFERENCE = 5  # index of temperature 1
EDGES = (*(step / 20 for step in range(-15, 6)), 0.4, 0.6, 0.8, 1.1, 1.5, 2.0, 3.0)  # in units of ln(classes)
BINS = len(EDGES) + 1
SPREAD = 2  # running sums of a report go from -SPREAD to SPREAD times its clips; without noise from -1 to 1
PRIOR = 1.0  # standard deviation of ln(temperature), as far as noise leaves it open
NOTHING_UNKNOWN = -MAX_LOG_ODDS  # threshold that every clip reaches
Counts = tuple[int, ...]


@dataclass(frozen=True)
class ConfidenceSums:
    """Sums of largest probabilities, in clips, rounded to whole ones."""

    excess: int  # at temperature 1, less the correct predictions: more than 0 is too sure
    lost: Counts  # [10], what the sum falls by from one temperature of GRID to the next

    def curve(self) -> tuple[int, ...]:
        """Return the excess at every temperature of ``GRID``."""
        above = [self.excess - sum(self.lost[REFERENCE:stop]) for stop in range(REFERENCE, len(GRID))]
        below = [self.excess + sum(self.lost[start:REFERENCE]) for start in range(REFERENCE)]
        return (*below, *above)

    def problems(self, clips: int) -> list[str]:
        """Return what cannot be of so many held-out clips."""
        if len(self.lost) != len(GRID) - 1:
            return [f"lost: {len(self.lost)} numbers, expected {len(GRID) - 1}"]
        return [] if all(abs(value) <= SPREAD * clips for value in self.curve()) else [_beyond("sums", clips)]


@dataclass(frozen=True)
class ClassScores:
    """Scores of the clips that the model gives one class."""

    label: int  # index in the run's labels
    clips: int
    counts: Counts  # [29]


@dataclass(frozen=True)
class ScoreCounts:
    """Numbers of clips by score: a histogram over ``score_edges``, with open ends."""

    counts: Counts  # [29], of all held-out clips
    by_class: tuple[ClassScores, ...] = ()  # ascending labels; only what the silo's policy allows

    def problems(self, clips: int) -> list[str]:
        """Return what cannot be of so many held-out clips."""
        labels = [one.label for one in self.by_class]
        if labels != sorted(set(labels)):
            return ["by_class: expected each class once, ascending"]
        if any(len(counts) != BINS for counts in self._histograms()):
            return [f"counts: expected {BINS} numbers"]
        sums = [value for counts in self._histograms() for value in itertools.accumulate(counts)]
        sums += [one.clips for one in self.by_class]
        return [] if all(abs(value) <= SPREAD * clips for value in sums) else [_beyond("counts", clips)]

    def _histograms(self) -> list[Counts]:
        return [self.counts, *(one.counts for one in self.by_class)]


def _beyond(name: str, clips: int) -> str:
    return f"{name}: beyond {SPREAD} times the {clips} clips that they are of"


@dataclass(frozen=True)
class CountedClips:
    """A silo's numbers for one of the two steps."""

    clips: int  # held out
    noise: float  # standard deviation of the noise on each number, in clips
    figures: ConfidenceSums | ScoreCounts


@dataclass(frozen=True)
class Weighed:
    """The part of a silo's report that counts."""

    clips: int  # held-out ones, as reported
    share: float  # of them that counts, 0 to 1
    noise: float  # standard deviation of the noise on each number, in clips


# --- a silo's part, before noise and rounding ---


def confidence_sums(logits: npt.NDArray[np.float64], y: npt.NDArray[np.int64]) -> tuple[float, Floats]:
    """Return ``excess`` and ``lost`` [10] of held-out clips' finite ``logits`` [N, classes] and classes ``y`` [N]."""
    sums = np.array([probabilities(logits / temperature).max(axis=1).sum() for temperature in GRID])
    correct = int((logits.argmax(axis=1) == y).sum())
    return float(sums[REFERENCE]) - correct, sums[:-1] - sums[1:]


def score_edges(classes: int) -> Floats:
    """Return the edges between scores, in log-odds, [28]."""
    return np.asarray(EDGES) * math.log(classes)


def score_histogram(scores: npt.NDArray[np.float64], classes: int) -> npt.NDArray[np.int64]:
    """Return the numbers of ``scores`` [N] between neighbouring edges, [29]; a score on an edge is above it."""
    return np.bincount(np.searchsorted(score_edges(classes), scores, side="right"), minlength=BINS).astype(np.int64)


def scores_at(logits: npt.NDArray[np.float64], temperature: float) -> Floats:
    """Return the scores of known [N] of finite ``logits`` [N, classes]."""
    return known_scores(probabilities(logits / temperature))


# --- the coordinator's part ---


def enough_clips(clips: float, coverage: float = COVERAGE) -> bool:
    """Return whether a threshold can be read off so many clips: 19 for 95 %."""
    return round((clips + 1) * (1 - coverage), 9) >= 1


def temperature_of(reports: Sequence[tuple[Weighed, ConfidenceSums]], coverage: float = COVERAGE) -> float | None:
    """Return the temperature at which the clips' mean confidence is their accuracy; None: too few clips.

    Half a clip more is wrong, which keeps it from 0 where all are right. Where noise leaves it open it is kept near 1.
    """
    if not enough_clips(sum(one.clips * one.share for one, _ in reports), coverage):
        return None
    curve = sum((one.share * np.array(sums.curve(), np.float64) for one, sums in reports), np.zeros(len(GRID)))
    for index in range(REFERENCE + 1, len(GRID)):  # confidence falls with the temperature; noise may say otherwise
        curve[index] = min(curve[index], curve[index - 1])
    for index in range(REFERENCE - 1, -1, -1):
        curve[index] = max(curve[index], curve[index + 1])
    at = np.linspace(0, len(GRID) - 1, 2001)
    logs = np.interp(at, np.arange(len(GRID)), np.log(GRID))
    noise = math.sqrt(2) * pooled_noise([one for one, _ in reports])
    misfit = np.abs(_cubic(curve, at) + 0.5)
    penalised = misfit**2 + (noise * logs / PRIOR) ** 2
    return float(math.exp(logs[int(penalised.argmin())]))


def pooled_noise(reports: Sequence[Weighed]) -> float:
    """Return the standard deviation of the noise on a sum over all reports, in clips."""
    return math.sqrt(sum((one.share * one.noise) ** 2 for one in reports))


def _cubic(values: Floats, at: Floats) -> Floats:
    """Return the cubic Hermite interpolation of ``values`` at 0, 1, 2, … with central differences as slopes."""
    slopes = np.gradient(values)
    left = np.minimum(at.astype(np.int64), len(values) - 2)
    t = at - left
    first, last = (1 + 2 * t) * (1 - t) ** 2, t**2 * (3 - 2 * t)
    rise = t * (1 - t) ** 2 * slopes[left] - t**2 * (1 - t) * slopes[left + 1]
    return np.asarray(first * values[left] + last * values[left + 1] + rise)


def calibration_of(
    temperature: float, reports: Sequence[tuple[Weighed, ScoreCounts]], classes: int, coverage: float = COVERAGE
) -> Calibration | None:
    """Return the calibration by the silos' counts at ``temperature``; None: too few clips."""
    whole = sum((one.share * np.array(found.counts, np.float64) for one, found in reports), np.zeros(BINS))
    all_clips = sum(one.clips * one.share for one, _ in reports)
    if not enough_clips(all_clips, coverage):
        return None
    counts, clips = whole, all_clips
    own: dict[int, float] = {}
    for label, (of_class, answered, noise) in _by_class(reports).items():
        if enough_clips(answered, coverage) and answered * (1 - coverage) >= noise:
            own[label] = edge_threshold(of_class, answered, classes, coverage)
            counts, clips = counts - of_class, clips - answered
    if not enough_clips(clips, coverage):
        counts, clips = whole, all_clips
    shared = edge_threshold(counts, clips, classes, coverage)
    return Calibration(
        temperature=temperature,
        thresholds=tuple(own.get(label, shared) for label in range(classes)),
        coverage=coverage,
        clips=min(sum(one.clips for one, _ in reports), MAX_CLIPS),
        classes=tuple(sorted(own)),
        silos=len(reports),
    )


def _by_class(reports: Sequence[tuple[Weighed, ScoreCounts]]) -> Mapping[int, tuple[Floats, float, float]]:
    """Return histogram, clips and noise by class, over the silos that report it."""
    found: dict[int, tuple[Floats, float, list[Weighed]]] = {}
    for weighed, counts in reports:
        for one in counts.by_class:
            before, clips, silos = found.get(one.label, (np.zeros(BINS), 0.0, []))
            histogram = before + weighed.share * np.array(one.counts, np.float64)
            found[one.label] = histogram, clips + weighed.share * one.clips, [*silos, weighed]
    return {label: (found[label][0], found[label][1], pooled_noise(found[label][2])) for label in sorted(found)}


def edge_threshold(counts: Floats, clips: float, classes: int, coverage: float) -> float:
    """Return the highest edge that a new clip's score reaches with probability ``coverage`` or more.

    ``counts`` [29] of ``clips`` known clips. With m of n clips below an edge a new one is below with probability
    (m + 1)/(n + 1) at most. Noise is taken out as far as it shows: no number of clips is below 0, and all add up to
    ``clips``. In doubt the threshold is lower, so that more is answered.
    """
    below = np.cumsum(_nearest_histogram(counts, clips))[:-1]
    allowed = round((clips + 1) * (1 - coverage) - 1, 9)
    reached = int(np.searchsorted(below, allowed + 1e-9, side="right"))
    return float(score_edges(classes)[reached - 1]) if reached else NOTHING_UNKNOWN


def _nearest_histogram(counts: Floats, clips: float) -> Floats:
    """Return the histogram of ``clips``, none of its numbers below 0, that is nearest to ``counts``.

    The projection onto a simplex (Duchi et al. 2008, doi 10.1145/1390156.1390191).
    """
    ordered = np.sort(counts)[::-1]
    excess = (np.cumsum(ordered) - clips) / np.arange(1, len(counts) + 1)
    kept = int(np.flatnonzero(ordered > excess)[-1])
    return np.asarray(np.maximum(counts - excess[kept], 0.0))
