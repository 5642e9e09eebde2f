"""How far from PyTorch's fp32 a graph may be."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ..runtime.bundle.records import Precision

LIMIT = 1e-4  # fp32: largest relative error of any output
# The others: smallest cosine of a row of any output. What they change is spread over all numbers of a row.
COSINES: Mapping[Precision, float] = {"fp32": 0.999999, "fp16": 0.9999, "bf16": 0.999, "int8": 0.998}


def row_cosines(got: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Cosine of each row, all that belongs to one clip taken as one vector: [B, …] twice -> float64 [B].

    1.0 for equal rows; 0.0 where one side is zeros; NaN where a value is not finite.
    """
    a, b = (values.reshape(len(values), -1).astype(np.float64) for values in (got, expected))
    with np.errstate(invalid="ignore", over="ignore"):
        return _cosines(a, b)


def _cosines(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = np.divide((a * b).sum(axis=1), lengths, out=np.zeros(len(a)), where=lengths != 0)
    return np.where((a == b).all(axis=1), 1.0, cosines)
