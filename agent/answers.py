"""Answers for embeddings: probabilities, the likeliest labels, and ``unknown`` where none is likely enough."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..fedproto.calibration import is_known, known_scores, probabilities
from ..fedproto.model_file import ModelFile
from .training.trainer import HeadTrainer

UNKNOWN = "unknown"  # the answer where no label is likely enough
Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LabelProbability:
    label: str
    probability: float  # 0 to 1, calibrated where the model is


class Answers:
    """A model's answers.

    ``top``: labels of an answer. ``threshold``: the answer is unknown where no label's probability reaches it, with 0
    never; None: where the model's calibration says so, if it has one.
    """

    def __init__(
        self, model: ModelFile, *, top: int = 5, threshold: float | None = None, threads: int | None = None
    ) -> None:
        self.model, self.top, self.threshold = model, top, threshold
        self._trainer = HeadTrainer(model.head, threads=threads)

    def probabilities(self, x: npt.NDArray[np.float32]) -> Probabilities:
        """Return the labels' probabilities, float64 [N, classes], of embeddings float32 [N, D]."""
        return probabilities(self._trainer.logits(self.model.params, x), self.model.calibration)

    def is_known(self, probability: npt.NDArray[Any]) -> bool:
        """Return whether a label of ``probability``, float64 [classes], is likely enough."""
        if self.threshold is not None:
            return bool(probability.max() >= self.threshold)
        return bool(is_known(probability[None], self.model.calibration)[0])

    def doubt(self, probability: npt.NDArray[Any]) -> float:
        """Return how far the likeliest label is from being likely enough, nats: above 0 the answer is ``unknown``.

        -inf where it never is.
        """
        if self.threshold is not None:
            return math.log(self.threshold / max(float(probability.max()), 1e-300)) if self.threshold > 0 else -math.inf
        calibration = self.model.calibration
        if calibration is None:
            return -math.inf
        score = float(known_scores(probability[None], calibration.softening)[0])
        return calibration.thresholds[int(probability.argmax())] - score

    def labels(self, probability: npt.NDArray[Any]) -> tuple[LabelProbability, ...]:
        """Return the likeliest labels of ``probability``, float64 [classes], the most probable first."""
        best = np.argsort(-probability, kind="stable")[: self.top]
        return tuple(LabelProbability(self.model.labels[index], float(probability[index])) for index in best)
