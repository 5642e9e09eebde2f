"""Features that the experiments train on: one store per extractor, joined over the clips' SHA-256.

A folder holds ``NAME.sqlite`` for every single extractor; pairs are concatenations. One store of
``blip+slow`` serves too (its vision-language part is BLIP, the rest Slow), and so does a store of
imported features, whose only extractor is called ``store``. Embeddings are read on first use, so that
a worker process holds only those of its own runs.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...agent.extraction.store import ClipNote, FeatureStore, StoredFeatures
from ...agent.training.shared_frames import Extent, joined_groups
from ...base.errors import DataError, UsageError
from ...base.files import printable_path

# Names in our tables, after the paper's; the keys name stores and appear on the command line.
SINGLE: dict[str, str] = {
    "blip": "BLIP",
    "clip": "CLIP",
    "resnet3d": "ResNet-3D",
    "slow": "Slow",
    "slow-uniform": "Slow (uniform frames)",
    "i3d": "I3D",
    "videomae": "Video MAE",
    "blip-text": "BLIP text only",
}
# Other ways to read BLIP, each in its own store: rows of `beyond` where the store exists.
VARIANTS: dict[str, str] = {
    "blip-4frames": "BLIP, 4 captioned keyframes",
    "blip-causal-last": "BLIP, causal mask, last token",
    "blip-causal-first": "BLIP, causal mask, first token",
}
OWN = "store"  # the only extractor of imported features
NAMES = {**SINGLE, **VARIANTS, OWN: "Stored features"}
FLAMEST = "blip+slow"
READY, NOT_EXTRACTED, UNTRAINED = "ready", "not extracted", "untrained"


def table_name(extractor: str) -> str:
    """``blip-text+slow`` -> ``BLIP text only+Slow``."""
    return "+".join(NAMES[part] for part in parts(extractor))


def parts(extractor: str) -> tuple[str, ...]:
    """The single extractors of a name. Raises UsageError on one that does not exist."""
    names = tuple(extractor.split("+"))
    for name in names:
        if name not in NAMES:
            raise UsageError(
                f"there is no extractor {name!r}; known: {', '.join([*SINGLE, *VARIANTS])}", fix="choose one of those"
            )
    return names


@dataclass(frozen=True)
class FeatureSource:
    """Location of the features; exactly one of ``folder`` and ``store``."""

    folder: Path | None = None  # of NAME.sqlite
    store: Path | None = None
    fingerprint: str | None = None  # of ``store``, where it holds several kinds
    precision: str | None = None


@dataclass(frozen=True)
class _Part:
    """A single extractor's embeddings: columns of one store."""

    path: Path
    columns: slice


