"""The clips of a folder: video files, or segments of them, with the class and group of each.

Two layouts. Without a ``labels.csv`` the class is the name of the folder that holds the clip, at any
depth (``LABEL/clip.avi``, ``train/LABEL/clip.avi``), or with ``[labels] folder = "top"`` the outermost folder that is
no split (``LABEL/person2/clip.avi``); a clip directly in the given folder has no class. With a ``labels.csv`` in the
given folder the clips are those that it lists (labels_table.py).

Clips of one scene or person share a group and are held out together: the row's group, else its person, else what the
rule of groups.py finds in the name.

Links may point to files inside the folder. A link that leads outside is reported and not opened:
who may put files into the folder must not thereby choose what else the agent reads.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...base.console import counted
from ...base.errors import DataError, StorageError
from ...base.files import printable_path
from ...runtime.clip_records import Segment
from ...runtime.video import is_video_name
from .groups import DEFAULT_RULES, ClipRules, group_of
from .labels_table import LABELS_FILE, LabelRow, LabelsTable, read_labels
from .listed_files import ListedFiles

GroupSource = Literal["group", "person", "rule"]
MAX_FOLDER_DEPTH = 16  # folders inside each other


@dataclass(frozen=True)
class FoundClip:
    """A video file or a segment of one, not opened yet."""

    path: Path  # of the file
    name: str  # relative to the folder, with slashes; escaped where it is not printable; a segment's with #t=12.5,17
    label: str | None
    group: str
    segment: Segment | None = None  # None: the whole file
    person: str = ""  # of labels.csv, as is camera
    camera: str = ""
    grouped_by: GroupSource = "rule"  # source of its group

    @property
    def file_name(self) -> str:
        """The file's name, relative to the folder: ``name`` without a segment."""
        return self.name if self.segment is None else self.name.removesuffix(f"#{self.segment}")


@dataclass(frozen=True)
class ClipProblem:
    """A file or row that cannot be a clip, and why: ``code`` is a word, ``reason`` a sentence."""

    name: str
    code: str
    reason: str


@dataclass(frozen=True)
class ClipFolder:
    """The clips of a folder, and the files and rows that cannot be clips."""

    clips: tuple[FoundClip, ...]  # by name; segments of a file by time
    problems: tuple[ClipProblem, ...]
    root: Path  # the folder's real path: what is read later must still be in it
    notes: tuple[str, ...] = ()  # on rows that are used, but not as they are written; they name files
    listed: bool = False  # by a labels.csv
    whole: bool = True  # False: a folder inside, or a row of labels.csv, could not be read


def check_videos_folder(folder: Path) -> None:
    """Raise DataError ``no_clips`` unless the folder that a person has given as ``--videos`` is one."""
    if not Path(folder).is_dir():
        raise DataError(
            f"{printable_path(folder)} is not a folder of videos",
            fix="give a folder with LABEL/clip.mp4, or with a labels.csv: --videos DIR",
            code="no_clips",
        )


def nothing_usable(videos: Path, folder: ClipFolder) -> DataError:
    """Return the error of a folder without any usable clip, with the first problem."""
    first = folder.problems[0]
    return DataError(
        f"none of the {counted(len(folder.problems), 'clip')} of {printable_path(videos)} is usable; the first, "
        f"{first.name}: {first.reason}",
        fix="compare the paths in labels.csv with the files: they are relative to the folder",
        code="no_clips",
    )


def find_clips(folder: Path, rules: ClipRules = DEFAULT_RULES) -> list[FoundClip]:
    """Return the usable clips of ``folder``, by name; ``scan_clips`` returns the problems too."""
    return list(scan_clips(folder, rules=rules).clips)


