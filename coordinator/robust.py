"""Combining updates when some may be hostile: coordinate median, trimmed mean, norm clipping.

Median and trimmed mean give every silo the same weight: a weight is a claim that an attacker can make as large
as he likes. They need all silos' values of a coordinate at once, so they go through the updates block by block:
``contributions`` must be an iterable that can be run through more than once (a list, or the store's).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..base.errors import InvariantError
from ..fedproto.head import HeadSpec, Params
from .contributions import Contribution, checked, distance, float32

BLOCK_BYTES = 64 << 20  # of all silos' values that are looked at together
Reduce = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float64]]  # sorted [silos, values] to [values]


def median(spec: HeadSpec, contributions: Iterable[Contribution], silos: int) -> dict[str, npt.NDArray[np.float64]]:
    """The median of every coordinate over the silos (Yin et al. 2018, definition 1, https://arxiv.org/abs/1803.01498).

    Of an even number the mean of the middle two, in float64. Weights are not used. ``silos``: at most so many
    contribute; it decides the size of a block only.
    """

    def middle(ordered: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        low, high = (len(ordered) - 1) // 2, len(ordered) // 2
        return np.asarray((ordered[low].astype(np.float64) + ordered[high]) / 2, np.float64)

    return _by_coordinate(spec, contributions, silos, middle)


def trimmed_mean(
    spec: HeadSpec, contributions: Iterable[Contribution], silos: int, trim: float
) -> dict[str, npt.NDArray[np.float64]]:
    """The mean of every coordinate without its largest and its smallest ``trim`` share (Yin et al. 2018, definition 2).

    Of m silos floor(trim · m) are left out at either end; 0 ≤ trim < 1/2. Weights are not used.
    """

    def inner(ordered: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        cut = trimmed(len(ordered), trim)
        kept = ordered[cut : len(ordered) - cut].astype(np.float64)
        return np.asarray(kept.sum(axis=0) / len(kept), np.float64)

    return _by_coordinate(spec, contributions, silos, inner)


def trimmed(silos: int, trim: float) -> int:
    """How many of so many silos are left out at either end."""
    return int(trim * silos + 1e-9)  # 0.29 * 100 is 28.999…


@dataclass(frozen=True, eq=False)
class Clipped:
    """The same contributions, none farther from ``base`` than ``bound``; can be run through as often as ``parts``.

    Norm clipping: w_t + (wᵢ − w_t) / max(1, ‖wᵢ − w_t‖ / bound), rounded to float32 (Sun et al. 2019,
    https://arxiv.org/abs/1911.07963). An update within the bound passes to the bit.
    """

    parts: Iterable[Contribution]
    base: Params
    bound: float

    def __iter__(self) -> Iterator[Contribution]:
        for part in self.parts:
            length = distance(part.params, self.base)
            yield part if length <= self.bound else replace(part, params=self._shortened(part, length))

    def _shortened(self, part: Contribution, length: float) -> Params:
        share = self.bound / length
        return float32({name: self.base[name] + share * _difference(part, self.base, name) for name in part.params})


def clipped(spec: HeadSpec, contributions: Iterable[Contribution], base: Params, clip: float) -> Clipped:
    """``contributions`` clipped to ``clip`` times the median of their own distances from ``base``.

    Sun et al. take a constant bound; the round's median needs no guess, follows the run as updates grow smaller, and
    is an honest silo's (or lies between two) while fewer than half are hostile.
    """
    lengths = [distance(part.params, base) for part in checked(spec, contributions)]
    if not lengths:
        raise InvariantError("a median of no updates")
    return Clipped(contributions, base, clip * float(np.median(lengths)))


def _difference(part: Contribution, base: Params, name: str) -> npt.NDArray[np.float64]:
    return part.params[name].astype(np.float64) - base[name]


def _by_coordinate(
    spec: HeadSpec, contributions: Iterable[Contribution], silos: int, reduce: Reduce
) -> dict[str, npt.NDArray[np.float64]]:
    result = np.empty(spec.parameters, np.float64)
    width = max(1, BLOCK_BYTES // (4 * max(silos, 1)))
    for start in range(0, spec.parameters, width):
        stop = min(start + width, spec.parameters)
        rows = [_values(part.params, start, stop) for part in checked(spec, contributions)]
        if not rows:
            raise InvariantError("a median or trimmed mean of no updates")
        block = np.stack(rows)
        block.sort(axis=0)
        result[start:stop] = reduce(block)
    return _split(spec, result)


def _values(params: Params, start: int, stop: int) -> npt.NDArray[np.float32]:
    """Values ``start`` to ``stop`` of the tensors laid end to end."""
    found, first = [], 0
    for tensor in params.values():
        flat = tensor.reshape(-1)
        found.append(flat[max(start - first, 0) : max(stop - first, 0)])
        first += flat.size
    return np.concatenate(found)


def _split(spec: HeadSpec, values: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
    tensors, start = {}, 0
    for name, shape in spec.shapes.items():
        stop = start + int(np.prod(shape))
        tensors[name] = values[start:stop].reshape(shape)
        start = stop
    return tensors
