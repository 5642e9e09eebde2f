"""Merge annotations into ``labels.csv``: what is new, what fills a gap of a row, what is there, what is in conflict."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ...base.errors import printable
from ...runtime.clip_records import Segment
from ..extraction.clips import scan_clips
from ..extraction.groups import ClipRules, group_of
from ..extraction.labels_table import LabelRow
from ..extraction.listed_files import ListedFiles
from .annotation import MAX_WHERE, Annotation, AnnotationFile, EntryProblem, Unusable
from .formulas import formula_note
from .frame_spans import SpanReader
from .import_plan import ImportPlan, Merged, shown_clip, who_says
from .labels_file import LabelsFile, PutRow, RemoveRow, clean_path, row_key
from .overlaps import rows_sharing_time
from .video_names import NameMatch, VideoNames

MAX_LINES = 10_000  # overlaps that are listed
FOLDERS_NOTE = (
    "folders give labels here; where they are no classes, import with --folders ignore before labels.csv is there"
)
UNLIKE_FOLDERS_NOTE = (
    "no folder is called like a label of the file: imported videos get no class from their folder (--folders keep "
    "gives it), the other videos keep it (--folders ignore leaves them out)"
)


class Importer:
    """The merge of annotation files into one folder's ``labels.csv``."""

    def __init__(self, labels: LabelsFile, spans: SpanReader, rules: ClipRules, *, replaces: bool = False) -> None:
        """``replaces``: the files' segments of a video are put in the place of those that the table has of it."""
        self._folder, self._spans, self._rules, self._replaces = labels.folder, spans, rules, replaces
        files = ListedFiles(self._folder, self._folder.resolve())
        self._names = video_names(self._folder)
        self._plan = ImportPlan()
        self._rows: dict[tuple[str, Segment | None], LabelRow] = {}  # by the file that a row means, and segment
        self._of_file: dict[str, list[LabelRow]] = defaultdict(list)
        self._groups: dict[str, set[str]] = defaultdict(set)  # groups that the rows of a file give
        self._imported: dict[tuple[str, Segment | None], int] = {}  # number of a new row in the plan
        self._said: dict[tuple[str, Segment | None], str] = {}  # where the files say what a clip is now
        self._given: dict[str, set[Segment]] = defaultdict(set)  # segments that the files give a file
        self._now: dict[int, LabelRow] = {}  # rows of the table as they will be, by the identity of those that are
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
        self._find_others()
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
        if segment is not None:
            self._given[path].add(segment)
        found = self._rows.get((path, segment))
        merged = Merged("new", row, PutRow(row)) if found is None else self._compare(where, row, found)
        self._plan.merged.append(merged)
        if merged.state != "conflicting":
            self._said.setdefault((path, segment), where)
        if merged.change is not None:
            self._rows[path, segment] = merged.change.row
            if found is None:
                self._imported[path, segment] = len(self._plan.merged) - 1
                self._add_row(path, merged.change.row)
            else:
                self._now[id(found)] = merged.change.row

    def _compare(self, where: str, row: LabelRow, found: LabelRow) -> Merged:
        """Return the outcome of a clip that the table, or an annotation before it, has already."""
        key = (row.path, row.segment)
        if found.label not in (None, row.label) and (key in self._said or not self._replaces):
            there = f"{self._said[key]} has" if key in self._said else who_says(found)
            reason = f"{shown_clip(row)} is {row.label} here, and {there} {found.label}: {found.label} is kept"
            self._plan.problems.append(EntryProblem(where, "conflict", reason))
            if key not in self._said:
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
        if key in self._imported:  # the row is new in this import: its gaps are filled before it is written
            return self._refill(row, filled, self._imported[key])
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

    def _find_others(self) -> None:
        """Find segments that the table has of the files' videos and the files lack: removed, or next to new ones."""
        new = {merged.row.path for merged in self._plan.merged if merged.state == "new" and merged.row.segment}
        for path, given in self._given.items():
            others = [row for row in self._of_file[path] if row.line and row.segment and row.segment not in given]
            if self._replaces:
                self._plan.removals += [RemoveRow(row.path, row.segment, row) for row in others]
            elif path in new:
                self._plan.others += [row for row in others if row.label is not None]

    def _find_overlaps(self) -> None:
        """Note new rows that share time with rows of the same video."""
        new = {id(merged.change.row) for merged in self._plan.merged if merged.change and merged.state == "new"}
        removed = {id(removal.expected) for removal in self._plan.removals}
        others = {id(row) for row in self._plan.others}
        sharing: set[int] = set()
        for all_rows in self._of_file.values():
            rows = [self._now.get(id(row), row) for row in all_rows if id(row) not in removed]
            if not any(id(row) in new for row in rows):
                continue
            self._note_whole_files(rows, new)
            for row, other in rows_sharing_time(rows):
                if id(row) in new or id(other) in new:
                    sharing |= {id(row), id(other)} & others
                    if len(self._plan.overlaps) < MAX_LINES:
                        self._note_overlap(row, other)
        self._plan.others_sharing = len(sharing)

    def _note_whole_files(self, rows: list[LabelRow], new: set[int]) -> None:
        """Note whole files next to segments, where one of both is new."""
        parts = [row for row in rows if row.segment is not None]
        new_parts = any(id(row) in new for row in parts)
        for row in rows:
            if row.segment is None and parts and (id(row) in new or new_parts):
                self._note_whole(row)

    def _note_whole(self, row: LabelRow) -> None:
        if row.line or row.label:
            there = who_says(row) if row.line or (row.path, None) not in self._imported else "the file says"
            note = (
                f"{row.path}: the whole file is a clip too, next to its parts: {there} {row.label or 'without a label'}"
            )
            self._plan.notes[note] = 1
            self._note_folders(row)

    def _note_overlap(self, row: LabelRow, other: LabelRow) -> None:
        label = other.label or "without a label"
        there = who_says(other) if other.line else "it is"
        if other.label == row.label:
            reason = f"shares time with {shown_clip(other)} of the same label"
        else:
            reason = f"shares time with {shown_clip(other)}, and {there} {label}"
        self._plan.overlaps.append(EntryProblem(f"{shown_clip(row)} {row.label or ''}".strip(), "overlap", reason))


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
