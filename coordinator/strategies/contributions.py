"""Silos' contributions to a round, in memory or on disk, and the sums over them that every strategy uses."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ...base.errors import InvariantError
from ...fedproto.head import Params, TensorLayout, all_finite, check_params, split_params

DISTANCE_BLOCK = 1 << 13  # values; from 10,000 on OpenBLAS would share a dot product out to threads
SUM_BLOCK = 1 << 16  # values; with their float64 they stay in the cache
BATCH = 8  # contributions that are summed together, block by block
Sums = Mapping[str, npt.NDArray[np.float64]]  # one array for each of the head's tensors; empty: all zero


class Contribution(Protocol):
    """One silo's part of a round, in memory or on disk."""

    @property
    def silo(self) -> str: ...

    @property
    def examples(self) -> int:
        """Its weight."""

    @property
    def params(self) -> Params:
        """All of its tensors, read-only. Raises DataError where they are not what the silo sent."""

    def check(self, spec: TensorLayout) -> None:
        """Raise DataError for tensors that are not this head's; a file on disk is checked when it is read."""

    def read(self, start: int, out: npt.NDArray[np.float32]) -> None:
        """Fill ``out`` with the values from ``start`` on, of all tensors concatenated."""


@dataclass(frozen=True, eq=False)
class InMemoryContribution:
    """A contribution in memory."""

    silo: str
    examples: int
    params: Params

    def check(self, spec: TensorLayout) -> None:
        """See ``Contribution``."""
        check_params(spec, self.params, whose=f"update from silo '{self.silo}'")

    def read(self, start: int, out: npt.NDArray[np.float32]) -> None:
        """See ``Contribution``."""
        first = 0
        for tensor in self.params.values():
            flat = tensor.reshape(-1)
            part = flat[max(start - first, 0) : max(start + len(out) - first, 0)]
            place = max(first - start, 0)
            out[place : place + len(part)] = part
            first += len(flat)


Part = TypeVar("Part", bound=Contribution)


def in_order(contributions: Iterable[Part]) -> Iterator[Part]:
    """Yield each; InvariantError unless silos come in ascending order, each once, with a weight of 1 or more."""
    last = ""
    for part in contributions:
        if part.silo <= last or part.examples < 1:
            raise InvariantError(f"update of silo '{part.silo}' ({part.examples} examples) after '{last}' in a sum")
        yield part
        last = part.silo


def checked(spec: TensorLayout, contributions: Iterable[Contribution]) -> Iterator[InMemoryContribution]:
    """Yield each contribution in memory, in order, and checked before the caller can add any of it.

    DataError from ``check_params``, InvariantError from ``in_order``.
    """
    for part in in_order(contributions):
        held = InMemoryContribution(part.silo, part.examples, part.params)
        held.check(spec)
        yield held


def weighted_mean(spec: TensorLayout, contributions: Iterable[Contribution]) -> dict[str, npt.NDArray[np.float64]]:
    """Return Σ nᵢ·wᵢ / Σ nᵢ in float64, summed in the order given; memory is one model and ``BATCH`` contributions.

    Block by block over some silos at a time, so that a block's sum stays in the processor's cache: a third of the time
    of whole models one after the other, and the same sums to the bit. Any error raises and there is no result:
    DataError (``not_finite``, and for tensors that are not the head's), InvariantError.
    """
    total = np.zeros(spec.parameters, np.float64)
    values, weighted = np.empty(SUM_BLOCK, np.float32), np.empty(SUM_BLOCK, np.float64)
    examples = 0
    parts = in_order(contributions)
    while some := list(itertools.islice(parts, BATCH)):
        for part in some:
            part.check(spec)
        for start in range(0, len(total), SUM_BLOCK):
            sums = total[start : start + SUM_BLOCK]
            block, product = values[: len(sums)], weighted[: len(sums)]
            for part in some:
                part.read(start, block)
                np.copyto(product, block)
                product *= part.examples
                sums += product
            if not all_finite(sums):
                for part in some:
                    InMemoryContribution(part.silo, part.examples, part.params).check(spec)
        examples += sum(part.examples for part in some)
    if examples == 0:
        raise InvariantError("a mean of no updates")
    total /= examples
    return split_params(spec, total)


def distance(params: Params, base: Params) -> float:
    """Return the Euclidean norm of ``params`` − ``base`` over all tensors, in float64.

    The result does not depend on the number of threads.
    """
    squares = 0.0
    moved = np.empty(DISTANCE_BLOCK, np.float64)  # stays in the processor's cache
    for name, tensor in params.items():
        there, here = tensor.reshape(-1), base[name].reshape(-1)
        for start in range(0, there.size, DISTANCE_BLOCK):
            block = moved[: min(DISTANCE_BLOCK, there.size - start)]
            stop = start + block.size
            np.subtract(there[start:stop], here[start:stop], out=block, dtype=np.float64)
            squares += float(np.square(block, out=block).sum())
    return float(np.sqrt(squares))


def zeros(spec: TensorLayout) -> dict[str, npt.NDArray[np.float64]]:
    """Return float64 zeros in the head's shapes."""
    return {name: np.zeros(shape, dtype=np.float64) for name, shape in spec.shapes.items()}


def value_of(sums: Sums, name: str, empty: float = 0.0) -> npt.NDArray[np.float64] | float:
    """Return one array of ``sums``, or ``empty`` everywhere before the first round."""
    return sums[name] if sums else empty


def float32(tensors: Sums) -> Params:
    """Round once, at the end; a value beyond float32 becomes infinity, which ``check_params`` finds."""
    with np.errstate(over="ignore"):
        return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
