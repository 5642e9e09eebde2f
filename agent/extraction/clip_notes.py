"""Notes on a folder's clips before they are used: groups that hold nothing out, folders read two ways, overlaps.

Each is for the person, with names and a way out; a log gets its code and number alone.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from ...base.console import counted
from ...runtime.clip_records import seconds_text
from .clips import ClipFolder, FoundClip
from .groups import SPLIT_FOLDERS, ClipRules, class_folder, matches_pattern

NEARLY_ALL = 0.9  # of the labelled clips in one group
SHOWN = 6  # names in one note
GROUP_FIX = (
    "name each clip's person or scene in labels.csv (column group or person), or choose another rule under [groups] in "
    "agent.toml; flamest-agent clips shows the groups"
)


@dataclass(frozen=True)
class ClipNote:
    """A note on a folder's clips."""

    code: str  # a word, for a log
    count: int  # of what the note is about
    text: str  # a sentence, with names
    fix: str = ""


def clip_notes(folder: ClipFolder, rules: ClipRules) -> tuple[ClipNote, ...]:
    """Return the notes on the clips, the most important first."""
    labelled = [clip for clip in folder.clips if clip.label is not None]
    return (
        *_leak_notes(labelled),
        *([] if folder.listed else _folder_notes(folder.clips, rules)),
        *_group_notes(labelled),
        *_pattern_notes(folder.clips, rules),
        *_person_notes(folder.clips),
        *_segment_notes(folder.clips),
        *_row_notes(folder),
    )


def listed_names(names: Iterable[str]) -> str:
    """Return up to 6 names, and ``…`` where there are more."""
    names = list(names)
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


@dataclass(frozen=True)
class FolderReadings:
    """The classes of clips whose folder says two things: by the innermost folder, and by the outermost."""

    example: FoundClip
    clips: int
    parent: tuple[str, ...]  # sorted
    top: tuple[str, ...]


def folder_readings(clips: Sequence[FoundClip]) -> FolderReadings | None:
    """Return both readings of clips in folders inside folders; None where all folders are read one way."""
    parent, top, example, count = set(), set(), None, 0
    for clip in clips:
        folders = PurePosixPath(clip.name).parts[:-1]
        inner, outer = class_folder(folders, "parent"), class_folder(folders, "top")
        if inner is None or outer is None:
            continue
        parent.add(inner)
        top.add(outer)
        if inner != outer:
            example, count = example or clip, count + 1
    if example is None:
        return None
    return FolderReadings(example, count, tuple(sorted(parent)), tuple(sorted(top)))


def _folder_notes(clips: Sequence[FoundClip], rules: ClipRules) -> Iterator[ClipNote]:
    readings = folder_readings(clips)
    if readings is not None and rules.label_folder == "parent":
        folders = PurePosixPath(readings.example.name).parts[:-1]
        inner, outer = class_folder(folders, "parent"), class_folder(folders, "top")
        yield ClipNote(
            "folders_two_deep",
            readings.clips,
            f"{counted(readings.clips, 'clip')} in folders inside folders: the class of {readings.example.name} is "
            f"'{inner}', the folder that holds it ({_classes(readings.parent)}); by the outermost folder it would be "
            f"'{outer}' ({_classes(readings.top)})",
            'to take the outermost: folder = "top" under [labels] in agent.toml; a labels.csv says it clip by clip; '
            'where the class is right and the other folders are persons: rule = "folder" under [groups]',
        )
    splits = sorted({clip.label for clip in clips if clip.label and clip.label.casefold() in SPLIT_FOLDERS})
    if splits:
        count = sum(clip.label in splits for clip in clips)
        yield ClipNote(
            "split_is_class",
            count,
            f"{counted(count, 'clip')} of the class {listed_names(splits)}, which names a part of a data set",
            "put the clips into folders named by class inside it (train/LABEL/clip.mp4), or write a labels.csv",
        )


def _classes(names: Sequence[str]) -> str:
    return f"{len(names)} class{'' if len(names) == 1 else 'es'}: {listed_names(names)}"


