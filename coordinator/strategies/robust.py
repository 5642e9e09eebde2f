"""Combining updates when some may be hostile: coordinate-wise median, trimmed mean, norm clipping.

Median and trimmed mean: Yin et al. 2018 (https://arxiv.org/abs/1803.01498). Clipping: Sun et al. 2019
(https://arxiv.org/abs/1911.07963). Settings: ``combine``, ``trim``, ``clip``.

Median and trimmed mean give every silo the same weight: a weight is a claim, and an attacker may claim any. They need
all silos' values of a coordinate at once, so they iterate over the updates block by block: ``contributions`` must be an
iterable that can be iterated more than once (a list, or the store's).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...base.errors import InvariantError
from ...fedproto.head import Params, TensorLayout, split_params
from ...fedproto.records import Strategy
from .algorithm import Algorithm
from .contributions import Contribution, InMemoryContribution, checked, distance, in_order

BLOCK_BYTES = 64 << 20  # of all silos' values in memory at once
Reduce = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float64]]  # sorted [silos, values] to [values]


def median(spec: TensorLayout, contributions: Iterable[Contribution]) -> dict[str, npt.NDArray[np.float64]]:
    """Return the median of every coordinate over the silos, in float64 (Yin et al. 2018, definition 1).

    Of an even number of silos it is the mean of the middle two. Weights are not used.
    """

    def middle(ordered: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        low, high = (len(ordered) - 1) // 2, len(ordered) // 2
        return np.asarray((ordered[low].astype(np.float64) + ordered[high]) / 2, np.float64)

    return _by_coordinate(spec, contributions, middle)


def trimmed_mean(
    spec: TensorLayout, contributions: Iterable[Contribution], trim: float
) -> dict[str, npt.NDArray[np.float64]]:
    """Return the mean of every coordinate without its largest and smallest ``trim`` share.

    Yin et al. 2018, definition 2, in float64. Of m silos floor(trim · m) are left out at either end; 0 ≤ trim < 1/2.
    Weights are not used.
    """

    def inner(ordered: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        cut = trimmed(len(ordered), trim)
        kept = ordered[cut : len(ordered) - cut].astype(np.float64)
        return np.asarray(kept.sum(axis=0) / len(kept), np.float64)

    return _by_coordinate(spec, contributions, inner)


def trimmed(silos: int, trim: float) -> int:
    """Return the number of silos, of ``silos``, that are left out at either end."""
    return int(trim * silos + 1e-9)  # 0.29 * 100 is 28.999…


def trim_problem(strategy: Strategy, silos: int) -> str:
    """Return why a trimmed mean of ``silos`` silos would leave nobody out, or an empty text."""
    if strategy.combine != "trimmed_mean" or trimmed(silos, strategy.trim):
        return ""
    least = f"expected {math.ceil(100 / silos) / 100} or more" if silos > 2 else "expected 3 or more silos"
    return f"trim: {strategy.trim:g} of {silos} silos leaves nobody out at either end; {least}"


@dataclass(frozen=True, eq=False)
class ClippedContribution:
    """A contribution moved towards ``base``, to ``share`` of its distance where that is below 1.

    Norm clipping: w_t + (wᵢ − w_t) / max(1, ‖wᵢ − w_t‖ / bound), rounded to float32 (Sun et al. 2019,
    https://arxiv.org/abs/1911.07963). An update within the bound passes unchanged, to the bit.
    """

    whole: Contribution
    base: InMemoryContribution
    share: float

    @property
    def silo(self) -> str:
        return self.whole.silo

    @property
    def examples(self) -> int:
        return self.whole.examples

    @property
    def params(self) -> Params:
        """See ``Contribution``."""
        params = self.whole.params
        return (
            params
            if self.share >= 1.0
            else {name: self._shorter(params[name], self.base.params[name]) for name in params}
        )

    def check(self, spec: TensorLayout) -> None:
        """See ``Contribution``."""
        self.whole.check(spec)

    def read(self, start: int, out: npt.NDArray[np.float32]) -> None:
        """See ``Contribution``."""
        self.whole.read(start, out)
        if self.share < 1.0:
            base = np.empty_like(out)
            self.base.read(start, base)
            out[:] = self._shorter(out, base)

    def _shorter(self, there: npt.NDArray[np.float32], base: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.asarray(base + self.share * (there.astype(np.float64) - base), np.float32)


@dataclass(frozen=True, eq=False)
class Clipped:
    """Contributions, each clipped to its silo's share of its distance; can be iterated as often as ``parts``."""

    parts: Iterable[Contribution]
    base: Params
    shares: Mapping[str, float]

    def __iter__(self) -> Iterator[ClippedContribution]:
        base = InMemoryContribution("", 0, self.base)
        for part in self.parts:
            yield ClippedContribution(part, base, self.shares[part.silo])


def clipped(spec: TensorLayout, contributions: Iterable[Contribution], base: Params, clip: float) -> Clipped:
    """Return ``contributions`` clipped to ``clip`` times the median of their own distances from ``base``.

    Sun et al. use a constant bound; the round's median needs no guess, follows the run as updates grow smaller, and
    is an honest silo's (or lies between two) while fewer than half are hostile.
    """
    lengths = {part.silo: distance(part.params, base) for part in checked(spec, contributions)}
    if not lengths:
        raise InvariantError("a median of no updates")
    bound = clip * float(np.median(list(lengths.values())))
    shares = {silo: bound / length if length > bound else 1.0 for silo, length in lengths.items()}
    return Clipped(contributions, base, shares)


def _by_coordinate(
    spec: TensorLayout, contributions: Iterable[Contribution], reduce: Reduce
) -> dict[str, npt.NDArray[np.float64]]:
    parts = sum(1 for _ in checked(spec, contributions))
    if parts == 0:
        raise InvariantError("a median or trimmed mean of no updates")
    result = np.empty(spec.parameters, np.float64)
    width = max(1, BLOCK_BYTES // (4 * parts))
    for start in range(0, spec.parameters, width):
        block = np.empty((parts, min(width, spec.parameters - start)), np.float32)
        filled = 0
        for row, part in zip(block, in_order(contributions), strict=False):
            part.read(start, row)
            filled += 1
        if filled < parts:
            raise InvariantError("contributions that can be iterated only once")
        block.sort(axis=0)
        result[start : start + width] = reduce(block)
    return split_params(spec, result)


def _validate_trim(strategy: Strategy) -> list[str]:
    if strategy.combine == "trimmed_mean" and not 0 < strategy.trim < 0.5:
        return ["trim: trimmed_mean needs more than 0 and less than 0.5"]
    if strategy.combine != "trimmed_mean" and strategy.trim != 0:
        return [f"trim: {strategy.combine} has none; expected 0, or combine = 'trimmed_mean'"]
    return []


def _validate_clip(strategy: Strategy) -> list[str]:
    return [] if strategy.clip >= 0 and math.isfinite(strategy.clip) else ["clip: expected 0 (none) or more"]


MEDIAN = Algorithm(
    setting="combine",
    enabled=lambda strategy: strategy.combine == "median",
    combine=lambda round_input: median(round_input.spec, round_input.contributions),
    two_passes=True,
)
TRIMMED_MEAN = Algorithm(
    setting="combine",
    enabled=lambda strategy: strategy.combine == "trimmed_mean",
    validate=_validate_trim,
    combine=lambda round_input: trimmed_mean(round_input.spec, round_input.contributions, round_input.strategy.trim),
    two_passes=True,
)
CLIPPING = Algorithm(
    setting="clip",
    enabled=lambda strategy: strategy.clip > 0,
    validate=_validate_clip,
    adjust=lambda round_input: clipped(
        round_input.spec, round_input.contributions, round_input.base, round_input.strategy.clip
    ),
    two_passes=True,
)
