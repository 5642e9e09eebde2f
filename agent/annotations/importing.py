"""Merge annotations into ``labels.csv``: what is new, what fills a gap of a row, what is there, what is in conflict."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...base.errors import printable
from ...runtime.clip_records import Segment, seconds_text
from ..extraction.clips import scan_clips
from ..extraction.groups import ClipRules, group_of
from ..extraction.labels_table import LabelRow
from ..extraction.listed_files import ListedFiles
from .annotation import MAX_WHERE, Annotation, AnnotationFile, EntryProblem, Unusable
from .formulas import formula_note
from .frame_spans import SpanReader
from .labels_file import AppliedChanges, Change, LabelsFile, PutRow, clean_path, row_key
from .video_names import NameMatch, VideoNames

STATES = ("new", "changed", "equal", "conflicting")
MAX_LINES = 10_000  # overlaps that are listed
MAX_OPEN = 200  # parts of a video that are compared with the next one
FOLDERS_NOTE = (
    "folders give labels here; where they are no classes, import with --folders ignore before labels.csv is there"
)
UNLIKE_FOLDERS_NOTE = (
    "no folder is called like a label of the file: imported videos get no class from their folder (--folders keep "
    "gives it), the other videos keep it (--folders ignore leaves them out)"
)


@dataclass(frozen=True)
class Merged:
    """A clip of an annotation file, beside the rows that there are."""

    state: str  # one of STATES
    row: LabelRow
    change: PutRow | None = None  # where it is new or changed


@dataclass
class ImportPlan:
    """Outcome of an import, before anything is written."""

    merged: list[Merged] = field(default_factory=list)
    matches: dict[tuple[str, str], NameMatch] = field(default_factory=dict)  # by annotation file and its video's name
    problems: list[EntryProblem] = field(default_factory=list)  # entries that are not used
    overlaps: list[EntryProblem] = field(default_factory=list)  # rows that are used, and share time with others
    notes: Counter[str] = field(default_factory=Counter)

    @property
    def changes(self) -> list[Change]:
        return [merged.change for merged in self.merged if merged.change is not None]

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the numbers of clips by label and state."""
        counts: dict[str, dict[str, int]] = {}
        for merged in self.merged:
            states = counts.setdefault(merged.row.label or "", dict.fromkeys(STATES, 0))
            states[merged.state] += 1
        return dict(sorted(counts.items()))

    def settle(self, done: AppliedChanges) -> None:
        """Note changes that were not applied, since someone changed the table after the plan was made."""
        refused = {id(conflict.change): conflict for conflict in done.conflicts}
        for number, merged in enumerate(self.merged):
            conflict = refused.get(id(merged.change))
            if conflict is not None:
                self.merged[number] = replace(merged, state="conflicting", change=None)
                self.problems.append(EntryProblem(_shown(merged.row), "conflict", conflict.reason))


