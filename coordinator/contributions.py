"""What the silos bring to a round, and the sums over it: the ground that every strategy stands on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from ..base.errors import InvariantError
from ..fedproto.head import HeadSpec, Params, check_params

DISTANCE_BLOCK = 1 << 14  # values
Sums = Mapping[str, npt.NDArray[np.float64]]  # one array for each of the head's tensors; empty: all zero


@dataclass(frozen=True, eq=False)
class Contribution:
    """One silo's part of a round."""

    silo: str
    examples: int  # its weight
    params: Params


def checked(spec: HeadSpec, contributions: Iterable[Contribution]) -> Iterator[Contribution]:
    """Each contribution, checked before the caller can add any of it.

    DataError from ``check_params``; InvariantError unless silos come in ascending order, each once, with weight.
    """
    last = ""
    for part in contributions:
        if part.silo <= last or part.examples < 1:
            raise InvariantError(f"update of silo '{part.silo}' ({part.examples} examples) after '{last}' in a sum")
        check_params(spec, part.params, whose=f"update from silo '{part.silo}'")
        yield part
        last = part.silo


def weighted_mean(spec: HeadSpec, contributions: Iterable[Contribution]) -> dict[str, npt.NDArray[np.float64]]:
    """Σ nᵢ·wᵢ / Σ nᵢ in float64, in the order given; one model and one contribution in memory."""
    total = zeros(spec)
    scratch = np.empty(max(array.size for array in total.values()), np.float64)
    examples = 0
    for part in checked(spec, contributions):
        for name, tensor in part.params.items():
            weighted = scratch[: tensor.size].reshape(tensor.shape)
            np.multiply(tensor, float(part.examples), out=weighted, dtype=np.float64)
            total[name] += weighted
        examples += part.examples
    if examples == 0:
        raise InvariantError("a mean of no updates")
    for mean in total.values():
        mean /= examples
    return total


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


def file_distance(base: Params, file: BinaryIO) -> float:
    """``distance`` of the parameters in a CODEC_FP32 payload, read block by block."""
    squares = 0.0
    moved = np.empty(DISTANCE_BLOCK, np.float64)
    for tensor in base.values():
        here = tensor.reshape(-1)
        for start in range(0, here.size, DISTANCE_BLOCK):
            part = here[start : start + DISTANCE_BLOCK]
            block = moved[: part.size]
            np.subtract(np.frombuffer(file.read(4 * part.size), "<f4"), part, out=block, dtype=np.float64)
            squares += float(np.square(block, out=block).sum())
    return float(np.sqrt(squares))


def zeros(spec: HeadSpec) -> dict[str, npt.NDArray[np.float64]]:
    """Nothing, in the head's shapes."""
    return {name: np.zeros(shape, dtype=np.float64) for name, shape in spec.shapes.items()}


def value_of(sums: Sums, name: str, empty: float = 0.0) -> npt.NDArray[np.float64] | float:
    """One array of ``sums``, or ``empty`` everywhere before the first round."""
    return sums[name] if sums else empty


def float32(tensors: Sums) -> Params:
    """The one rounding at the end."""
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
