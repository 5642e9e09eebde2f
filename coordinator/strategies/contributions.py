"""What the silos bring to a round, and the sums over it: the ground that every strategy stands on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ...base.errors import DataError, InvariantError
from ...fedproto.head import HeadSpec, Params, all_finite, check_params, tensors_of

DISTANCE_BLOCK = 1 << 13  # values; from 10,000 on OpenBLAS would share a dot product out to threads
SUM_BLOCK = 1 << 16  # values; with their float64 they stay in the cache
TOGETHER = 8  # contributions that are summed block by block
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
        """All of it, read-only. Raises DataError where it is not what the silo sent."""

    def check(self, spec: HeadSpec) -> None:
        """DataError for one that is not of this head; what is on disk is looked at when it is read."""

    def read(self, start: int, out: npt.NDArray[np.float32]) -> None:
        """Fill ``out`` with the values from ``start`` on, of all tensors laid end to end."""


@dataclass(frozen=True, eq=False)
class HeldContribution:
    """One that is in memory."""

    silo: str
    examples: int
    params: Params

    def check(self, spec: HeadSpec) -> None:
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
    """Each as it comes; InvariantError unless silos come in ascending order, each once, with weight."""
    last = ""
    for part in contributions:
        if part.silo <= last or part.examples < 1:
            raise InvariantError(f"update of silo '{part.silo}' ({part.examples} examples) after '{last}' in a sum")
        yield part
        last = part.silo


def checked(spec: HeadSpec, contributions: Iterable[Contribution]) -> Iterator[HeldContribution]:
    """Each contribution whole, in order and checked before the caller can add any of it.

    DataError from ``check_params``, InvariantError from ``in_order``.
    """
    for part in in_order(contributions):
        held = HeldContribution(part.silo, part.examples, part.params)
        held.check(spec)
        yield held


def weighted_mean(spec: HeadSpec, contributions: Iterable[Contribution]) -> dict[str, npt.NDArray[np.float64]]:
    """Σ nᵢ·wᵢ / Σ nᵢ in float64, in the order given; one model in memory, and ``TOGETHER`` contributions that are held.

    Block by block over some silos at a time, so that a block's sum stays in the processor's cache: a third of the time
    of whole models one after the other, and the very same sums. Whatever is wrong raises, and there is no result:
    DataError (``not_finite``, and for tensors that are not the head's), InvariantError.
    """
    total = np.zeros(spec.parameters, np.float64)
    values, weighted = np.empty(SUM_BLOCK, np.float32), np.empty(SUM_BLOCK, np.float64)
    examples = 0
    parts = in_order(contributions)
    while some := list(itertools.islice(parts, TOGETHER)):
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
                    HeldContribution(part.silo, part.examples, part.params).check(spec)
        examples += sum(part.examples for part in some)
    if examples == 0:
        raise InvariantError("a mean of no updates")
    total /= examples
    return tensors_of(spec, total)


def distance(params: Params, base: Params) -> float:
    """The Euclidean norm of ``params`` − ``base`` over all tensors, in float64, whatever the number of threads."""
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


class ArrivingDistance:
    """Looks through an update's float32 values as their bytes come: finite, and how far they are from ``base``.

    Differences and the sums over a block are in float32, the sum over the blocks in float64: within 1e-6 of
    ``distance`` at a third of its time. A block whose squares float32 cannot hold is summed in float64.
    """

    def __init__(self, base: Params, *, whose: str) -> None:
        self._tensors = [(name, tensor.reshape(-1)) for name, tensor in base.items()]
        self._whose = whose
        self._rest = b""  # of a value that a piece ended in
        self._place = 0  # values of the first tensor that came
        self._squares = 0.0
        self._moved = np.empty(DISTANCE_BLOCK, np.float32)  # stays in the processor's cache

    @property
    def so_far(self) -> float:
        """The Euclidean norm of what came, minus ``base``."""
        return math.sqrt(self._squares)

    def feed(self, data: bytes | memoryview) -> None:
        """The next bytes of the payload, no more than it has. Raises DataError (``not_finite``) naming the tensor."""
        if self._rest or len(data) % 4:
            data = self._rest + bytes(data)
            self._rest = data[len(data) - len(data) % 4 :]
        values = np.frombuffer(data, "<f4", count=len(data) // 4)
        while len(values):
            name, base = self._tensors[0]
            here = base[self._place : self._place + len(values)]
            self._add(name, values[: len(here)], here)
            values, self._place = values[len(here) :], self._place + len(here)
            if self._place == len(base):
                del self._tensors[0]
                self._place = 0

    def _add(self, name: str, there: npt.NDArray[np.float32], here: npt.NDArray[np.float32]) -> None:
        for start in range(0, len(here), DISTANCE_BLOCK):
            one, other = there[start : start + DISTANCE_BLOCK], here[start : start + DISTANCE_BLOCK]
            moved = self._moved[: len(one)]
            with np.errstate(over="ignore", invalid="ignore"):
                squares = float(np.dot(np.subtract(one, other, out=moved), moved))
            if not math.isfinite(squares):
                if not np.isfinite(one).all():
                    raise DataError(f"{self._whose}: {name} holds NaN or infinity", code="not_finite")
                squares = float(np.square(np.subtract(one, other, dtype=np.float64)).sum())
            self._squares += squares


def zeros(spec: HeadSpec) -> dict[str, npt.NDArray[np.float64]]:
    """Nothing, in the head's shapes."""
    return {name: np.zeros(shape, dtype=np.float64) for name, shape in spec.shapes.items()}


def value_of(sums: Sums, name: str, empty: float = 0.0) -> npt.NDArray[np.float64] | float:
    """One array of ``sums``, or ``empty`` everywhere before the first round."""
    return sums[name] if sums else empty


def float32(tensors: Sums) -> Params:
    """The one rounding at the end; what is beyond float32 becomes infinity, which ``check_params`` finds."""
    with np.errstate(over="ignore"):
        return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