class ExperimentData:
    """Clips with a label that every ready extractor has, in the order of their SHA-256.

    Made by ``open_features``. ``y``: int64 [N], indices into ``labels``.
    """

    def __init__(self, source: FeatureSource, stores: Mapping[str, _Part], notes: Mapping[str, list[ClipNote]]) -> None:
        self.source = source
        self._parts = dict(stores)
        self._untrained = _untrained(source.folder)
        known = [{note.sha256 for note in found if note.label is not None} for found in notes.values()]
        shared = set.intersection(*known)
        if not shared:
            raise DataError(
                f"the stores {sorted(notes)} have no labelled clip in common",
                fix="extract all of them from the same videos, labelled by folder or labels.csv",
            )
        self.dropped = max(len(clips) for clips in known) - len(shared)  # clips that some extractor lacks
        first = {note.sha256: note for note in next(iter(notes.values()))}
        captioned = [first] if not any("blip" in name for name in notes) else []
        captioned += [{note.sha256: note for note in notes[name]} for name in notes if name == "blip"]
        self.clips: tuple[ClipNote, ...] = tuple(first[sha256] for sha256 in sorted(shared))
        self.noted: dict[str, ClipNote] = captioned[0] if captioned else first  # by SHA-256, captions of BLIP
        names = [note.label or "" for note in self.clips]
        self.labels: tuple[str, ...] = tuple(sorted(set(names)))
        index_of = {label: index for index, label in enumerate(self.labels)}
        self.y: npt.NDArray[np.int64] = np.array([index_of[name] for name in names], dtype=np.int64)
        self.extents: tuple[Extent, ...] = tuple(Extent(note.file, note.segment) for note in self.clips)
        # Of clips that share frames the same one, so that a split by groups tears no frames apart.
        self.groups: tuple[str, ...] = joined_groups([note.group for note in self.clips], self.extents)
        self._read = functools.lru_cache(maxsize=3)(self._read_store)
        self._digests: dict[str, str] = {}
        if len(self.labels) < 2:
            raise DataError(
                f"the features are of {len(self.labels)} class, expected 2 or more", fix="extract clips of more classes"
            )

    @property
    def main(self) -> str:
        """The extractor of the ablations: BLIP+Slow where both are extracted."""
        if all(self.state(part) == READY for part in parts(FLAMEST)):
            return FLAMEST
        return OWN if OWN in self._parts else next(iter(self._parts))

    def state(self, extractor: str) -> str:
        """READY, NOT_EXTRACTED or UNTRAINED."""
        wanted = parts(extractor)
        if all(part in self._parts for part in wanted):
            return READY
        return UNTRAINED if any(part in self._untrained for part in wanted) else NOT_EXTRACTED

    def x(self, extractor: str) -> npt.NDArray[np.float32]:
        """float32 [N, D], rows as ``clips``; a pair is its parts concatenated. Raises DataError."""
        if self.state(extractor) != READY:
            raise DataError(
                f"the features of {extractor} are {self.state(extractor)}",
                fix="run: flamest-experiment extract --dataset NAME --videos DIR --out DIR",
            )
        return np.ascontiguousarray(np.concatenate([self._columns(part) for part in parts(extractor)], axis=1))

    def widths(self, extractor: str) -> tuple[int, ...]:
        """D of each part: the blocks of the head."""
        return tuple(self._columns(part).shape[1] for part in parts(extractor))

    def digest(self, extractor: str) -> str:
        """SHA-256 of a run's data on this extractor: embeddings, classes, groups. Raises DataError."""
        if extractor not in self._digests:
            digest = hashlib.sha256()
            for part in parts(extractor):
                digest.update(self._columns(part).astype("<f4", copy=False).tobytes())
            for column in (self.labels, self.groups, tuple(note.sha256 for note in self.clips)):
                digest.update("\0".join(column).encode(errors="surrogateescape") + b"\1")
            digest.update(self.y.astype("<i8").tobytes())
            self._digests[extractor] = digest.hexdigest()
        return self._digests[extractor]

    def _columns(self, part: str) -> npt.NDArray[np.float32]:
        place = self._parts[part]
        stored, rows = self._read(place.path)
        return stored.x[rows, place.columns]

    def _read_store(self, path: Path) -> tuple[StoredFeatures, npt.NDArray[np.int64]]:
        with FeatureStore.open(path, create=False, read_only=True) as store:
            stored = store.read(self.source.fingerprint, self.source.precision)
        place = {sha256: row for row, sha256 in enumerate(stored.clips)}
        return stored, np.array([place[note.sha256] for note in self.clips], dtype=np.int64)


def open_features(source: FeatureSource) -> ExperimentData:
    """Open the stores of ``source``. Raises DataError when there are none or they share no clip."""
    if source.store is not None:
        return _open_store(source, source.store)
    assert source.folder is not None
    paths = {name: source.folder / f"{name}.sqlite" for name in (*SINGLE, *VARIANTS)}
    found = {name: path for name, path in paths.items() if path.is_file()}
    notes: dict[str, list[ClipNote]] = {}
    for name, path in found.items():
        with FeatureStore.open(path, create=False, read_only=True) as store:
            if store.kinds():
                notes[name] = store.notes(source.fingerprint, source.precision)
    pair = source.folder / f"{FLAMEST}.sqlite"
    if not notes and pair.is_file():
        return _open_store(source, pair)
    if not notes:
        raise DataError(
            f"{printable_path(source.folder)} holds no feature stores, expected NAME.sqlite of {', '.join(SINGLE)}",
            fix="run: flamest-experiment extract --dataset NAME --videos DIR --out DIR, or give --store FILE",
            code="no_features",
        )
    return ExperimentData(source, {name: _Part(found[name], slice(None)) for name in notes}, notes)


def _open_store(source: FeatureSource, path: Path) -> ExperimentData:
    with FeatureStore.open(path, create=False, read_only=True) as store:
        stored = store.read(source.fingerprint, source.precision)
        notes = store.notes(source.fingerprint, source.precision)
    width = stored.vlm_width
    if 0 < width < stored.x.shape[1]:
        both = {"blip": _Part(path, slice(0, width)), "slow": _Part(path, slice(width, None))}
        return ExperimentData(source, both, dict.fromkeys(both, notes))
    return ExperimentData(source, {OWN: _Part(path, slice(None))}, {OWN: notes})


def untrained_marker(folder: Path, name: str) -> Path:
    """The file with the reason why an extractor could not be exported: its network is not trained."""
    return folder / f"{name}.untrained"


def _untrained(folder: Path | None) -> frozenset[str]:
    if folder is None:
        return frozenset()
    return frozenset(name for name in (*SINGLE, *VARIANTS) if untrained_marker(folder, name).is_file())
