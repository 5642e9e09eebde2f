"""Privacy loss of record-dp training: (epsilon, delta) of the sampled Gaussian mechanism, by Rényi divergence.

One step of training with rate q and multiplier z, seen by someone who knows everything but one clip, is the
sampled Gaussian mechanism (Mironov, Talwar, Zhang 2019, arXiv 1908.10530: section 3.3 has both formulas below).
Rényi divergences of steps add up; the sum becomes epsilon by Canonne, Kamath, Steinke 2020 (arXiv 2004.00010,
proposition 12).
A test compares it with the package dp-accounting, which a silo does not need.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable

import msgspec

ORDERS = (*(1 + tenth / 10 for tenth in range(1, 100)), *map(float, range(11, 64)), 128.0, 256.0, 512.0, 1024.0)
NEGLIGIBLE = 30.0  # so far below the sum, in logarithms, a term of a series changes nothing
LEAST_MULTIPLIER = 1e-6  # less noise counts as none, and its square may be too small for a float
MAX_SERIES_TERMS = 1000  # terms of a series
KEPT_RATES = 1 << 14  # whose costs are kept: a coordinator chooses one a round, and a tenth of a second goes into each


class Spend(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The privacy spent by one update's training."""

    rate: float  # q
    multiplier: float  # z
    steps: int


def epsilon_of(spends: Iterable[Spend], delta: float) -> float:
    """The least epsilon with which everything together is (epsilon, delta) differentially private; 0 for nothing.

    Neighbours differ by one clip that is there or not. Infinite where a multiplier is 0, or nearly.
    """
    steps: Counter[tuple[float, float]] = Counter()
    for spend in spends:
        steps[spend.rate, spend.multiplier] += spend.steps
    totals = [0.0] * len(ORDERS)
    for (rate, multiplier), count in steps.items():
        for place, divergence in enumerate(_divergences(rate, multiplier)):
            totals[place] += count * divergence
    if not any(totals):
        return 0.0
    return max(0.0, min(_epsilon(order, total, delta) for order, total in zip(ORDERS, totals, strict=True)))


def _epsilon(order: float, divergence: float, delta: float) -> float:
    if delta**2 + math.expm1(-divergence) > 0:  # Bretagnolle, Huber: delta is at most sqrt(1 - exp(-divergence))
        return 0.0
    if order <= 1.01:
        return math.inf
    return divergence + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)


@functools.lru_cache(maxsize=KEPT_RATES)
def _divergences(rate: float, multiplier: float) -> tuple[float, ...]:
    """Return what one step costs, by order of ``ORDERS``."""
    return tuple(renyi(rate, multiplier, order) for order in ORDERS)


def renyi(rate: float, multiplier: float, order: float) -> float:
    """The Rényi divergence of ``order`` (more than 1) that one step costs."""
    if rate == 0:
        return 0.0
    if multiplier < LEAST_MULTIPLIER:
        return math.inf
    if rate == 1:
        return order / (2 * multiplier**2)
    whole = order.is_integer()
    moment = _whole_moment(rate, multiplier, int(order)) if whole else _moment(rate, multiplier, order)
    return moment / (order - 1)


def _whole_moment(q: float, z: float, order: int) -> float:
    """log A for a whole order: a finite sum over k samplings of the clip."""
    total = -math.inf
    for k in range(order + 1):
        choose = math.lgamma(order + 1) - math.lgamma(k + 1) - math.lgamma(order - k + 1)
        total = _add(total, choose + k * math.log(q) + (order - k) * math.log1p(-q) + (k * k - k) / (2 * z * z))
    return total


def _moment(q: float, z: float, order: float) -> float:
    """log A for an order that is not whole: two series, for the two sides of the point z0 where the densities cross.

    The terms' signs, which change from the order on, are left out, as dp-accounting leaves them out: an upper bound,
    and the same figure as an auditor gets with that package. An order whose series converges too slowly is infinite.
    """
    z0 = z * z * math.log(1 / q - 1) + 0.5
    below, above, last = -math.inf, -math.inf, (-math.inf, -math.inf)
    for k in range(MAX_SERIES_TERMS):
        rest = order - k
        choose = math.lgamma(order + 1) - math.lgamma(k + 1) - math.lgamma(rest + 1)  # of the magnitude
        reached = _half_erfc((k - z0) / (math.sqrt(2) * z)), _half_erfc((z0 - rest) / (math.sqrt(2) * z))
        first = choose + k * math.log(q) + rest * math.log1p(-q) + (k * k - k) / (2 * z * z) + reached[0]
        second = choose + rest * math.log(q) + k * math.log1p(-q) + (rest * rest - rest) / (2 * z * z) + reached[1]
        below, above = _add(below, first), _add(above, second)
        total = _add(below, above)
        if first < last[0] and second < last[1] and max(first, second) < total - NEGLIGIBLE:
            return total
        last = first, second
    return math.inf


def _half_erfc(x: float) -> float:
    """log(erfc(x) / 2), also where erfc itself is too small for a float."""
    if x < 25:
        return math.log(math.erfc(x) / 2)
    series = 1 - 1 / (2 * x**2) + 3 / (4 * x**4) - 15 / (8 * x**6)
    return -x * x - math.log(2 * x * math.sqrt(math.pi)) + math.log(series)


def _add(one: float, other: float) -> float:
    """log(exp(one) + exp(other))."""
    high, low = max(one, other), min(one, other)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
