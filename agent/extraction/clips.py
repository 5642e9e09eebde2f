"""The video files of a folder, with the class and group of each.

Two layouts. Without a ``labels.csv`` the class is the name of the folder that holds the clip, at any
depth (``LABEL/clip.avi``, ``train/LABEL/clip.avi``), and a clip directly in the given folder has no
class. With a ``labels.csv`` in the given folder the clips are those that it lists:

    path,label,group
    ward-3/0001.mp4,fall,patient-17

``path`` is relative to the folder; ``group`` may be left out; an empty ``label`` means unknown.

Clips of one scene or person share a group and are held out together. Where no group is given it is
read from file names of known data sets (``default_group``), and is otherwise the file's own name.

Links may point to files inside the folder. A link that leads outside is reported and not opened:
who may put files into the folder must not thereby choose what else the agent reads.
"""

from __future__ import annotations

import csv
import io
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...base.errors import DataError, StorageError
from ...base.files import printable_path, read_regular
from ...runtime.clip_records import Segment
from ...runtime.video import is_video_name

LABELS_FILE = "labels.csv"
MAX_FOLDER_DEPTH = 16  # folders inside each other
MAX_TABLE = 256 << 20  # bytes of a labels.csv
MAX_LISTED = 2_000_000  # clips in it
MAX_LINE = 32_768  # characters
MAX_NAME = 1000  # characters of a label or a group

UCF101 = re.compile(r"v_(?P<action>.+)_g(?P<group>\d+)_c\d+")
HMDB51 = re.compile(r"(?P<source>.+)_[fhlu]_[cn]m_np\d+_(?:ba|fr|le|ri)_(?:bad|goo|med)_\d+")
KINETICS = re.compile(r"(?P<video>[\w-]{11})_\d{6}_\d{6}")
UT_INTERACTION = re.compile(r"(?P<set>set\d+)_\d+_(?P<sequence>\d+)_\d+")


@dataclass(frozen=True)
class FoundClip:
    """A video file, not opened yet."""

    path: Path
    name: str  # relative to the folder, with slashes; escaped where it is not printable; of a segment NAME#t=12.5,17
    label: str | None
    group: str
    segment: Segment | None = None  # None: the whole file
    person: str = ""
    camera: str = ""


@dataclass(frozen=True)
class ClipProblem:
    """A file that cannot be a clip, and why: ``code`` is a word, ``reason`` a sentence."""

    name: str
    code: str
    reason: str


@dataclass(frozen=True)
class ClipFolder:
    """The clips of a folder, and the files that cannot be clips."""

    clips: tuple[FoundClip, ...]  # by name
    problems: tuple[ClipProblem, ...]
    root: Path  # the folder's real path: what is read later must still be in it


def check_videos_folder(folder: Path) -> None:
    """Raise DataError ``no_clips`` unless the folder that a person has given as ``--videos`` is one."""
    if not Path(folder).is_dir():
        raise DataError(
            f"{printable_path(folder)} is not a folder of videos",
            fix="give a folder with LABEL/clip.mp4, or with a labels.csv: --videos DIR",
            code="no_clips",
        )


def find_clips(folder: Path) -> list[FoundClip]:
    """Return the usable clips of ``folder``, by name; ``scan_clips`` returns the problems too."""
    return list(scan_clips(folder).clips)