class Importer:
    """The merge of annotation files into one folder's ``labels.csv``."""

    def __init__(self, labels: LabelsFile, spans: SpanReader, rules: ClipRules) -> None:
        self._labels, self._spans, self._rules = labels, spans, rules
        self._folder = labels.folder
        files = ListedFiles(self._folder, self._folder.resolve())
        self._names = video_names(self._folder)
        self._plan = ImportPlan()
        self._rows: dict[tuple[str, Segment | None], LabelRow] = {}  # by the file that a row means, and segment
        self._of_file: dict[str, list[LabelRow]] = defaultdict(list)
        self._groups: dict[str, set[str]] = defaultdict(set)  # groups that the rows of a file give
        self._imported: dict[tuple[str, Segment | None], tuple[str, int]] = {}  # where, and number in the plan
        for row in labels.rows:
            path = _relative(files.find(row.path)[0], self._folder)
            self._rows.setdefault((path, row.segment), row)
            self._add_row(path, row)

    def plan(self, sources: Iterable[tuple[str, AnnotationFile]]) -> ImportPlan:
        """Return the outcome of importing the files; the names are of the files, for messages."""
        for name, source in sources:
            self._plan.notes.update({f"{name}: {note}": count for note, count in source.notes.items()})
            self._plan.problems += [_in_file(name, problem) for problem in source.problems]
            self._match_names(name, source.annotations)
            for annotation in source.annotations:
                path = self._plan.matches[name, annotation.video].path
                if path:
                    self._merge(name, annotation, path)
        self._find_overlaps()
        if note := formula_note(merged.change.row for merged in self._plan.merged if merged.change):
            self._plan.notes[note] = 1
        self._plan.notes.update(self._spans.notes)
        return self._plan

    def _add_row(self, path: str, row: LabelRow) -> None:
        self._of_file[path].append(row)
        if row.label is not None or row.group:
            self._groups[path].add(row.group)

    def _match_names(self, name: str, annotations: list[Annotation]) -> None:
        """Find the file of every video, once; a line for each that is not found, or not alone."""
        counts = Counter(annotation.video for annotation in annotations)
        matches = {video: self._names.match(video) for video in counts}
        names_of: dict[str, list[NameMatch]] = defaultdict(list)
        for match in matches.values():
            names_of[match.path].append(match)
        for path, several in names_of.items():
            if path and len(several) > 1:
                exact = [match for match in several if not match.how]
                for match in several if len(exact) != 1 else [match for match in several if match.how]:
                    others = tuple(other.name for other in several if other is not match)
                    reason = f"{path} is meant by {printable(others[0])[:MAX_WHERE]} too: rename it in the tool"
                    self._refuse_name(name, match.name, "two_names", reason, counts)
                    matches[match.name] = replace(match, path="", candidates=(path,))
        for match in matches.values():
            self._plan.matches[name, match.name] = match
            if not match.path and not match.candidates:
                self._refuse_name(name, match.name, "unknown_video", "no video of this name is in the folder", counts)
            elif not match.path and len(match.candidates) > 1:
                found = " and ".join(match.candidates[:3]) + (" and others" if len(match.candidates) > 3 else "")
                self._refuse_name(name, match.name, "ambiguous_video", f"{found} may be meant ({match.how})", counts)

    def _refuse_name(self, name: str, video: str, code: str, reason: str, counts: Counter[str]) -> None:
        annotations = f"{counts[video]} annotation{'s' if counts[video] > 1 else ''}"
        self._plan.problems.append(
            EntryProblem(f"{name}, video {printable(video)[:MAX_WHERE]} ({annotations})", code, reason)
        )

    def _merge(self, name: str, annotation: Annotation, path: str) -> None:
        where = f"{name}, {annotation.where}"
        try:
            segment = self._spans.segment(annotation, self._folder / path)
        except Unusable as problem:
            self._plan.problems.append(EntryProblem(where, problem.code, problem.reason))
            return
        group = annotation.group or self._group(annotation, path)
        row = LabelRow(0, path, annotation.label, segment, group, annotation.person, annotation.camera)
        found = self._rows.get((path, segment))
        merged = Merged("new", row, PutRow(row)) if found is None else self._beside(where, row, found)
        self._plan.merged.append(merged)
        if merged.change is not None:
            self._rows[path, segment] = merged.change.row
            if found is None:
                self._imported[path, segment] = where, len(self._plan.merged) - 1
            if found is None:
                self._add_row(path, merged.change.row)

    def _beside(self, where: str, row: LabelRow, found: LabelRow) -> Merged:
        """Return the outcome of a clip that the table, or an annotation before it, has already."""
        before = self._imported.get((row.path, row.segment))
        there = f"{before[0]} has" if before else _line(found)
        if found.label not in (None, row.label):
            reason = f"{_shown(row)} is {row.label} here, and {there} {found.label}: {found.label} is kept"
            self._plan.problems.append(EntryProblem(where, "conflict", reason))
            if not before:
                self._note_folders(found)
            return Merged("conflicting", row)
        filled = replace(
            found,
            label=row.label,
            group=found.group or (row.group if not found.person else ""),
            person=found.person or row.person,
            camera=found.camera or row.camera,
        )
        for word in ("group", "person", "camera"):
            if getattr(row, word) and getattr(row, word) != getattr(filled, word):
                self._plan.notes[f"{word}s differ from those in the table, which are kept"] += 1
        if filled == found:
            return Merged("equal", row)
        if before is not None:  # the row is new in this import: its gaps are filled before it is written
            return self._refill(row, filled, before[1])
        return Merged("changed", row, PutRow(filled, row_key(found), found))

    def _refill(self, row: LabelRow, filled: LabelRow, number: int) -> Merged:
        first = self._plan.merged[number]
        if first.change is not None:
            self._plan.merged[number] = replace(first, change=replace(first.change, row=filled))
            rows = self._of_file[row.path]
            rows[:] = [filled if each is first.change.row else each for each in rows]
        self._rows[row.path, row.segment] = filled
        return Merged("equal", row)

    def _note_folders(self, row: LabelRow) -> None:
        if not row.line and row.label and (row.path, row.segment) not in self._imported:
            self._plan.notes[FOLDERS_NOTE] = 1

    def _group(self, annotation: Annotation, path: str) -> str:
        """Return the group that a row needs to be held out with the other rows of its video; empty where it needs none.

        Persons who are seen at the same time share frames, and a video's rows may have a group already.
        """
        groups = self._groups[path]
        if len(groups) == 1 and (group := next(iter(groups))) and not (annotation.person and not annotation.together):
            return group
        return group_of(path, annotation.label, self._rules.groups) if annotation.together else ""

    def _find_overlaps(self) -> None:
        """Note new rows that share time with rows of the same video."""
        new = {id(merged.change.row) for merged in self._plan.merged if merged.change and merged.state == "new"}
        for rows in self._of_file.values():
            parts = [(row.segment, row) for row in rows if row.segment is not None]
            added = [row for _, row in parts if id(row) in new]
            for row in rows:
                if row.segment is None and (id(row) in new or added) and len(parts):
                    self._note_whole(row)
            if added:
                self._note_overlaps(sorted(parts, key=lambda part: part[0]), new)

    def _note_overlaps(self, parts: list[tuple[Segment, LabelRow]], new: set[int]) -> None:
        open_parts: list[tuple[Segment, LabelRow]] = []
        for segment, row in parts:
            open_parts = [part for part in open_parts[-MAX_OPEN:] if part[0].end_us > segment.start_us]
            for _, other in open_parts:
                if len(self._plan.overlaps) >= MAX_LINES:
                    return
                if id(row) in new or id(other) in new:
                    self._note_overlap(row, other)
            open_parts.append((segment, row))

    def _note_whole(self, row: LabelRow) -> None:
        if row.line or row.label:
            there = _line(row) if row.line or not self._imported.get((row.path, None)) else "the file says"
            note = (
                f"{row.path}: the whole file is a clip too, next to its parts: {there} {row.label or 'without a label'}"
            )
            self._plan.notes[note] = 1
            self._note_folders(row)

    def _note_overlap(self, row: LabelRow, other: LabelRow) -> None:
        if row.person and other.person and row.person != other.person:
            return  # two persons at once
        label = other.label or "without a label"
        there = _line(other) if other.line else "it is"
        if other.label == row.label:
            reason = f"shares time with {_shown(other)} of the same label: both are kept"
        else:
            reason = f"shares time with {_shown(other)}, and {there} {label}: both are kept"
        self._plan.overlaps.append(EntryProblem(f"{_shown(row)} {row.label or ''}".strip(), "overlap", reason))


