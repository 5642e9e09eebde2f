"""Rows to train on: features and class numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...base.errors import DataError


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """N clips as numbers; a row's class is ``labels[y]`` of the run."""

    x: npt.NDArray[np.float32]  # [N, D], C order
    y: npt.NDArray[np.int64]  # [N], in 0 … classes - 1

    def __len__(self) -> int:
        return len(self.y)

    def rows(self, index: npt.NDArray[np.int64]) -> FeatureTable:
        return FeatureTable(self.x[index], self.y[index])


def feature_table(x: npt.NDArray[np.float32], labels: Sequence[str], vocabulary: Sequence[str]) -> FeatureTable:
    """Number the labels by their place in ``vocabulary``; DataError on a label it does not hold."""
    number = {label: index for index, label in enumerate(vocabulary)}
    strangers = sorted({label for label in labels if label not in number})
    if strangers:
        raise DataError(f"labels {strangers} are not among the model's: {list(vocabulary)}", code="unknown_label")
    y = np.fromiter((number[label] for label in labels), dtype=np.int64, count=len(labels))
    return FeatureTable(np.ascontiguousarray(x, dtype=np.float32), y)
