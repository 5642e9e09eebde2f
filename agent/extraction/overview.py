"""The clips of a folder at a glance, for ``flamest-agent clips``: classes, groups with examples, notes."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from .clip_notes import ClipNote, clip_notes, gaps
from .clips import ClipFolder, scan_clips
from .groups import ClipRules

EXAMPLES = 5  # groups shown, the largest ones
SHOWN_CLIPS = 3  # of each


@dataclass(frozen=True)
class ClassCount:
    """A class, and its clips and groups."""

    label: str | None  # None: clips without a label
    clips: int
    groups: int


@dataclass(frozen=True)
class GroupExample:
    """A group, and the names of its clips, or of its first ones."""

    group: str
    clips: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class Overview:
    """The clips of a folder, counted."""

    classes: tuple[ClassCount, ...]  # by name; clips without a label last
    groups: int  # of labelled clips
    grouped_by: dict[str, int]  # clips by the source of their group: group, person, rule
    every_group: tuple[GroupExample, ...]  # the largest first, with all names
    segments: int
    gaps: int  # stretches between segments of a file that none covers
    gap_s: float
    unlisted: tuple[str, ...]  # videos in the folder that its labels.csv does not list
    notes: tuple[ClipNote, ...]

    @property
    def examples(self) -> tuple[GroupExample, ...]:
        """The largest groups, with the names of their first clips."""
        return tuple(replace(each, names=each.names[:SHOWN_CLIPS]) for each in self.every_group[:EXAMPLES])


def overview(videos: Path, folder: ClipFolder, rules: ClipRules) -> Overview:
    """Count the clips of ``folder``, which was found in ``videos`` by ``rules``. Raises as ``scan_clips``."""
    of_class: dict[str | None, list[str]] = defaultdict(list)
    of_group: dict[str, list[str]] = defaultdict(list)
    for clip in folder.clips:
        of_class[clip.label].append(clip.group)
        if clip.label is not None:
            of_group[clip.group].append(clip.name)
    classes = [
        ClassCount(label, len(groups), len(set(groups)))
        for label, groups in sorted(of_class.items(), key=lambda item: (item[0] is None, item[0] or ""))
    ]
    largest = sorted(of_group.items(), key=lambda item: (-len(item[1]), item[0]))
    between, gap_s = gaps(folder.clips)
    return Overview(
        tuple(classes),
        len(of_group),
        dict(Counter(clip.grouped_by for clip in folder.clips)),
        tuple(GroupExample(group, len(names), tuple(names)) for group, names in largest),
        sum(clip.segment is not None for clip in folder.clips),
        between,
        gap_s,
        _unlisted(videos, folder) if folder.listed else (),
        clip_notes(folder, rules),
    )


def _unlisted(videos: Path, folder: ClipFolder) -> tuple[str, ...]:
    """Return the videos that a folder holds and its labels.csv does not name."""
    listed = {clip.file_name for clip in folder.clips}
    return tuple(clip.name for clip in scan_clips(videos, labelled=False).clips if clip.name not in listed)
