"""What is trained on and what is measured with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from ...agent.holdout import hold_out_groups
from ...base.errors import UsageError
from ..datasets import KNOWN, Leakage, find_split_folder, leakage, official_split, paper_split
from .features import ExperimentData

SPLITS = ("groups", "paper", "official-1", "official-2", "official-3")


class SplitRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``groups`` holds out 20 % of the clips in whole groups, ``paper`` 20 % of each class's clips whatever
    their group, ``official-N`` follows the data set's own files."""

    kind: Literal["groups", "paper", "official-1", "official-2", "official-3"] = "groups"
    seed: int = 0
    share: float = 0.2


@dataclass(frozen=True, eq=False)
class DataSplit:
    """Row numbers, int64, ascending."""

    train: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]
    leakage: Leakage


def split_data(data: ExperimentData, rule: SplitRule, *, dataset: str = "", videos: Path | None = None) -> DataSplit:
    """Split the clips by ``rule``. Raises UsageError where an official split is asked for that nothing has."""
    names = [data.labels[number] for number in data.y]
    if rule.kind == "groups":
        train, test = hold_out_groups(data.groups, rule.share, rule.seed, labels=names)
    elif rule.kind == "paper":
        train, test = paper_split(names, seed=rule.seed)
    else:
        if dataset not in KNOWN or videos is None:
            raise UsageError(
                f"--split {rule.kind} needs --dataset {' or '.join(KNOWN)} and --videos DIR, where the split files are"
            )
        known = KNOWN[dataset]
        files = [note.path for note in data.clips]
        train, test = official_split(known, find_split_folder(known, videos), int(rule.kind[-1]), files, names)
    return DataSplit(train, test, leakage(data.groups, train, test))