def folders_are_no_labels(rows: Iterable[LabelRow], sources: Iterable[tuple[str, AnnotationFile]]) -> bool:
    """Return True where folders give classes, and not one of them is a label of the files."""
    folders = {row.label.casefold() for row in rows if row.label}
    labels = {annotation.label.casefold() for _, source in sources for annotation in source.annotations}
    return bool(folders and labels) and not folders & labels


def imported_videos(folder: Path, sources: Iterable[tuple[str, AnnotationFile]]) -> frozenset[str]:
    """Return the paths of the videos that the files have annotations of."""
    names = video_names(folder)
    videos = {annotation.video for _, source in sources for annotation in source.annotations}
    return frozenset(names.match(video).path for video in videos) - {""}


def video_names(folder: Path) -> VideoNames:
    """Return the names of all videos below ``folder``."""
    return VideoNames(clip.path.relative_to(folder).as_posix() for clip in scan_clips(folder, labelled=False).clips)


def _in_file(name: str, problem: EntryProblem) -> EntryProblem:
    return problem._replace(where=f"{name}, {problem.where}")


def _relative(path: Path, folder: Path) -> str:
    try:
        return path.relative_to(folder).as_posix()
    except ValueError:
        return clean_path(str(path))


def _line(row: LabelRow) -> str:
    return f"labels.csv, line {row.line} is" if row.line else "the folder says"


def _shown(row: LabelRow) -> str:
    if row.segment is None:
        return row.path
    return f"{row.path} {seconds_text(row.segment.start_us)}–{seconds_text(row.segment.end_us)} s"
