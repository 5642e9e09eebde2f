"""Split of the clips into training and test rows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from ...agent.training.holdout import hold_out_groups
from ...base.errors import DataError, UsageError
from ..datasets import KNOWN, Leakage, find_split_folder, leakage, official_split, paper_split
from .features import ExperimentData

PAPER_SHARE = 0.2  # that ``paper`` holds out
SPLITS = ("groups", "paper", "official-1", "official-2", "official-3")


class SplitRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``groups`` holds out ``share`` of the clips in whole groups, ``paper`` 20 % of each class's clips whatever
    their group, ``official-N`` uses the data set's own split files."""

    kind: Literal["groups", "paper", "official-1", "official-2", "official-3"] = "groups"
    seed: int = 0
    share: float = 0.2

    @property
    def ratio(self) -> str:
        """``80:20``: percent of training and test clips of a split that is not official."""
        test = self.share if self.kind == "groups" else PAPER_SHARE
        return f"{100 - 100 * test:.3g}:{100 * test:.3g}"

    @property
    def official(self) -> bool:
        """True for a split that is read from files."""
        return self.kind.startswith("official")


@dataclass(frozen=True, eq=False)
class DataSplit:
    """Row numbers of both sides, int64, ascending."""

    train: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]
    leakage: Leakage

    @property
    def digest(self) -> str:
        """SHA-256 of the row numbers of both sides."""
        sides = (
            len(self.train).to_bytes(8, "little"),
            *(rows.astype("<i8").tobytes() for rows in (self.train, self.test)),
        )
        return hashlib.sha256(b"".join(sides)).hexdigest()


def split_data(data: ExperimentData, rule: SplitRule, *, dataset: str = "", videos: Path | None = None) -> DataSplit:
    """Split the clips by ``rule``.

    Raises UsageError when the data set has no official split, DataError when its files are missing or a
    side of the split is empty.
    """
    names = [data.labels[number] for number in data.y]
    if rule.kind == "groups":
        train, test = hold_out_groups(data.groups, rule.share, rule.seed, labels=names)
    elif rule.kind == "paper":
        train, test = paper_split(names, seed=rule.seed)
    else:
        if dataset not in KNOWN or videos is None:
            raise UsageError(
                f"--split {rule.kind} needs --dataset {' or '.join(KNOWN)} and --videos DIR with the split files",
                fix="--dataset ucf101 --videos DIR, or --split groups",
            )
        known = KNOWN[dataset]
        files = [note.file for note in data.clips]
        train, test = official_split(known, find_split_folder(known, videos), int(rule.kind[-1]), files, names)
    if not len(train) or not len(test):
        raise DataError(
            f"the split {rule.kind!r} of {len(names)} clips in {len(set(data.groups))} groups leaves {len(train)} to "
            f"train on and {len(test)} to test on",
            fix="use clips of two or more groups (scenes), or --split paper, which ignores groups",
        )
    return DataSplit(train, test, leakage(data.groups, train, test, data.extents))
