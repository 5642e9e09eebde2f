"""Combining updates when some may be hostile: coordinate median, trimmed mean, norm clipping.

Median and trimmed mean give every silo the same weight: a weight is a claim that an attacker can make as large
as he likes. They need all silos' values of a coordinate at once, so they go through the updates block by block:
``contributions`` must be an iterable that can be run through more than once (a list, or the store's).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...base.errors import InvariantError
from ...fedproto.head import HeadSpec, Params, tensors_of
from .contributions import Contribution, HeldContribution, checked, distance, in_order

BLOCK_BYTES = 64 << 20  # of all silos' values that are looked at together
Reduce = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float64]]  # sorted [silos, values] to [values]


def median(spec: HeadSpec, contributions: Iterable[Contribution]) -> dict[str, npt.NDArray[np.float64]]:
    """The median of every coordinate over the silos (Yin et al. 2018, definition 1, https://arxiv.org/abs/1803.01498).

    Of an even number the mean of the middle two, in float64. Weights are not used.
    """

    def middle(ordered: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        low, high = (len(ordered) - 1) // 2, len(ordered) // 2
        return np.asarray((ordered[low].astype(np.float64) + ordered[high]) / 2, np.float64)

    return _by_coordinate(spec, contributions, middle)


def trimmed_mean(
    spec: HeadSpec, contributions: Iterable[Contribution], trim: float
) -> dict[str, npt.NDArray[np.float64]]:
    """The mean of every coordinate without its largest and its smallest ``trim`` share (Yin et al. 2018, definition 2).

    Of m silos floor(trim · m) are left out at either end; 0 ≤ trim < 1/2. Weights are not used.
    """

    def inner(ordered: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        cut = trimmed(len(ordered), trim)
        kept = ordered[cut : len(ordered) - cut].astype(np.float64)
        return np.asarray(kept.sum(axis=0) / len(kept), np.float64)

    return _by_coordinate(spec, contributions, inner)


def trimmed(silos: int, trim: float) -> int:
    """How many of so many silos are left out at either end."""
    return int(trim * silos + 1e-9)  # 0.29 * 100 is 28.999…


@dataclass(frozen=True, eq=False)
class ClippedContribution:
    """A contribution moved towards ``base`` to ``share`` of its distance, where that is below 1.

    Norm clipping: w_t + (wᵢ − w_t) / max(1, ‖wᵢ − w_t‖ / bound), rounded to float32 (Sun et al. 2019,
    https://arxiv.org/abs/1911.07963). An update within the bound passes to the bit.
    """

    whole: Contribution
    base: HeldContribution
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

    def check(self, spec: HeadSpec) -> None:
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
    """Contributions by their silo's share of its way; can be run through as often as ``parts``."""

    parts: Iterable[Contribution]
    base: Params
    shares: Mapping[str, float]

    def __iter__(self) -> Iterator[ClippedContribution]:
        base = HeldContribution("", 0, self.base)
        for part in self.parts:
            yield ClippedContribution(part, base, self.shares[part.silo])


def clipped(spec: HeadSpec, contributions: Iterable[Contribution], base: Params, clip: float) -> Clipped:
    """``contributions`` clipped to ``clip`` times the median of their own distances from ``base``.

    Sun et al. take a constant bound; the round's median needs no guess, follows the run as updates grow smaller, and
    is an honest silo's (or lies between two) while fewer than half are hostile.
    """
    lengths = {part.silo: distance(part.params, base) for part in checked(spec, contributions)}
    if not lengths:
        raise InvariantError("a median of no updates")
    bound = clip * float(np.median(list(lengths.values())))
    shares = {silo: bound / length if length > bound else 1.0 for silo, length in lengths.items()}
    return Clipped(contributions, base, shares)


def _by_coordinate(
    spec: HeadSpec, contributions: Iterable[Contribution], reduce: Reduce
) -> dict[str, npt.NDArray[np.float64]]:
    parts = sum(1 for _ in checked(spec, contributions))
    if parts == 0:
        raise InvariantError("a median or trimmed mean of no updates")
    result = np.empty(spec.parameters, np.float64)
    width = max(1, BLOCK_BYTES // (4 * parts))
    for start in range(0, spec.parameters, width):
        block = np.empty((parts, min(width, spec.parameters - start)), np.float32)
        came = 0
        for row, part in zip(block, in_order(contributions), strict=False):
            part.read(start, row)
            came += 1
        if came < parts:
            raise InvariantError("contributions that can be run through once only")
        block.sort(axis=0)
        result[start : start + width] = reduce(block)
    return tensors_of(spec, result)