def _group_notes(labelled: Sequence[FoundClip]) -> Iterator[ClipNote]:
    if len(labelled) < 2:
        return
    sizes = Counter(clip.group for clip in labelled)
    alone = sum(size == 1 for size in sizes.values())
    if 2 * alone > len(sizes):
        which = (
            f"every one of the {len(sizes)} groups"
            if alone == len(sizes)
            else f"each of {alone} of {len(sizes)} groups"
        )
        yield ClipNote(
            "groups_of_one",
            alone,
            f"{which} has one clip: two clips of one person or scene may be on both sides "
            "of the hold-out, and accuracy then looks too good",
            GROUP_FIX,
        )
    group, size = sizes.most_common(1)[0]
    if size >= max(2, NEARLY_ALL * len(labelled)):
        yield ClipNote(
            "one_group",
            size,
            f"the group '{group}' holds {size} of the {len(labelled)} labelled clips: "
            + ("nothing can be held out" if len(sizes) == 1 else "hardly anything can be held out"),
            GROUP_FIX,
        )
        if len(sizes) == 1:
            return
    groups_of: dict[str, set[str]] = defaultdict(set)
    for clip in labelled:
        groups_of[clip.label or ""].add(clip.group)
    single = sorted(label for label, groups in groups_of.items() if len(groups) == 1)
    if single:
        what = "class has" if len(single) == 1 else "classes have"
        yield ClipNote(
            "class_of_one_group",
            len(single),
            f"{len(single)} {what} one group only: nothing of {'it' if len(single) == 1 else 'them'} can be held out "
            f"({listed_names(single)})",
            "add clips of another person or scene, or divide the group in labels.csv (column group or person)",
        )


def _leak_notes(labelled: Sequence[FoundClip]) -> Iterator[ClipNote]:
    """Return files of which several groups share frames, and those with a person in some rows alone."""
    shared, partly = [], []
    for of_file in _files_with_segments(labelled):
        shared += _shared_between_groups(of_file)
        without = next((clip for clip in of_file if clip.grouped_by == "rule"), None)
        named = next((clip for clip in of_file if clip.person), None)
        if without is not None and named is not None and without.group != named.group:
            partly.append(f"{named.name} is of {named.person}, {without.name} of nobody")
    if shared:
        yield ClipNote(
            "groups_overlap",
            len(shared),
            f"{counted(len(shared), 'clip')} with frames of another clip in another group: the hold-out takes such "
            "groups as one, except with record-dp, where the same frames may be on both sides: "
            + "; ".join(shared[:3])
            + ("; …" if len(shared) > 3 else ""),
            "give both rows the same word in the column group of labels.csv",
        )
    if partly:
        yield ClipNote(
            "person_in_some_rows",
            len(partly),
            f"{counted(len(partly), 'file')} with a person in some rows and none in others, which are in another "
            f"group: {'; '.join(partly[:3])}" + ("; …" if len(partly) > 3 else ""),
            "fill the column person in all rows of the file, or the column group",
        )


def _shared_between_groups(of_file: Sequence[FoundClip]) -> list[str]:
    """Return, for each clip that shares frames with an earlier one of another group, both; sorted by start."""
    found = []
    longest: dict[str, FoundClip] = {}  # at most two groups: those of the clips that end last
    for clip in of_file:
        start, end = _times(clip)
        other = next((each for group, each in longest.items() if group != clip.group and _times(each)[1] > start), None)
        if other is not None:
            found.append(f"{other.name} ({other.group}) and {clip.segment or clip.name} ({clip.group})")
        if clip.group not in longest or _times(longest[clip.group])[1] < end:
            longest[clip.group] = clip
        if len(longest) > 2:
            del longest[min(longest, key=lambda group: _times(longest[group])[1])]
    return found


def _times(clip: FoundClip) -> tuple[float, float]:
    """Return start and end in microseconds; of a whole file without an end."""
    return (0, math.inf) if clip.segment is None else (clip.segment.start_us, clip.segment.end_us)


