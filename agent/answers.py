"""Answers for embeddings: probabilities, the likeliest labels, and ``unknown`` where none is likely enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..fedproto.model_file import ModelFile
from .training.trainer import HeadTrainer, log_softmax

UNKNOWN = "unknown"  # the answer where no label is likely enough
Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LabelProbability:
    label: str
    probability: float  # softmax, 0 to 1


class Answers:
    """A model's answers.

    ``top``: labels of an answer. ``threshold``: the answer is unknown where no label's probability reaches it; with 0
    it never is.
    """

    def __init__(self, model: ModelFile, *, top: int = 5, threshold: float = 0.0, threads: int | None = None) -> None:
        self.model, self.top, self.threshold = model, top, threshold
        self._trainer = HeadTrainer(model.head, threads=threads)

    def probabilities(self, x: npt.NDArray[np.float32]) -> Probabilities:
        """Return the labels' probabilities, float64 [N, classes], of embeddings float32 [N, D]."""
        return np.asarray(np.exp(log_softmax(self._trainer.logits(self.model.params, x))))

    def is_known(self, probability: npt.NDArray[Any]) -> bool:
        """Return whether a label of ``probability``, float64 [classes], is likely enough."""
        return bool(probability.max() >= self.threshold)

    def labels(self, probability: npt.NDArray[Any]) -> tuple[LabelProbability, ...]:
        """Return the likeliest labels of ``probability``, float64 [classes], the most probable first."""
        best = np.argsort(-probability, kind="stable")[: self.top]
        return tuple(LabelProbability(self.model.labels[index], float(probability[index])) for index in best)
