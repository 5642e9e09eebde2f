"""The rows of the feature store that a silo trains on, and those that it holds out for evaluation."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ...base.errors import DataError
from ..extraction.aliases import NO_ALIASES, LabelAliases
from ..extraction.store import StoredFeatures
from .holdout import hold_out_groups, hold_out_groups_independently
from .shared_frames import Extent, joined_groups


@dataclass(frozen=True)
class SideRows:
    """Origin of the rows of one side of the split."""

    clips: tuple[int, ...] = ()  # their numbers among the stored features
    groups: tuple[str, ...] = ()  # groups that share frames have one name
    identities: tuple[str, ...] = ()  # as ``StoredFeatures.clips``

    def rows(self, index: Sequence[int]) -> SideRows:
        clips, groups, identities = self.clips, self.groups, self.identities
        return SideRows(
            tuple(clips[row] for row in index),
            tuple(groups[row] for row in index),
            tuple(identities[row] for row in index),
        )


@dataclass(frozen=True, eq=False)
class SiloData:
    """A silo's labelled clips, split by whole groups."""

    train: FeatureTable
    held_out: FeatureTable
    ignored: int  # clips without a label, or with one that the run does not know
    rows: SideRows = SideRows()
    held_out_rows: SideRows = SideRows()
    stored: tuple[str, ...] = ()  # identities of all clips of the store, whether or not they can be used

    def without_rare_classes(self, least: int) -> SiloData:
        """Return the data without clips to train on of classes with fewer than ``least`` of them.

        The held-out clips stay. Nothing of the clips that are left out is in a training on the others, their number
        neither: it is the same to the bit as one of a silo that never had them.
        """
        counts = np.bincount(self.train.y, minlength=1)
        kept = np.flatnonzero(counts[self.train.y] >= least)
        if len(kept) == len(self.train):
            return self
        return replace(self, train=self.train.rows(kept), rows=self.rows.rows(kept.tolist()))

    def untrained(self, trained: Collection[str]) -> SiloData:
        """Return the data without held-out groups that have a clip of ``trained``: identities of clips."""
        side = self.held_out_rows
        seen = {group for group, clip in zip(side.groups, side.identities, strict=True) if clip in trained}
        if not seen:
            return self
        kept = np.flatnonzero([group not in seen for group in side.groups])
        return replace(self, held_out=self.held_out.rows(kept), held_out_rows=side.rows(kept.tolist()))


def silo_data(
    stored: StoredFeatures,
    labels: Sequence[str],
    *,
    hold_out: float,
    seed: int,
    independent: bool = False,
    aliases: LabelAliases = NO_ALIASES,
) -> SiloData:
    """Keep the clips whose label (see ``aliases``) is in ``labels`` and hold out ``hold_out`` of their groups.

    The split depends on the clips' groups and labels, the share and ``seed``: it is the same in every round while the
    clips are the same, and clips that are added or removed may move groups to the other side. With one group, or a
    share of 0, nothing is held out. Groups whose clips share frames of a recording count as one (shared_frames.py).

    ``independent`` (record-dp): each group by its name alone (``hold_out_groups_independently``). A clip that is added
    or removed then changes its own row and no other; the share is met on average only, and either side may be empty.
    """
    known = set(labels)
    called = aliases.all_of(stored.labels)
    kept = [row for row, label in enumerate(called) if label in known]
    names = [label for label in (called[row] for row in kept) if label is not None]
    groups = [stored.groups[row] for row in kept]
    table = feature_table(stored.x[kept], names, labels)
    ignored = len(stored.labels) - len(kept)
    files, segments = stored.files, stored.segments
    joined = joined_groups(groups, [Extent(files[row], segments[row]) for row in kept])
    if independent:
        train, held_out = hold_out_groups_independently(groups, hold_out, seed)
    elif hold_out == 0.0 or len(set(joined)) < 2:
        train, held_out = np.arange(len(kept)), np.empty(0, np.int64)
    else:
        train, held_out = hold_out_groups(joined, hold_out, seed, labels=names)
    every = SideRows(tuple(kept), tuple(joined), tuple(stored.clips[row] for row in kept))
    trained = table.rows(train) if len(held_out) else table
    sides = every.rows(train.tolist()), every.rows(held_out.tolist())
    return SiloData(trained, table.rows(held_out), ignored, *sides, tuple(stored.clips))


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """Embeddings and classes of N clips; a row's class is ``labels[y]`` of the run."""

    x: npt.NDArray[np.float32]  # [N, D], C order
    y: npt.NDArray[np.int64]  # [N], in 0 … classes - 1

    def __len__(self) -> int:
        return len(self.y)

    def rows(self, index: npt.NDArray[np.int64]) -> FeatureTable:
        return FeatureTable(self.x[index], self.y[index])


def feature_table(x: npt.NDArray[np.float32], labels: Sequence[str], vocabulary: Sequence[str]) -> FeatureTable:
    """Number the labels by their place in ``vocabulary``; DataError on a label it does not hold."""
    number = {label: index for index, label in enumerate(vocabulary)}
    unknown = sorted({label for label in labels if label not in number})
    if unknown:
        raise DataError(
            f"labels {unknown} are not among the model's: {list(vocabulary)}",
            fix="leave out these labels, or use the model that knows them",
            code="unknown_label",
        )
    y = np.fromiter((number[label] for label in labels), dtype=np.int64, count=len(labels))
    return FeatureTable(np.ascontiguousarray(x, dtype=np.float32), y)
