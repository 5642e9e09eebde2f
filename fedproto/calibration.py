"""Calibration of a model: probabilities that hold, and from when on a clip is one of a class that it knows.

- *Temperature* (Guo et al. 2017, arXiv 1706.04599): the logits are divided by it, so that of clips answered with a
  probability of 80 % about 80 % are right. It never changes which class is the likeliest.
- *Score of known*: the largest probability at ``softening`` times that temperature, as log-odds. At the temperature
  itself most clips of unknown classes look as sure as known ones; softened, all classes' logits count (Liang et al.
  2018, arXiv 1706.02690). It needs nothing but the logits, so it holds for every kind of head.
- *Thresholds* by class (split conformal prediction; Vovk et al. 2005, Angelopoulos and Bates, arXiv 2107.07511): of
  clips of known classes that the model gives class k, the share ``coverage`` has a score of ``thresholds[k]`` or more;
  the others are answered ``unknown``. It holds for clips like the held-out ones that the thresholds were read off.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from .bounds import number_problems

Floats = npt.NDArray[np.float64]
SOFTENING = 3.0  # chosen on features of UCF101 and of the mini-world, linear heads and perceptrons
COVERAGE = 0.95  # of known clips that are answered with a class, unless something else is asked for
TEMPERATURES = (0.02, 50.0)  # bounds; no head in use is far from 1
MAX_LOG_ODDS = 1e6  # of a threshold; a score has at most some hundreds
MAX_CLIPS = 1 << 31
_TINY = 1e-300


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Calibration of one model, made of clips that it was not trained on."""

    temperature: float  # that logits are divided by
    thresholds: tuple[float, ...]  # by class: the least score of a known clip, log-odds
    coverage: float = COVERAGE  # share of known clips that reach their class's threshold
    softening: float = SOFTENING  # the score's temperature, in times ``temperature``
    clips: int = 0  # held-out clips that it was made of
    classes: tuple[int, ...] = ()  # classes with a threshold of their own, ascending; the others share one
    silos: int = 0  # that reported counts for it; 0: made where the model was trained

    def problems(self, outputs: int) -> list[str]:
        """Return what is wrong with it for a head of so many outputs, each problem beginning with the field's name."""
        wrong = [
            *number_problems("temperature", self.temperature, *TEMPERATURES),
            *number_problems("softening", self.softening, 1, 100),
            *number_problems("clips", self.clips, 0, MAX_CLIPS),
            *number_problems("silos", self.silos, 0, MAX_CLIPS),
        ]
        if not 0 < self.coverage < 1:
            wrong.append("coverage: expected more than 0 and less than 1")
        if len(self.thresholds) != outputs:
            wrong.append(f"thresholds: {len(self.thresholds)}, the head has {outputs} outputs")
        if not all(-MAX_LOG_ODDS <= value <= MAX_LOG_ODDS for value in self.thresholds):
            wrong.append(f"thresholds: expected {-MAX_LOG_ODDS:,} to {MAX_LOG_ODDS:,}")
        if list(self.classes) != sorted(set(self.classes)) or not all(0 <= one < outputs for one in self.classes):
            wrong.append("classes: expected numbers of classes, each once, ascending")
        return wrong


def probabilities(logits: npt.NDArray[Any], calibration: Calibration | None = None) -> Floats:
    """Return the probabilities [N, classes] of ``logits`` [N, classes], calibrated where there is a calibration."""
    scaled = logits.astype(np.float64) / (1.0 if calibration is None else calibration.temperature)
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True, initial=-np.inf))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def known_scores(probability: npt.NDArray[Any], softening: float = SOFTENING) -> Floats:
    """Return the scores of known [N], in log-odds, of calibrated probabilities [N, classes]; more is more known.

    A softmax at ``softening`` times the temperature is these probabilities' root of that order, normalised.
    """
    roots = np.maximum(probability.astype(np.float64), _TINY) ** (1.0 / softening)
    best = roots.max(axis=1, initial=0.0)
    return np.asarray(np.log(best) - np.log(np.maximum(roots.sum(axis=1) - best, _TINY)))


