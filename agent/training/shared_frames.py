"""Groups of clips that share frames: segments of a recording may overlap, and the hold-out must not cut a frame in two.

Clips that are whole files share nothing with each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...runtime.clip_records import Segment

WHOLE = Segment(0, 1 << 62)  # a clip that is its whole file shares frames with every segment of it


@dataclass(frozen=True)
class Extent:
    """The frames that a clip is made of."""

    recording: str  # names the file: its path or the SHA-256 of its content
    segment: Segment | None = None  # None: the whole file


def joined_groups(groups: Sequence[str], extents: Sequence[Extent]) -> tuple[str, ...]:
    """Return every clip's group; groups with clips that share a frame have one name, the first of theirs in order."""
    parent = {group: group for group in groups}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    for rows in clips_by_recording(extents):
        spans = sorted((extents[row].segment or WHOLE, groups[row]) for row in rows)
        reach, last = spans[0][0].end_us, spans[0][1]  # the latest end so far, and the group of that clip
        for segment, group in spans[1:]:
            if segment.start_us < reach:
                first, second = sorted((root(last), root(group)))
                parent[second] = first
            if segment.end_us > reach:
                reach, last = segment.end_us, group
    return tuple(root(group) for group in groups)


def clips_by_recording(extents: Sequence[Extent]) -> list[list[int]]:
    """Return the rows of each recording of which segments are clips, where it has several clips."""
    rows: dict[str, list[int]] = {}
    for row, clip in enumerate(extents):
        rows.setdefault(clip.recording, []).append(row)
    return [found for found in rows.values() if len(found) > 1 and any(extents[row].segment for row in found)]
