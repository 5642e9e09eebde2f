"""Clips of one recording in a split: what shares frames is never torn apart.

A clip may be a segment of a long recording, and segments may overlap. Two rules, for the test and for the silos:

1. Groups whose clips share a frame count as one group, so that no frame is in both training and test.
2. Clips of one recording and one group go to one silo together. Without groups of their own the segments of a
   recording have the recording's group, so a recording is in one silo, as a real one would be.

Clips that are whole files are split as if there were no recordings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..agent.training.shared_frames import Extent, clips_by_recording, joined_groups
from ..base.errors import DataError
from ..runtime.clip_records import Segment
from .partition import IMPOSSIBLE, Partition, eighth_of_even_share

Rows = npt.NDArray[np.int64]


def clip_name(file: Path | str, segment: Segment | None) -> str:
    """``file``, of a segment ``FILE#t=12.5,17``: the name of a clip as commands show and take it."""
    return str(file) if segment is None else f"{file}#{segment}"


def silo_units(groups: Sequence[str], extents: Sequence[Extent]) -> Rows:
    """int64 [N]: a number for every clip; clips of one number go to one silo together. Counted in order of rows."""
    joined = joined_groups(groups, extents)
    keys: list[tuple[str, str] | int] = list(range(len(extents)))
    for rows in clips_by_recording(extents):
        for row in rows:
            keys[row] = (extents[row].recording, joined[row])
    places: dict[tuple[str, str] | int, int] = {}
    return np.array([places.setdefault(key, len(places)) for key in keys], dtype=np.int64)


def shared_recordings(extents: Sequence[Extent], train: Rows, test: Rows) -> int:
    """Number of recordings with clips on both sides; a file that is one clip as a whole does not count."""
    sides = (set(train.tolist()), set(test.tolist()))
    return sum(all(side.intersection(rows) for side in sides) for rows in clips_by_recording(extents))


def split_units(
    units: Rows, y: npt.NDArray[np.int64], split: Callable[[npt.NDArray[np.int64]], Partition]
) -> Partition:
    """Split the rows over silos by whole units: ``split`` gets the class of each unit, its most frequent one.

    ``units``: int64 [N], 0 and up without a gap; ``y``: int64 [N]. Where every row is a unit of its own, this is
    ``split(y)``. Raises what ``split`` does; DataError where there are too few units.
    """
    count = int(units.max(initial=-1)) + 1
    if count == len(units):
        return split(y)
    classes: list[Counter[int]] = [Counter() for _ in range(count)]
    for unit, label in zip(units.tolist(), y.tolist(), strict=True):
        classes[unit][label] += 1
    most = np.array([min(found, key=lambda label: (-found[label], label)) for found in classes], dtype=np.int64)
    try:
        made = split(most)
    except DataError as error:
        if error.code != IMPOSSIBLE:
            raise
        raise DataError(
            f"the {len(units)} clips are of {count} recordings, which go to one silo each, and {error.message}",
            fix="use fewer silos, more recordings, or groups within the recordings (labels.csv, column group)",
            code=IMPOSSIBLE,
        ) from error
    parts = tuple(np.flatnonzero(np.isin(units, part)).astype(np.int64) for part in made.silos)
    return replace(made, silos=parts, unused=len(units) - sum(len(part) for part in parts))


def smallest_share(units: int, rows: int, silos: int) -> int:
    """Return the fewest units of a silo where nothing else is set: an eighth of an even share, and at least 2 clips."""
    return eighth_of_even_share(units, silos) if units == rows else max(1, units // (8 * silos))
