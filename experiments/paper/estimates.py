"""Means over seeds, with the 95 % interval of Student's t."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

CONFIDENCE = 0.95


class Estimate(msgspec.Struct, frozen=True):
    """A mean of ``count`` measurements; interval and deviation are None for one measurement."""

    mean: float
    interval: float | None  # half of the 95 % interval of the mean
    deviation: float | None  # standard deviation, n − 1
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if self.interval is None else f"{self.mean:.2f} ± {self.interval:.2f}"


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and t-interval of independent measurements; None of none."""
    if not values:
        return None
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Estimate(mean, None, None, 1)
    from scipy.stats import t

    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    quantile = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return Estimate(mean, quantile * deviation / math.sqrt(len(values)), deviation, len(values))


def paired(values: Sequence[float], against: Sequence[float]) -> Estimate | None:
    """Mean and interval of the differences, seed by seed: what both share drops out."""
    return estimate([value - other for value, other in zip(values, against, strict=True)])
