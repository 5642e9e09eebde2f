"""Rows of one video that share time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ...runtime.clip_records import Segment
from ..extraction.labels_table import LabelRow

MAX_OPEN = 200  # parts of a video that are compared with the next one


def rows_sharing_time(rows: Iterable[LabelRow]) -> Iterator[tuple[LabelRow, LabelRow]]:
    """Yield the pairs of segments with common time, the later one first; two persons at once are no pair."""
    parts: list[tuple[Segment, LabelRow]] = [(row.segment, row) for row in rows if row.segment is not None]
    open_parts: list[tuple[Segment, LabelRow]] = []
    for segment, row in sorted(parts, key=lambda part: part[0]):
        open_parts = [part for part in open_parts[-MAX_OPEN:] if part[0].end_us > segment.start_us]
        for _, other in open_parts:
            if not (row.person and other.person and row.person != other.person):
                yield row, other
        open_parts.append((segment, row))