def _pattern_notes(clips: Sequence[FoundClip], rules: ClipRules) -> Iterator[ClipNote]:
    by_rule = [clip for clip in clips if clip.grouped_by == "rule"]
    missed = [clip.name for clip in by_rule if not matches_pattern(clip.file_name, rules.groups)]
    if missed:
        yield ClipNote(
            "pattern_misses",
            len(missed),
            f"the pattern of [groups] does not match {len(missed)} of {counted(len(by_rule), 'clip')}, whose group is "
            f"the file's name ({listed_names(missed)})",
            "change pattern under [groups] in agent.toml; it is searched for in the path with its folders",
        )


def _person_notes(clips: Sequence[FoundClip]) -> Iterator[ClipNote]:
    groups_of: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        if clip.person and clip.label is not None:
            groups_of[clip.person].add(clip.group)
    several = sorted(person for person, groups in groups_of.items() if len(groups) > 1)
    if several:
        yield ClipNote(
            "person_in_groups",
            len(several),
            f"{counted(len(several), 'person')} of labels.csv in more than one group, so perhaps on both sides of the "
            f"hold-out ({listed_names(several)})",
            "leave the column group empty there: the person is the group then",
        )


def _segment_notes(clips: Sequence[FoundClip]) -> Iterator[ClipNote]:
    """Return overlaps of one file's segments, by code; both clips are used as they are."""
    found: dict[str, list[str]] = defaultdict(list)
    for of_file in _files_with_segments(clips):
        segments = [clip for clip in of_file if clip.segment is not None]
        if len(segments) < len(of_file):
            whole = next(clip for clip in of_file if clip.segment is None)
            found["whole_and_segments"].append(f"{whole.name}, and {counted(len(segments), 'segment')} of it")
        longest = segments[0]
        for clip in segments[1:]:
            assert clip.segment is not None
            assert longest.segment is not None
            shared = min(longest.segment.end_us, clip.segment.end_us) - clip.segment.start_us
            if shared > 0:
                code = "segments_overlap" if clip.label == longest.label else "labels_overlap"
                labels = f"{longest.label or 'no label'} and {clip.label or 'no label'}"
                found[code].append(f"{longest.name} and {clip.segment} share {seconds_text(shared)} s ({labels})")
            if clip.segment.end_us > longest.segment.end_us:
                longest = clip
    words = {
        "labels_overlap": ("segment", "in part of another one with another label", "the same frames have two labels"),
        "segments_overlap": ("segment", "in part of another one with the same label", "the same frames count twice"),
        "whole_and_segments": ("file", "listed whole and in segments", "the same frames count twice"),
    }
    for code, (noun, what, meaning) in words.items():
        if code in found:
            yield ClipNote(
                code,
                len(found[code]),
                f"{counted(len(found[code]), noun)} {what}; all are used, so {meaning}: {'; '.join(found[code][:3])}"
                + ("; …" if len(found[code]) > 3 else ""),
                "if that is not meant, change start_s and end_s in labels.csv",
            )


def gaps(clips: Sequence[FoundClip]) -> tuple[int, float]:
    """Return number and seconds of the stretches between segments that no segment of the file covers."""
    number, total = 0, 0
    for of_file in _files_with_segments(clips):
        end = None
        for clip in of_file:
            if clip.segment is None:
                end = None
                break
            if end is not None and clip.segment.start_us > end:
                number, total = number + 1, total + clip.segment.start_us - end
            end = max(end or 0, clip.segment.end_us)
    return number, total / 1e6


def _files_with_segments(clips: Sequence[FoundClip]) -> Iterator[list[FoundClip]]:
    """Yield the clips of each file that has segments, a whole file first, then by start."""
    by_file: dict[str, list[FoundClip]] = defaultdict(list)
    for clip in clips:
        by_file[str(clip.path)].append(clip)
    for of_file in by_file.values():
        if any(clip.segment is not None for clip in of_file):
            yield of_file


def _row_notes(folder: ClipFolder) -> Iterator[ClipNote]:
    if folder.notes:
        yield ClipNote(
            "rows_read_otherwise",
            len(folder.notes),
            f"{counted(len(folder.notes), 'row')} of labels.csv used, but not as written: "
            + "; ".join(folder.notes[:3])
            + ("; …" if len(folder.notes) > 3 else ""),
            "write the paths as the files are called; flamest-agent clips lists all such rows",
        )
