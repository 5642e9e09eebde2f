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
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..base.errors import DataError
from ..runtime.clip_records import Segment
from .partition import IMPOSSIBLE, Partition, eighth_of_even_share

Rows = npt.NDArray[np.int64]
WHOLE = Segment(0, 1 << 62)  # a clip that is its whole file shares frames with every segment of it


@dataclass(frozen=True)
class Extent:
    """The frames that a clip is made of."""

    recording: str  # names the file: its path or the SHA-256 of its content
    segment: Segment | None = None  # None: the whole file


def clip_name(file: Path | str, segment: Segment | None) -> str:
    """``file``, of a segment ``FILE#t=12.5,17``: the name of a clip as commands show and take it."""
    return str(file) if segment is None else f"{file}#{segment}"


def joined_groups(groups: Sequence[str], extents: Sequence[Extent]) -> tuple[str, ...]:
    """The group of every clip; groups with clips that share a frame have one name, the first of theirs in order."""
    parent = {group: group for group in groups}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    for rows in _with_segments(extents):
        spans = sorted((extents[row].segment or WHOLE, groups[row]) for row in rows)
        reach, last = spans[0][0].end_us, spans[0][1]  # the latest end so far, and the group of that clip
        for segment, group in spans[1:]:
            if segment.start_us < reach:
                first, second = sorted((root(last), root(group)))
                parent[second] = first
            if segment.end_us > reach:
                reach, last = segment.end_us, group
    return tuple(root(group) for group in groups)


def silo_units(groups: Sequence[str], extents: Sequence[Extent]) -> Rows:
    """int64 [N]: a number for every clip; clips of one number go to one silo together. Counted in order of rows."""
    joined = joined_groups(groups, extents)
    keys: list[tuple[str, str] | int] = list(range(len(extents)))
    for rows in _with_segments(extents):
        for row in rows:
            keys[row] = (extents[row].recording, joined[row])
    places: dict[tuple[str, str] | int, int] = {}
    return np.array([places.setdefault(key, len(places)) for key in keys], dtype=np.int64)


def shared_recordings(extents: Sequence[Extent], train: Rows, test: Rows) -> int:
    """Number of recordings with clips on both sides; a file that is one clip as a whole does not count."""
    sides = (set(train.tolist()), set(test.tolist()))
    return sum(all(side.intersection(rows) for side in sides) for rows in _with_segments(extents))


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


def _with_segments(extents: Sequence[Extent]) -> list[list[int]]:
    """Rows of each recording of which segments are clips, where it has several clips."""
    rows: dict[str, list[int]] = {}
    for row, clip in enumerate(extents):
        rows.setdefault(clip.recording, []).append(row)
    return [found for found in rows.values() if len(found) > 1 and any(extents[row].segment for row in found)]
