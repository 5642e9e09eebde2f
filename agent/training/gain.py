"""Accuracy with its 95 % interval, the gain of one model over another, and a test that a gain is beyond doubt.

All take clips of one group (a scene, a person) as alike: what is drawn at random is the group
(docs/decisions/048-a-gain-beyond-doubt.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

Correct = npt.NDArray[np.bool_]  # [N], by clip: is the prediction right?
Values = npt.NDArray[np.float64]  # [N], by clip

CONFIDENCE = 0.95
DOUBT = 0.05  # probability with which a model that is no better may pass the test
ALL_FLIPS = 12  # groups up to which every choice of signs is tried
DRAWN_FLIPS = 10_000
NEEDED_GROUPS = 5  # on fewer nothing is beyond doubt
CLASS_CLIPS, CLASS_GROUPS = 10, NEEDED_GROUPS  # a class with fewer held-out clips or groups has no gain of its own
TIE = 1e-9  # statistics this near to each other are equal


class Gain(msgspec.Struct, frozen=True):
    """Difference of two models' accuracy on the same clips, -1 to 1, with its 95 % interval."""

    gain: float
    low: float
    high: float
    clips: int
    groups: int

    @property
    def text(self) -> str:
        """In percentage points."""
        return f"{100 * self.gain:+.1f} points (95 % interval {100 * self.low:+.1f} to {100 * self.high:+.1f})"


def paired_gain(model: Correct, other: Correct, groups: Sequence[str]) -> Gain:
    """Return the gain of ``model`` over ``other`` on N clips, one or more; ``groups``: of every clip.

    The interval is Student's over groups (variance of a ratio of sums, clustered: Cochran 1977, Sampling Techniques,
    6.3) after two groups were added: one that only ``model`` predicts correctly, and one that only ``other`` does
    (Bonett and Price 2012, doi 10.3102/1076998611411915, for single clips). Without them few clips on which the models
    agree would give an interval of width 0. An added group has as many clips as the square root of a group's mean: with
    one clip the interval is too narrow where groups are large and alike (docs/decisions/048-a-gain-beyond-doubt.md). On
    fewer than ``NEEDED_GROUPS`` groups it is -1 to 1. ``gain`` is the difference as observed.
    """
    difference, clips = _by_group(model, groups)[0] - _by_group(other, groups)[0], _by_group(other, groups)[1]
    low, high = _interval(difference, clips, added=(1.0, -1.0)) if len(clips) >= NEEDED_GROUPS else (-1.0, 1.0)
    return Gain(float(difference.sum() / clips.sum()), max(low, -1.0), min(high, 1.0), len(model), len(clips))


def accuracy_interval(correct: Correct, groups: Sequence[str]) -> tuple[float, float]:
    """Return the 95 % interval of the accuracy, 0 to 1, on N clips, one or more.

    As that of a gain, after two groups with correct predictions and two with wrong ones were added (Agresti and Coull
    1998, doi 10.1080/00031305.1998.10480550), on however few groups.
    """
    low, high = _interval(*_by_group(correct, groups), added=(1.0, 1.0, 0.0, 0.0))
    return max(low, 0.0), min(high, 1.0)


def class_gains(model: Correct, other: Correct, groups: Sequence[str], y: npt.NDArray[np.int64]) -> dict[int, Gain]:
    """Return the gain in every class that has enough clips in enough groups, by ascending class."""
    found = {}
    for label in np.unique(y).tolist():
        rows = np.flatnonzero(y == label).tolist()
        of_class = [groups[row] for row in rows]
        if len(rows) >= CLASS_CLIPS and len(set(of_class)) >= CLASS_GROUPS:
            found[int(label)] = paired_gain(model[rows], other[rows], of_class)
    return found


def doubts(own: Values, candidates: Mapping[str, Values], groups: Sequence[str]) -> dict[str, float]:
    """Return, for each candidate, how likely as good a result is if none of them were better than ``own``: a p-value.

    ``own`` and candidates: scores of N clips, more is better. Under that hypothesis a group's difference of scores is
    as likely as its negative. Every choice of signs for the groups is tried (a sample of them for more than
    ``ALL_FLIPS`` groups), with the same signs for all candidates, and a candidate is held against the largest statistic
    of all: so the chance that any of them passes without being better is at most ``DOUBT``, however many there are and
    however alike (Westfall and Young 1993; Nichols and Holmes 2002, doi 10.1002/hbm.1058). With one candidate, groups
    of one clip and scores of 0 and 1 it is McNemar's exact test. Groups on which no candidate differs have no
    influence: with fewer than 5 others nothing passes.
    """
    names = list(candidates)
    sums = [_by_group(scores, groups)[0] for scores in (own, *candidates.values())]
    table = np.array(sums[1:]).reshape(len(names), len(sums[0])).T - sums[0][:, None]  # [groups, candidates]
    table = table[np.any(np.abs(table) > TIE, axis=1)]
    if not table.size:
        return dict.fromkeys(names, 1.0)
    scale = np.sqrt((table**2).sum(axis=0))
    scale[scale == 0] = 1.0
    observed = table.sum(axis=0) / scale
    above, tried = np.zeros(len(names)), 0
    for signs in _signs(len(table)):
        largest = (signs @ (table / scale)).max(axis=1)
        above += (largest[:, None] >= observed - TIE).sum(axis=0)
        tried += len(signs)
    if len(table) > ALL_FLIPS:  # of a sample the observed signs are one more
        above, tried = above + 1, tried + 1
    return dict(zip(names, (above / tried).tolist(), strict=True))


def _by_group(scores: Correct | Values, groups: Sequence[str]) -> tuple[Values, Values]:
    """Return the sum of scores, like correct predictions, and the clips of each group."""
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.bincount(group, weights=scores.astype(np.float64))
    return np.asarray(sums, np.float64), np.bincount(group).astype(np.float64)


def _interval(sums: Values, clips: Values, *, added: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of sum over clips, by groups; ``added``: values of the clips of further groups."""
    from scipy.stats import t

    size = np.sqrt(clips.mean())
    values, sizes = np.append(sums, size * np.array(added)), np.append(clips, np.full(len(added), size))
    centre, count = values.sum() / sizes.sum(), len(sizes)
    residual = values - centre * sizes
    error = np.sqrt(count / (count - 1) * (residual @ residual)) / sizes.sum()
    margin = t.ppf((1 + CONFIDENCE) / 2, max(len(sums) - 1, 1)) * error
    return float(centre - margin), float(centre + margin)


def _signs(groups: int) -> Iterator[Values]:
    """Yield rows of signs [flips, groups]: all that there are, or a sample."""
    if groups <= ALL_FLIPS:
        numbers = np.arange(2**groups)[:, None] >> np.arange(groups)
        yield np.asarray(1.0 - 2.0 * (numbers & 1), np.float64)
        return
    random = np.random.Generator(np.random.PCG64(groups))
    for _ in range(DRAWN_FLIPS // 1000):
        yield np.asarray(1.0 - 2.0 * random.integers(0, 2, (1000, groups)), np.float64)
