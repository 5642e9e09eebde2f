"""Claims of examples: how much of what a silo says it has counts in a round.

The weight of an update in a weighted mean is the silo's own word: one that claims a million examples is the mean. Two
limits hold for the updates of a round, both set by ``examples_times`` ([checks] in coordinator.toml) and by medians,
which fewer than half of the silos cannot move past the honest values, however slowly they try:

- an update counts for at most ``examples_times`` times the median claim. Of an even number it is the lower one of the
  middle two: of two silos neither can raise it alone. It is also at most the median of the silos' largest claims in the
  last closed rounds: a round in which few honest silos report is not for the others to set;
- its influence on the mean, counted examples times distance from the round's model, is at most
  ``INFLUENCE_SHARE * examples_times`` times the medians' product; beyond it is moved towards the round's model. A claim
  buys no distance either.

FedDyn has no weights, but every update moves the model as far as it goes, and in the first round a claim buys reach
(norm_bound.py): an update's distance is at most ``norm_times`` times the median distance of the round.

All of it is computed when the round ends, from rows that are on disk: the order of arrival does not matter, a receipt
is never taken back, and a restart finds the same. Median and trimmed mean have no limits.
docs/decisions/026-a-claim-counts-at-most-a-multiple-of-the-median.md has the measurements behind the constants.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ...fedproto.head import Params, TensorLayout
from .contributions import Contribution
from .norm_bound import SILOS_NEEDED
from .robust import Clipped

Number = TypeVar("Number", int, float)
INFLUENCE_SHARE = 0.75  # of ``times``: the most that counted examples times distance may be of the medians' product


@dataclass(frozen=True)
class Claim:
    """An accepted update without its values, as the round's end needs it."""

    examples: int  # as the silo sent it
    norm: float | None = None  # its distance from the round's model; None: not known


@dataclass(frozen=True)
class Limits:
    """Limits of a round's updates, from the claims of all of them."""

    examples: int | None  # the most that an update counts for; None: examples are no weights, each weighs 1
    influence: float  # the most that weight times distance may be; infinity where no distance is known

    def counted(self, claim: Claim) -> int:
        """Return the examples that the claim counts for."""
        return claim.examples if self.examples is None else min(claim.examples, self.examples)

    def share(self, claim: Claim) -> float:
        """Return the share of its distance that the update keeps: 1, or less where its influence would be too large."""
        influence = (1 if self.examples is None else self.counted(claim)) * (claim.norm or 0.0)
        return self.influence / influence if influence > self.influence else 1.0


def limits_of(claims: Collection[Claim], learnt: int | None, times: float) -> Limits | None:
    """Return the limits of a round with these updates; None without limits (``times`` = 0).

    ``learnt``: see ``learnt_examples``.
    """
    if times <= 0 or not claims:
        return None
    median = lower_median([claim.examples for claim in claims])
    if learnt is not None:
        median = min(median, learnt)
    norm = _median_norm(claims)
    influence = max(1.0, INFLUENCE_SHARE * times) * median * norm if norm > 0 else math.inf
    return Limits(max(1, int(times * median)), influence)


def distance_limits(claims: Collection[Claim], norm_times: float) -> Limits | None:
    """Return the limits of a round without weights; None without any (``norm_times`` = 0, or too few silos)."""
    norm = _median_norm(claims)
    return Limits(None, norm_times * norm) if norm_times > 0 and norm > 0 else None


def _median_norm(claims: Collection[Claim]) -> float:
    """Return the lower median of the distances; 0 with too few silos."""
    norms = [claim.norm for claim in claims if claim.norm is not None]
    return lower_median(norms) if len(norms) >= SILOS_NEEDED else 0.0


def learnt_examples(largest: Mapping[str, int]) -> int | None:
    """Return the lower median of the silos' largest claims in the last closed rounds; None with too few silos."""
    return lower_median(largest.values()) if len(largest) >= SILOS_NEEDED else None


def lower_median(values: Collection[Number]) -> Number:
    """Return the middle value, of an even number the smaller one of the middle two. ``values`` is not empty."""
    return sorted(values)[(len(values) - 1) // 2]


def count_claims(
    contributions: Iterable[Contribution], claims: Mapping[str, Claim], limits: Limits | None, base: Params
) -> Iterable[Contribution]:
    """Return the contributions as they count, for every strategy; the same object when nothing is beyond the limits.

    ``claims``: by silo, of every contribution. ``base``: the round's model, towards which an update of too much
    influence is moved.
    """
    if limits is None:
        return contributions
    shares = {silo: limits.share(claim) for silo, claim in claims.items()}
    if all(limits.counted(claim) == claim.examples and shares[silo] == 1.0 for silo, claim in claims.items()):
        return contributions
    weights = {silo: limits.counted(claim) for silo, claim in claims.items()}
    return Clipped(Weighted(contributions, weights), base, shares)


@dataclass(frozen=True, eq=False)
class WeightedContribution:
    """A contribution with another weight than its claim."""

    whole: Contribution
    examples: int

    @property
    def silo(self) -> str:
        return self.whole.silo

    @property
    def params(self) -> Params:
        """See ``Contribution``."""
        return self.whole.params

    def check(self, spec: TensorLayout) -> None:
        """See ``Contribution``."""
        self.whole.check(spec)

    def read(self, start: int, out: npt.NDArray[np.float32]) -> None:
        """See ``Contribution``."""
        self.whole.read(start, out)


@dataclass(frozen=True, eq=False)
class Weighted:
    """Contributions with the weights of their silos; can be iterated as often as ``parts``."""

    parts: Iterable[Contribution]
    weights: Mapping[str, int]

    def __iter__(self) -> Iterator[WeightedContribution]:
        for part in self.parts:
            yield WeightedContribution(part, self.weights[part.silo])
