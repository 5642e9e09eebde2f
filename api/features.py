"""Features of clips in memory, made of arrays."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..agent.training.dataset import FeatureTable
from ..agent.training.shared_frames import Extent
from ..base.console import counted
from ..base.errors import DataError
from ..experiments.recordings import clip_name
from ..runtime.clip_records import Segment
from .checks import embeddings, fixes, path_of, texts
from .text import counted_classes

UNKNOWN = -1  # class of a clip without a label


@dataclass(frozen=True, eq=False, repr=False)
class Features:
    """Embeddings of N clips with their classes and groups: what ``load`` and ``Bundle.extract`` return.

    Indexing with row numbers, a mask or a slice gives the features of those clips. ``len`` is their number.

    Attributes:
        x: Embeddings, float32 [N, D].
        y: Classes, int64 [N]: ``labels[y]``, or -1 where a clip has no label.
        labels: Names of all classes, whether a clip here has them or not.
        groups: The group of each clip. Clips of one scene or person share one and are held out together.
        fingerprint: The bundle that the embeddings are of. Features of different fingerprints are never mixed.
        precision: The precision that they were computed in.
        vlm_width: ``x[:, :vlm_width]`` is the vision-language part; 0 where the parts are not known.
        clips: An identifier of each clip: the SHA-256 of its file (of file, start and end for a segment), or the name
            that was given.
        captions: The caption of each clip; empty where none was made.
        files: The video file of each clip, relative to the folder of videos; empty where it is not known.
        segments: The part of the file that a clip is, a ``Segment``; None for the whole file.
    """

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.int64]
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    fingerprint: str
    precision: str
    vlm_width: int
    clips: tuple[str, ...]
    captions: tuple[str, ...]
    files: tuple[str, ...]
    segments: tuple[Segment | None, ...]

    @classmethod
    def from_arrays(
        cls,
        x: npt.ArrayLike,
        y: Sequence[str] | Sequence[int] | npt.NDArray[Any],
        *,
        groups: Sequence[str] | Sequence[int] | npt.NDArray[Any] | None = None,
        clips: Sequence[str] | None = None,
        name: str = "features",
    ) -> Features:
        """Make features from NumPy arrays.

        Args:
            x: Embeddings, [N, D], finite. They are copied.
            y: The class of each clip, as names or numbers. An empty name, None, NaN and the number -1 mean unknown.
            groups: The group of each clip, such as the video that it was cut from. Without it, or where it is
                missing, a clip is its own.
            clips: A name for each clip.
            name: Name of the embeddings. Only features of one name and width are trained on together.

        Returns:
            The features, with the fingerprint ``imported:NAME:D`` that ``flamest-agent import-features`` gives them.

        Raises:
            DataError: ``x`` is not a matrix of finite real numbers, or another argument has another number of rows.
            UsageError: ``name`` is not of lower-case letters, digits, dot, dash and underscore.
        """
        from ..agent.extraction.npz import imported_fingerprint

        values = embeddings("x", x)
        rows = len(values)
        if not rows:
            raise DataError("x has no rows", fix="give a row for each clip", code="bad_table")
        names = [None if label in ("-1", "-1.0") else label for label in texts("y", y, rows)]
        ids = [f"row-{row:06d}" for row in range(rows)]
        if clips is not None:
            ids = [given or own for given, own in zip(texts("clips", clips, rows), ids, strict=True)]
        owners = ids
        if groups is not None:
            owners = [given or own for given, own in zip(texts("groups", groups, rows), ids, strict=True)]
        with fixes({"usage": "write name='vgg16-fc7'"}):
            fingerprint = imported_fingerprint(name if isinstance(name, str) else repr(name), values.shape[1])
        return numbered_features(values, ClipColumns(names, owners, ids, [""] * rows), FeatureKind(fingerprint))

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, rows: slice | npt.NDArray[Any] | Sequence[int] | Sequence[bool]) -> Features:
        try:
            index = np.arange(len(self))[rows if isinstance(rows, slice) else np.asarray(rows)]
        except IndexError as error:
            raise DataError(
                f"rows of features: {error}",
                fix="give whole numbers below the number of clips, a slice or a mask",
                code="bad_rows",
            ) from error
        if index.ndim != 1:
            raise DataError(
                "features are indexed with a slice, row numbers or a mask",
                fix="f[[0, 5, 7]], f[:100] or f[f.y == 3]",
                code="bad_rows",
            )
        pick = index.tolist()
        return replace(
            self,
            x=self.x[index],
            y=self.y[index],
            groups=tuple(self.groups[row] for row in pick),
            clips=tuple(self.clips[row] for row in pick),
            captions=tuple(self.captions[row] for row in pick),
            files=tuple(self.files[row] for row in pick),
            segments=tuple(self.segments[row] for row in pick),
        )

    @property
    def paths(self) -> list[str]:
        """The path of each clip as commands show and take it: its file, of a segment ``FILE#t=12.5,17``."""
        return [clip_name(file, segment) for file, segment in zip(self.files, self.segments, strict=True)]

    @property
    def extents(self) -> list[Extent]:
        """The frames that each clip is made of; a clip of no known file shares none."""
        named = zip(self.files, self.clips, self.segments, strict=True)
        return [Extent(file or clip, segment) for file, clip, segment in named]

    @property
    def width(self) -> int:
        """D, the width of an embedding."""
        return int(self.x.shape[1])

    @property
    def names(self) -> list[str]:
        """The label of each clip, empty where it is unknown."""
        return [self.labels[number] if number != UNKNOWN else "" for number in self.y.tolist()]

    @property
    def vlm(self) -> Features:
        """The vision-language part alone (BLIP's 768 dimensions). Raises DataError where the parts are not known."""
        return self._part("vlm", slice(0, self.vlm_width))

    @property
    def cnn(self) -> Features:
        """The spatio-temporal part alone (Slow's 2048 dimensions). Raises DataError where the parts are not known."""
        return self._part("cnn", slice(self.vlm_width, None))

    def counts(self) -> dict[str, int]:
        """Return the number of clips of each class, by label."""
        known = np.bincount(self.y[self.y != UNKNOWN], minlength=len(self.labels))
        return dict(zip(self.labels, known.tolist(), strict=True))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the features to an ``.npz`` file that ``load`` and ``flamest-agent import-features`` read.

        Raises:
            StorageError: The file cannot be written; an older one stays whole.
        """
        from ..agent.extraction.npz import write_npz
        from ..agent.extraction.store import StoredFeatures

        labels = tuple(name or None for name in self.names)
        kind = (self.fingerprint, self.precision, self.vlm_width)
        write_npz(
            path_of("path", path, like="save('features.npz')"),
            StoredFeatures(
                self.x, labels, self.groups, self.clips, self.captions, tuple(self.paths), *kind, self.segments
            ),
        )

    def table(self, labels: Sequence[str]) -> FeatureTable:
        """Return the rows to train or measure on: clips with a label, numbered by their place in ``labels``."""
        place = {label: number for number, label in enumerate(labels)}
        known = self.y != UNKNOWN
        numbers = np.array([place.get(label, UNKNOWN) for label in self.labels], np.int64)
        y = numbers[self.y[known]]
        if (y == UNKNOWN).any():
            missing = sorted({self.labels[number] for number in self.y[known][y == UNKNOWN].tolist()})
            raise DataError(
                f"labels {missing} are not among {list(labels)}",
                fix="give labels that include them, or leave those clips out",
                code="unknown_label",
            )
        return FeatureTable(np.ascontiguousarray(self.x[known]), y)

    def _part(self, name: str, columns: slice) -> Features:
        if not 0 < self.vlm_width < self.width:
            raise DataError(
                "the parts of these embeddings are not known",
                fix="extract with a bundle of two networks, such as blip+slow",
                code="no_parts",
            )
        x = np.ascontiguousarray(self.x[:, columns])
        return replace(self, x=x, vlm_width=0, fingerprint=f"{self.fingerprint}:{name}")

    def __repr__(self) -> str:
        known = int((self.y != UNKNOWN).sum())
        classes = np.unique(self.y[self.y != UNKNOWN]).size
        parts = f" ({self.vlm_width} + {self.width - self.vlm_width})" if self.vlm_width else ""
        unknown = f", {len(self) - known} without a label" if known < len(self) else ""
        return (
            f"Features: {counted(len(self), 'clip')} of {counted_classes(classes)}{unknown}, "
            f"{counted(len(set(self.groups)), 'group')}, {self.width}-d embeddings{parts}, {self.precision}, "
            f"of {self.fingerprint[:24]}"
        )


@dataclass(frozen=True)
class FeatureKind:
    """The kind of embeddings."""

    fingerprint: str
    precision: str = "fp32"
    vlm_width: int = 0


@dataclass(frozen=True)
class ClipColumns:
    """Label, group, name and caption of each clip, its file, and its segment of it."""

    names: Sequence[str | None]  # labels
    groups: Sequence[str]
    clips: Sequence[str]
    captions: Sequence[str]
    files: Sequence[str] = ()  # without them all are unknown
    segments: Sequence[Segment | None] = ()


def numbered_features(x: npt.NDArray[np.float32], columns: ClipColumns, kind: FeatureKind) -> Features:
    """Number the labels in alphabetical order, as training from a store does."""
    labels = tuple(sorted({name for name in columns.names if name is not None}))
    place = {label: number for number, label in enumerate(labels)}
    y = np.array([UNKNOWN if name is None else place[name] for name in columns.names], dtype=np.int64)
    texts = (tuple(columns.clips), tuple(columns.captions), tuple(columns.files) or ("",) * len(x))
    segments = tuple(columns.segments) or (None,) * len(x)
    of_kind = (kind.fingerprint, kind.precision, kind.vlm_width)
    return Features(x, y, labels, tuple(columns.groups), *of_kind, *texts, segments)


def union(parts: Sequence[Features]) -> Features:
    """Return the features of all ``parts`` one after the other. Raises DataError where they cannot be mixed."""
    labels = shared_labels(parts)
    place = {label: number for number, label in enumerate(labels)}
    numbers = [np.array([*(place[label] for label in part.labels), UNKNOWN], np.int64)[part.y] for part in parts]
    return replace(
        parts[0],
        x=np.concatenate([part.x for part in parts]),
        y=np.concatenate(numbers),
        labels=labels,
        groups=tuple(group for part in parts for group in part.groups),
        clips=tuple(clip for part in parts for clip in part.clips),
        captions=tuple(caption for part in parts for caption in part.captions),
        files=tuple(file for part in parts for file in part.files),
        segments=tuple(segment for part in parts for segment in part.segments),
    )


def shared_labels(parts: Sequence[Features]) -> tuple[str, ...]:
    """Return the classes of all ``parts``: theirs where they have the same, otherwise all names in order.

    Raises DataError (``other_features``) when they are of different bundles or widths.
    """
    kinds = sorted({(part.fingerprint, part.width) for part in parts})
    if len(kinds) > 1:
        listed = "; ".join(f"{width}-d of {fingerprint}" for fingerprint, width in kinds)
        raise DataError(
            f"features of different kinds cannot be mixed: {listed}",
            fix="extract all of them with the same bundle",
            code="other_features",
        )
    vocabularies = {part.labels for part in parts}
    if len(vocabularies) == 1:
        return parts[0].labels
    return tuple(sorted({label for labels in vocabularies for label in labels}))