def scan_clips(folder: Path, *, labelled: bool = True, rules: ClipRules = DEFAULT_RULES) -> ClipFolder:
    """Find the clips of ``folder`` (layouts: see the module's docstring). Opens no video.

    Without ``labelled`` a labels.csv is not read: every video file is found.
    A folder inside that cannot be read is a problem like a file's, as is a row of labels.csv that cannot be used.
    Raises StorageError when ``folder`` itself cannot be read, DataError naming the line when its labels.csv is no such
    table.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise StorageError(f"{printable_path(folder)} is not a folder of videos", fix="give a folder with --videos")
    scan = _Scan(folder, folder.resolve(), rules)
    listed = labelled and os.path.lexists(folder / LABELS_FILE)
    if listed:
        scan.take_table(read_labels(folder, scan.root))
    else:
        scan.walk()
    return ClipFolder(
        tuple(sorted(scan.clips, key=_place)),
        tuple(sorted(scan.problems, key=lambda found: _natural(found.name))),
        scan.root,
        tuple(scan.notes),
        listed,
        scan.whole,
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts line 9 before line 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]{1,9})", name)]


def _place(clip: FoundClip) -> tuple[str, Segment]:
    return clip.file_name, clip.segment or Segment(-1, -1)


class _Scan:
    """A folder's clips, problems and notes that are found so far."""

    def __init__(self, folder: Path, root: Path, rules: ClipRules) -> None:
        self._folder, self.root, self._rules = folder, root, rules
        self.clips: list[FoundClip] = []
        self.problems: list[ClipProblem] = []
        self.notes: list[str] = []
        self.whole = True  # no clip can be missing

    def walk(self) -> None:
        """Take every file with a video's suffix; hidden files and folders are ignored."""
        unread: list[OSError] = []
        for path, label in _walk(self._folder, self._rules, unread):
            name = _name(path, self._folder)
            if problem := _problem(path, self.root):
                self.problems.append(ClipProblem(name, *problem))
            else:
                self.clips.append(FoundClip(path, name, label, group_of(name, label, self._rules.groups)))
        for error in unread:
            reason = f"this folder cannot be read: {error.strerror}"
            self.problems.append(ClipProblem(_name(Path(error.filename), self._folder), "unreadable", reason))
        self.whole = not unread

    def take_table(self, table: LabelsTable) -> None:
        """Take the rows of a labels.csv, each a clip or a problem."""
        self.problems += [ClipProblem(_line(bad.line), bad.code, bad.reason) for bad in table.bad]
        self.whole = not table.bad
        files = ListedFiles(self._folder, self.root)
        seen: dict[tuple[Path, Segment | None], LabelRow] = {}
        for row in table.rows:
            path, note = files.find(row.path)
            if note:
                self.notes.append(f"{_line(row.line)}: {note}")
            first = seen.setdefault((path, row.segment), row)
            if first is not row:
                self._take_repeated(row, first)
            else:
                self._take_row(row, path)

    def _take_row(self, row: LabelRow, path: Path) -> None:
        file_name = _name(path, self._folder)
        name = file_name if row.segment is None else f"{file_name}#{row.segment}"
        if problem := _problem(path, self.root):
            code, reason = problem
            self.problems.append(ClipProblem(name, code, f"{reason} ({_line(row.line)})"))
            return
        # Every segment of a file has the file's group, whatever the segment's own class is.
        folders = Path(file_name).parts[:-1]
        label = row.label if row.segment is None else self._rules.label_of(folders)
        group = row.group or row.person or group_of(file_name, label, self._rules.groups)
        grouped_by: GroupSource = "group" if row.group else "person" if row.person else "rule"
        self.clips.append(FoundClip(path, name, row.label, group, row.segment, row.person, row.camera, grouped_by))

    def _take_repeated(self, row: LabelRow, first: LabelRow) -> None:
        """Note a row for a clip that an earlier row lists; one that says something else is a problem."""
        where = f"the clip is in line {first.line} already"
        if (row.label, row.group, row.person, row.camera) == (first.label, first.group, first.person, first.camera):
            self.notes.append(f"{_line(row.line)}: {where}, with the same words")
            return
        label = f"label {first.label}" if first.label else "no label"
        reason = f"{where}, with {label}: that line is used; remove one of the two"
        self.problems.append(ClipProblem(_line(row.line), "repeated_row", reason))


def _line(number: int) -> str:
    return f"{LABELS_FILE}, line {number}"


def _walk(folder: Path, rules: ClipRules, unread: list[OSError]) -> Iterator[tuple[Path, str | None]]:
    """Yield every video's path and label.

    Appends the errors of folders inside to ``unread``; raises StorageError when ``folder`` itself cannot be read.
    """

    def note(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise StorageError(
                f"cannot read the folder {printable_path(folder)}: {error.strerror}",
                fix="check that this user may read it",
            ) from error
        unread.append(error)

    for here, folders, files in os.walk(folder, followlinks=False, onerror=note):
        inside = Path(here).relative_to(folder)
        linked = [name for name in folders if not name.startswith(".") and Path(here, name).is_symlink()]
        for name in linked:  # reported when it leads outside, not followed otherwise
            yield Path(here, name), None
        kept = [name for name in folders if not name.startswith(".") and name not in linked]
        folders[:] = sorted(kept) if len(inside.parts) < MAX_FOLDER_DEPTH else []
        label = rules.label_of(tuple(_printable(part) for part in inside.parts))
        for name in files:
            if not name.startswith(".") and is_video_name(name):
                yield Path(here, name), label


def _problem(path: Path, root: Path) -> tuple[str, str] | None:
    """Return code and reason why ``path`` cannot be a clip; None when it can."""
    try:
        real = path.resolve(strict=True)
        mode = real.stat().st_mode
    except (OSError, RuntimeError) as error:
        missing = isinstance(error, FileNotFoundError)
        return ("missing", "no such file") if missing else ("unreadable", getattr(error, "strerror", "") or str(error))
    if not real.is_relative_to(root):
        return "outside_folder", "is a link to a place outside of the folder: put the file itself there"
    if stat.S_ISDIR(mode) and path.is_symlink():
        return "linked_folder", "is a link to a folder, whose clips are found where they are"
    if not stat.S_ISREG(mode):
        return "video_not_a_file", "is not a regular file"
    return None


def _name(path: Path, folder: Path) -> str:
    return _printable(path.relative_to(folder).as_posix())


def _printable(text: str) -> str:
    """Escape the parts of a name that are not UTF-8 or are control characters."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
