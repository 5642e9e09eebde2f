"""Two test clips for the demo's report: one that the last model gets wrong next to one that it gets right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..agent.extraction.store import ClipNote, FeatureStore
from ..agent.training.dataset import FeatureTable
from ..agent.training.trainer import HeadTrainer, log_softmax
from ..fedproto.model_file import read_model
from .silos import LabelledVideo, Split, laid_out_names


@dataclass(frozen=True)
class Examples:
    """Rows of the test table to show, and the number of wrong ones."""

    right: int | None  # None: no other row is right
    doubtful: int  # the wrong row that the model is surest of; where none is wrong, the least certain one
    wrong: int


@dataclass(frozen=True)
class ExampleClip:
    """A test clip and the times of its keyframes."""

    video: LabelledVideo
    times_s: tuple[float, ...]  # seconds from clip start; empty where not known


@dataclass(frozen=True)
class ExampleClips:
    """The clips of Examples."""

    right: ExampleClip | None
    doubtful: ExampleClip
    wrong: int  # of the test clips

    @property
    def shown(self) -> tuple[ExampleClip, ...]:
        """Both clips, the right one first."""
        return (self.doubtful,) if self.right is None else (self.right, self.doubtful)


def choose_examples(probabilities: npt.NDArray[np.float64], y: npt.NDArray[np.int64]) -> Examples:
    """Choose two of N rows by the ``probabilities`` [N, classes] of their classes; ``y`` [N] are the true ones.

    The right row is of the other's class where there is one, the most certain of them: the two can be compared.
    """
    predicted = probabilities.argmax(axis=1)
    certainty = probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != y)
    doubtful = int(wrong[certainty[wrong].argmax()]) if len(wrong) else int(certainty.argmin())
    right = np.flatnonzero(predicted == y)
    right = right[right != doubtful]
    if not len(right):
        return Examples(None, doubtful, len(wrong))
    same = right[y[right] == y[doubtful]]
    among = same if len(same) else right
    return Examples(int(among[certainty[among].argmax()]), doubtful, len(wrong))


def find_examples(model: Path, store: Path, fingerprint: str, test: FeatureTable, split: Split) -> ExampleClips:
    """The two clips of the test ``store`` by the predictions of ``model``; ``test`` holds the store's features.

    Raises DataError.
    """
    read = read_model(model)
    logits = HeadTrainer(read.head).logits(read.params, test.x)
    chosen = choose_examples(np.exp(log_softmax(logits)), test.y)
    with FeatureStore.open(store, create=False, read_only=True) as opened:
        notes = opened.notes(fingerprint)

    videos = dict(zip(laid_out_names(split.test), split.test, strict=True))

    def clip(note: ClipNote) -> ExampleClip:
        return ExampleClip(videos[note.path], note.times_s)

    right = clip(notes[chosen.right]) if chosen.right is not None else None
    return ExampleClips(right, clip(notes[chosen.doubtful]), chosen.wrong)
