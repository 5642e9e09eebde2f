"""A two-sample test for the embeddings of two sets of clips: are they from one distribution?

The statistic is the squared maximum mean discrepancy with a Gaussian kernel whose width is the median distance (Gretton
et al. 2012, "A Kernel Two-Sample Test", JMLR 13). Clips of one group (a scene, a person) are alike, so the groups are
the sample: a group stands for the mean of its clips in the kernel's space, all groups count alike, and the p-value is
the share of permutations of whole groups that give as much. Were the groups drawn alike on both sides, it is at most
``p`` with probability ``p``, however many clips a group has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

PERMUTATIONS = 9999  # the least p-value is one in as many and one
MOST_CLIPS = 1024  # of a side, in whole groups drawn at random: 8 MiB of kernel, seconds of one core
AT_ONCE = 512  # permutations
Floats = npt.NDArray[np.float64]


class TwoSamples(NamedTuple):
    """The result of a test."""

    p: float
    mmd2: float  # 0 where the groups' means agree, at most 2
    clips: tuple[int, int]  # of each side that were compared
    groups: tuple[int, int]


def compare_clips(
    first: npt.NDArray[Any],
    second: npt.NDArray[Any],
    groups: tuple[Sequence[str], Sequence[str]],
    *,
    widths: Sequence[int] = (),
    seed: int = 0,
    permutations: int = PERMUTATIONS,
) -> TwoSamples:
    """Compare embeddings ``first`` [N, D] and ``second`` [M, D], one or more each.

    ``groups``: of each clip, by side; a group that is on both sides counts on each. ``widths``: of the embedding's
    parts, adding up to D, which then weigh alike. ``seed``: of the permutations, and of the groups that are drawn where
    a side has more than ``MOST_CLIPS`` clips.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    sides = [_drawn(np.asarray(side), random) for side in groups]
    x = np.concatenate([first[sides[0]], second[sides[1]]]).astype(np.float64)
    numbers: list[npt.NDArray[np.int64]] = []
    counts: list[int] = []
    for side, names in zip(sides, groups, strict=True):
        found, number = np.unique(np.asarray(names)[side], return_inverse=True)
        numbers.append(number + sum(counts))
        counts.append(len(found))
    kernel = _group_kernel(_scaled(x, widths), np.concatenate(numbers))
    observed, permuted = _permuted(kernel, (counts[0], counts[1]), random, permutations)
    as_much = int((permuted >= observed - 1e-12).sum())
    clips = (len(sides[0]), len(sides[1]))
    return TwoSamples((1 + as_much) / (1 + permutations), observed, clips, (counts[0], counts[1]))


def _drawn(groups: npt.NDArray[Any], random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return the rows of a side: all, or those of groups that are drawn until the next one has no place."""
    if len(groups) <= MOST_CLIPS:
        return np.arange(len(groups))
    names, number, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = random.permutation(len(names))
    most = max(1, int(np.searchsorted(np.cumsum(sizes[order]), MOST_CLIPS, side="right")))
    return np.flatnonzero(np.isin(number, order[:most]))[:MOST_CLIPS]


def _scaled(x: Floats, widths: Sequence[int]) -> Floats:
    """Return ``x`` with parts of equal mean square distance from their mean."""
    if not widths or sum(widths) != x.shape[1]:
        return x
    ends = np.cumsum(widths)[:-1]
    parts = [part - part.mean(axis=0) for part in np.split(x, ends, axis=1) if part.shape[1]]
    return np.concatenate([part / max(float(np.sqrt((part**2).sum(axis=1).mean())), 1e-12) for part in parts], axis=1)


def _group_kernel(x: Floats, group: npt.NDArray[np.int64]) -> Floats:
    """Return the mean kernel between the clips of every two groups, [groups, groups]; ``group`` [N]: of each clip."""
    x = x - x.mean(axis=0)
    squares = (x**2).sum(axis=1)
    distances = np.maximum(squares[:, None] + squares[None] - 2 * (x @ x.T), 0.0)
    apart = distances[np.triu_indices(len(x), 1)]
    width = float(np.median(apart)) if len(apart) else 0.0
    kernel = np.exp(-distances / width) if width > 0 else np.ones_like(distances)
    members = np.zeros((int(group.max()) + 1, len(x)))
    members[group, np.arange(len(x))] = 1.0
    members /= members.sum(axis=1, keepdims=True)
    return np.asarray(members @ kernel @ members.T)


def _permuted(
    kernel: Floats, groups: tuple[int, int], random: np.random.Generator, permutations: int
) -> tuple[float, Floats]:
    """Return the statistic of the groups as they are, and of so many permutations of them."""
    first, count = groups[0], sum(groups)
    weights = np.concatenate([np.full(first, 1 / first), np.full(count - first, -1 / (count - first))])
    found = np.empty(permutations)
    for start in range(0, permutations, AT_ONCE):
        some = random.permuted(np.tile(weights, (min(AT_ONCE, permutations - start), 1)), axis=1)
        found[start : start + len(some)] = ((some @ kernel) * some).sum(axis=1)
    return float(weights @ kernel @ weights), found
