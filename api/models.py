"""A trained model: read, used on features, written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..agent.training.own_head import OwnHead, open_trainer
from ..base.errors import DataError, UsageError
from ..fedproto.calibration import Calibration, is_known, probabilities
from ..fedproto.head import HeadSpec, Params
from .checks import embeddings, labelled_features, path_of
from .features import UNKNOWN, Features
from .text import counted_classes

if TYPE_CHECKING:
    from ..fedproto.model_file import ModelFile


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A trained head with its classes: ``Run.model``, or what ``load_model`` reads.

    Attributes:
        head: Its layers.
        params: Its parameters by name, float32.
        labels: Names of the classes, in the order of its outputs.
        fingerprint: The bundle whose embeddings it was trained on.
        run: The run that it is from.
        round: The round after which it was made.
        metadata: What its file holds besides.
        calibration: Its temperature and thresholds of known clips; None where it was not calibrated.
    """

    head: HeadSpec | OwnHead
    params: Params
    labels: tuple[str, ...]
    fingerprint: str
    run: str = ""
    round: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)
    calibration: Calibration | None = None

    def probabilities(self, features: Features | npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the probability of each class for each clip, float64 [N, classes]; columns as ``labels``.

        They are calibrated where the model is.

        Args:
            features: Features of the model's bundle, or embeddings [N, D].

        Raises:
            DataError: The features are of another bundle or width, or not a matrix of finite numbers.
        """
        x = self._rows(features)
        trainer = open_trainer(self.head, threads=1)
        parts = [probabilities(scores, self.calibration) for _, scores in trainer.logits_by_batch(self.params, x)]
        return np.concatenate([np.empty((0, len(self.labels))), *parts])

    def classify(self, features: Features | npt.ArrayLike) -> list[str]:
        """Return the most probable label of each clip.

        Args:
            features: Features of the model's bundle, or embeddings [N, D].

        Raises:
            DataError: The features are of another bundle or width, or not a matrix of finite numbers.
        """
        return [self.labels[number] for number in self.probabilities(features).argmax(axis=1).tolist()]

    def knows(self, features: Features | npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Return for each clip whether it is of a class that the model knows, bool [N]; all are without calibration.

        Args:
            features: Features of the model's bundle, or embeddings [N, D].

        Raises:
            DataError: The features are of another bundle or width, or not a matrix of finite numbers.
        """
        return is_known(self.probabilities(features), self.calibration)

    def accuracy(self, features: Features) -> float:
        """Return the share of the labelled clips that get their label, 0 to 1.

        Raises:
            UsageError: These are no features: embeddings alone have no labels.
            DataError: The features are of another bundle, or none has a label.
        """
        labelled_features("features", features, Features)
        labelled = features[features.y != UNKNOWN]
        if not len(labelled):
            raise DataError("no clip has a label, so there is nothing to compare with", fix="give features with labels")
        right = [found == label for found, label in zip(self.classify(labelled), labelled.names, strict=True)]
        return float(np.mean(right))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to ``path`` as ``MODEL.safetensors``.

        Raises:
            UsageError: The head was handed in: only the built-in ones have a file format.
            StorageError: The file cannot be written; an older one stays whole.
        """
        from ..fedproto.model_file import write_model

        write_model(path_of("path", path, like="save('model.safetensors')"), self.file())

    def export_onnx(self, path: str | os.PathLike[str], *, parts: Sequence[int] | None = None) -> list[Path]:
        """Write the model as ONNX graphs for serving, and return the files: the head alone, then the fused graph.

        ``path`` takes ``x`` float32 [batch, D]; ``NAME.fused.onnx`` next to it takes an input for each part of the
        embedding, ``vlm`` and ``cnn``. Both give ``logits`` and ``probabilities`` float32 [batch, classes]. There is
        no fused graph where the embedding is one part, or the widths of its parts are not known.

        Args:
            path: ``NAME.onnx``.
            parts: Widths of the fused graph's inputs, in the order of the row, such as ``(768, 2048)``; by default
                the head's blocks, or those of the published networks' embeddings.

        Raises:
            UsageError: The head was handed in: only the built-in ones have a graph. ``path`` is no ``NAME.onnx``.
            DataError: The parts do not add up to the embedding's width.
            MissingExtra: The package onnx is not installed.
            StorageError: A file cannot be written; an older one stays whole.
        """
        from ..fedproto.head_onnx import known_parts
        from ..fedproto.onnx_files import write_onnx

        model, to = self.file(), path_of("path", path, like="export_onnx('model.onnx')")
        widths = known_parts(model.head, model.fingerprint) if parts is None else tuple(map(int, parts))
        return [Path(row["file"]) for row in write_onnx(to, model, parts=widths)]

    def file(self) -> ModelFile:
        """Return the model as the content of its file."""
        from ..fedproto.model_file import ModelFile

        if not isinstance(self.head, HeadSpec):
            raise UsageError(
                "a model file describes a built-in head, and this one was handed in",
                fix="keep its parameters with: numpy.savez('params.npz', **run.params)",
            )
        names = (self.labels, self.fingerprint, self.run, self.round, dict(self.metadata))
        return ModelFile(self.head, self.params, *names, calibration=self.calibration)

    def _rows(self, features: Features | npt.ArrayLike) -> npt.NDArray[np.float32]:
        if isinstance(features, Features) and features.fingerprint != self.fingerprint:
            raise DataError(
                f"the model was trained on embeddings of {self.fingerprint[:24]}, these are of "
                f"{features.fingerprint[:24]}",
                fix="extract the clips with the model's bundle",
                code="other_features",
            )
        if isinstance(features, str | os.PathLike):
            labelled_features("features", features, Features)
        x = embeddings("features", features.x if isinstance(features, Features) else features)
        if x.shape[1] != self.head.inputs:
            raise DataError(
                f"embeddings {list(x.shape)}, expected [clips, {self.head.inputs}]",
                fix="give embeddings of the bundle that the model was trained on",
                code="bad_table",
            )
        return x

    def __repr__(self) -> str:
        layers = (
            f"{self.head.kind} {list(self.head.hidden)}"
            if isinstance(self.head, HeadSpec)
            else f"head {self.head.name}"
        )
        origin = f", {self.run} round {self.round}" if self.run else ""
        return (
            f"Model: {self.head.inputs}-d embeddings to {counted_classes(len(self.labels))}, {layers}, "
            f"{self.head.parameters:,} parameters, of {self.fingerprint[:24]}{origin}"
        )


def load_model(path: str | os.PathLike[str]) -> Model:
    """Read a model from its file, whoever wrote it: ``Run.save``, ``flamest-agent`` or ``flamest-coordinator``.

    Args:
        path: ``MODEL.safetensors``.

    Raises:
        UsageError: ``path`` is no path.
        StorageError: The file cannot be read.
        DataError: It is not a model of this package, or damaged.
        MissingExtra: The package safetensors is not installed.
    """
    from ..fedproto.model_file import read_model

    read = read_model(path_of("path", path, like="fl.load_model('model.safetensors')"))
    names = (read.labels, read.fingerprint, read.run, read.round, read.metadata)
    return Model(read.head, read.params, *names, calibration=read.calibration)