def is_known(probability: npt.NDArray[Any], calibration: Calibration | None) -> npt.NDArray[np.bool_]:
    """Return for calibrated probabilities [N, classes] whether each clip is of a class that the model knows, [N].

    Without a calibration every clip is.
    """
    if calibration is None:
        return np.ones(len(probability), np.bool_)
    thresholds = np.asarray(calibration.thresholds)[probability.argmax(axis=1)]
    return np.asarray(known_scores(probability, calibration.softening) >= thresholds)


def fit_temperature(logits: npt.NDArray[Any], y: npt.NDArray[np.int64]) -> float:
    """Return the temperature with the least cross-entropy of ``logits`` [N, classes] against the classes ``y`` [N].

    The minimum is single, as the loss is convex in 1/T. Half a clip more, which is wrong by the mean margin between
    the two likeliest classes, keeps it finite where all clips are right.
    """
    lowest, highest = (math.log(bound) for bound in TEMPERATURES)
    scores = logits.astype(np.float64)
    two = np.sort(scores, axis=1)[:, -2:]
    margin = float((two[:, -1] - two[:, 0]).mean())
    centred = scores - scores[np.arange(len(y)), y][:, None]
    for _ in range(60):  # golden section
        left, right = (lowest + share * (highest - lowest) for share in (0.381966, 0.618034))
        if _loss(centred, margin, math.exp(left)) <= _loss(centred, margin, math.exp(right)):
            highest = right
        else:
            lowest = left
    return math.exp((lowest + highest) / 2)


def _loss(centred: Floats, margin: float, temperature: float) -> float:
    """Return the cross-entropy of all clips, of logits less that of the right class, and that of the half clip."""
    scaled = centred / temperature
    most = scaled.max(axis=1)
    clips = float((most + np.log(np.exp(scaled - most[:, None]).sum(axis=1))).sum())
    return clips + 0.5 * float(np.logaddexp(0.0, margin / temperature))


def rank_threshold(scores: npt.NDArray[Any], coverage: float) -> float | None:
    """Return the threshold that a new score of the same kind reaches with probability ``coverage``; None: too few.

    The k-th smallest of n scores is reached with probability 1 − k/(n + 1); between two of them it is interpolated.
    """
    rank = round((len(scores) + 1) * (1.0 - coverage), 9)  # 20 * (1 - 0.95) is not quite 1
    if rank < 1.0:
        return None
    ordered = np.sort(scores.astype(np.float64))
    return float(np.interp(rank - 1.0, np.arange(len(ordered)), ordered))


def class_thresholds(
    scores: npt.NDArray[Any], answers: npt.NDArray[np.int64], outputs: int, coverage: float
) -> tuple[tuple[float, ...], tuple[int, ...]] | None:
    """Return a threshold for each class, and the classes that have one of their own; None for too few clips in all.

    ``scores`` [N] and ``answers`` [N], the likeliest classes, of held-out clips. Classes with too few clips share a
    threshold, which is read off their clips together, or where these are too few too, off all clips.
    """
    shared = rank_threshold(scores, coverage)
    if shared is None:
        return None
    own: dict[int, float] = {}
    for number in range(outputs):
        threshold = rank_threshold(scores[answers == number], coverage)
        if threshold is not None:
            own[number] = threshold
    rest = rank_threshold(scores[~np.isin(answers, list(own))], coverage)
    shared = shared if rest is None else rest
    return tuple(own.get(number, shared) for number in range(outputs)), tuple(own)


def make_calibration(
    logits: npt.NDArray[Any], y: npt.NDArray[np.int64], *, coverage: float = COVERAGE
) -> Calibration | None:
    """Return the calibration by held-out clips' ``logits`` [N, classes] and classes ``y`` [N]; None for too few.

    Too few are fewer than 1/(1 − coverage) − 1: 19 for 95 %.
    """
    if not len(y) or not np.isfinite(logits).all():
        return None
    temperature = fit_temperature(logits, y)
    scaled = probabilities(logits / temperature)
    found = class_thresholds(known_scores(scaled), scaled.argmax(axis=1), logits.shape[1], coverage)
    if found is None:
        return None
    thresholds, classes = found
    return Calibration(temperature, thresholds, coverage, clips=len(y), classes=classes)