def scan_clips(folder: Path, *, labelled: bool = True) -> ClipFolder:
    """Find the clips of ``folder`` (layouts: see the module's docstring). Opens no video.

    Without ``labelled`` a labels.csv is not read: every video file is found.
    A folder inside that cannot be read is a problem like a file's. Raises StorageError when ``folder`` itself
    cannot, DataError naming the line when its labels.csv is not one.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise StorageError(f"{printable_path(folder)} is not a folder of videos", fix="give a folder with --videos")
    root = folder.resolve()
    table = folder / LABELS_FILE
    unread: list[OSError] = []
    listed = _read_labels(table, root) if labelled and os.path.lexists(table) else _walk(folder, unread)
    clips, problems = [], []
    for path, label, group in listed:
        name = _name(path, folder)
        problem = _problem(path, root)
        if problem:
            problems.append(ClipProblem(name, *problem))
        else:
            clips.append(FoundClip(path, name, label, group or default_group(path.stem, label)))
    for error in unread:
        reason = f"this folder cannot be read: {error.strerror}"
        problems.append(ClipProblem(_name(Path(error.filename), folder), "unreadable", reason))
    return ClipFolder(
        tuple(sorted(clips, key=lambda clip: clip.name)), tuple(sorted(problems, key=lambda found: found.name)), root
    )


def default_group(stem: str, label: str | None) -> str:
    """Return the scene in a file name of a known data set, or else the name itself.

    UCF101 ``v_Punch_g23_c01`` -> ``Punch_g23``; HMDB51 ``TITLE_punch_f_cm_np1_fr_med_0`` -> ``TITLE``
    (clips cut from one video); Kinetics ``VIDEOID12345_000010_000020`` -> ``VIDEOID12345``; UT-Interaction
    ``set1_26_5_2`` -> ``set1_5`` (a sequence holds every action once).
    """
    if match := UCF101.fullmatch(stem):
        return f"{match['action']}_g{match['group']}"
    if match := HMDB51.fullmatch(stem):
        return match["source"].removesuffix(f"_{label}") or stem
    if match := KINETICS.fullmatch(stem):
        return match["video"]
    if match := UT_INTERACTION.fullmatch(stem):
        return f"{match['set']}_{match['sequence']}"
    return _printable(stem)


def _walk(folder: Path, unread: list[OSError]) -> Iterator[tuple[Path, str | None, str]]:
    """Yield every file with a video's suffix; hidden files and folders are ignored.

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
            yield Path(here, name), None, ""
        kept = [name for name in folders if not name.startswith(".") and name not in linked]
        folders[:] = sorted(kept) if len(inside.parts) < MAX_FOLDER_DEPTH else []
        label = _printable(inside.name) if inside.parts else None
        for name in files:
            if not name.startswith(".") and is_video_name(name):
                yield Path(here, name), label, ""


def _read_labels(table: Path, root: Path) -> Iterator[tuple[Path, str | None, str]]:
    """Yield the rows of a labels.csv, checked; every DataError names file and line."""
    text = io.TextIOWrapper(io.BytesIO(_read_table(table, root)), encoding="utf-8-sig", newline="")
    rows = csv.reader(_lines(table, text), strict=True)
    try:
        header = [cell.strip() for cell in next(rows, [])]
        if header not in (["path", "label"], ["path", "label", "group"]):
            raise _bad_line(table, 1, f"the columns are {header}, expected path,label or path,label,group")
        seen: dict[str, int] = {}
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            if len(seen) == MAX_LISTED:
                raise _bad_line(table, rows.line_num, f"more than {MAX_LISTED} clips in one folder")
            yield _read_row(table, rows.line_num, header, row, seen)
    except csv.Error as error:
        raise _bad_line(table, rows.line_num, str(error)) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{printable_path(table)} is not UTF-8 text: {error}", fix="save the table as UTF-8", code="labels_csv"
        ) from error


def _read_table(table: Path, root: Path) -> bytes:
    """Return the file's bytes. What a link outside leads to is not read: an error would show it."""
    try:
        return read_regular(table, largest=MAX_TABLE, inside=root)
    except DataError as error:
        if error.code != "outside_folder":
            raise
        raise DataError(
            f"{printable_path(table)} is a link to a place outside of the folder",
            fix="put the file itself there",
            code="labels_csv",
        ) from error


def _lines(table: Path, text: io.TextIOWrapper) -> Iterator[str]:
    number = 0
    while line := text.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise _bad_line(table, number, f"longer than {MAX_LINE} characters")
        yield line


def _read_row(
    table: Path, line: int, header: list[str], row: list[str], seen: dict[str, int]
) -> tuple[Path, str | None, str]:
    if len(row) != len(header):
        raise _bad_line(table, line, f"{len(row)} columns, expected {len(header)}")
    name, label, group = (*(cell.strip() for cell in row), "")[:3]
    if not name or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise _bad_line(table, line, f"path {name!r}: expected a path inside {printable_path(table.parent)}")
    for column, cell in zip(("label", "group"), (label, group), strict=True):
        if len(cell) > MAX_NAME or not is_text(cell):
            raise _bad_line(
                table, line, f"the {column} is not a name: expected at most {MAX_NAME} characters, none of control"
            )
    if name in seen:
        raise _bad_line(table, line, f"path {name!r} is in line {seen[name]} already")
    seen[name] = line
    return table.parent / name, label or None, group


def _bad_line(table: Path, line: int, problem: str) -> DataError:
    return DataError(
        f"{printable_path(table)}, line {line}: {problem}",
        fix="edit this line: path,label or path,label,group, with a path relative to the folder",
        code="labels_csv",
    )


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


def is_text(text: str) -> bool:
    """True unless ``text`` holds control characters, line breaks and tabs among them."""
    return all(letter >= " " and not "\x7f" <= letter < "\xa0" for letter in text)


def _printable(text: str) -> str:
    """Escape the parts of a name that are not UTF-8 or are control characters."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
