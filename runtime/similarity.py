"""Cosines between embeddings: the measure of two precisions, backends or bundles on the same clips."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def row_cosines(got: npt.NDArray[Any], expected: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Cosine of each row, all values of one clip as one vector: [B, …] twice -> float64 [B].

    1.0 for equal rows; 0.0 where one side is zeros; NaN where a value is not finite.
    """
    a, b = (values.reshape(len(values), -1).astype(np.float64) for values in (got, expected))
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosines = np.divide((a * b).sum(axis=1), lengths, out=np.zeros(len(a)), where=lengths != 0)
        return np.where((a == b).all(axis=1), 1.0, cosines)


def cosine(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Cosine of two vectors, or of two arrays as one vector each; as ``row_cosines``."""
    return float(row_cosines(np.ravel(a)[None], np.ravel(b)[None])[0])
