"""Read ``labels.csv``: the clips of a folder as a person or a tool lists them.

    path,label,group,person,camera,start_s,end_s
    ward-3/0001.mp4,fall,,patient-17,,12.5,17
    ward-3/0002.mp4,walk,kitchen,,cam-2,,

The header names the columns, in any order; ``path`` and ``label`` are needed. ``path`` is relative to the folder; an
empty ``label`` means unknown. With ``start_s`` and ``end_s``, seconds from the video's first frame, a row is that part
of the video, and without both the whole file. A row that cannot be used is reported with its line, and the others are
read; only a file that is no such table at all is an error.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...base.errors import DataError, StorageError
from ...base.files import open_regular, printable_path, read_regular
from ...runtime.clip_records import Segment, seconds_text
from .name_letters import name_problem

LABELS_FILE = "labels.csv"
COLUMNS = ("path", "label", "group", "person", "camera", "start_s", "end_s")
NEEDED = ("path", "label")
MAX_TABLE = 256 << 20  # bytes of a labels.csv
MAX_LISTED = 2_000_000  # rows in it
MAX_LINE = 32_768  # characters
MAX_NAME = 1000  # characters of a label, a group, a person or a camera
MAX_TIME_S = 31_536_000  # a year

_TOO_LONG = "\x1a"  # stands for a line of more than MAX_LINE characters
_CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:[.,]\d+)?)")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_DECIMAL_COMMA = re.compile(r"\d+,\d+")
_WINDOWS_ABSOLUTE = re.compile(r"[A-Za-z]:[\\/]|\\\\")


@dataclass(frozen=True)
class LabelRow:
    """A row of the table: a clip, known by ``path`` and ``segment``."""

    line: int  # in the file, the first is 1
    path: str  # relative to the folder, as it is written
    label: str | None  # None: unknown
    segment: Segment | None = None  # None: the whole file
    group: str = ""  # empty where the row does not say
    person: str = ""
    camera: str = ""


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: ``code`` is a word, ``reason`` a sentence without the line's number."""

    line: int
    code: str
    reason: str


@dataclass(frozen=True)
class LabelsTable:
    """The rows of a labels.csv, in the file's order."""

    rows: tuple[LabelRow, ...]
    bad: tuple[BadRow, ...]
    columns: tuple[str, ...]  # of the header


def read_labels(folder: Path, root: Path) -> LabelsTable:
    """Read ``folder/labels.csv``; ``root`` is the folder's real path, outside of which nothing is read.

    Raises DataError ``labels_csv`` for a file that is no such table (header, encoding, a quote without an end), naming
    the line; as ``read_regular`` for one that is no regular file.
    """
    table = folder / LABELS_FILE
    with _no_link_out(table):
        content = read_regular(table, largest=MAX_TABLE, inside=root)
    return parse_labels(content, table)


def check_labels_file(folder: Path) -> None:
    """Check that ``folder/labels.csv`` can be read, where there is one; nothing of it is.

    Raises DataError ``labels_csv`` for a link that leads out; as ``read_regular`` for one that is no regular file, is
    too large, or that this user may not read.
    """
    table = folder / LABELS_FILE
    if os.path.lexists(table):
        with _no_link_out(table):
            open_regular(table, largest=MAX_TABLE, inside=folder.resolve()).close()


def parse_labels(content: bytes, table: Path = Path(LABELS_FILE)) -> LabelsTable:
    """Read the content of a labels.csv; ``table`` names it in errors. Raises DataError ``labels_csv``."""
    _check_encoding(content, table)
    text = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline="")
    lines = csv.reader(_lines(text), strict=True)
    columns: tuple[str, ...] = ()
    rows: list[LabelRow] = []
    bad: list[BadRow] = []
    while True:
        line = lines.line_num + 1
        try:
            cells = next(lines, None)
        except csv.Error as error:
            if not columns or "expected after" not in str(error):
                raise _no_table(
                    table, line, _csv_problem(str(error)), 'close the quote: every " has its pair'
                ) from error
            last = f"; lines {line} to {lines.line_num} are not read" if lines.line_num > line else ""
            bad.append(BadRow(line, "bad_row", f"there is text after a closing quote{last}"))
            continue
        if cells is None:
            break
        if not columns:
            columns = _header(cells, table)
        elif any(cell.strip() for cell in cells):
            try:
                rows.append(_row(line, dict(zip(columns, cells, strict=False)), len(cells), columns))
            except _Unusable as problem:
                bad.append(BadRow(line, problem.code, problem.reason))
        if len(rows) + len(bad) > MAX_LISTED:
            raise _no_table(table, line, f"more than {MAX_LISTED} rows in one folder", "split the folder")
    if not columns:
        raise _no_table(table, 1, "the file is empty, expected path,label", _HEADER_FIX)
    return LabelsTable(tuple(rows), tuple(bad), columns)


def seconds_us(text: str) -> int:
    """Return a time of the table in microseconds; raises ValueError with a sentence that says how to write it."""
    if match := _CLOCK.fullmatch(text):
        hours, minutes, seconds = int(match[1] or 0), int(match[2]), float(match[3].replace(",", "."))
        total = f"{hours * 3600 + minutes * 60 + seconds:.6f}".rstrip("0").rstrip(".")
        also = "" if match[1] else f" (or {int(match[2]) * 3600 + int(float(match[3]) * 60)}, if these are hours)"
        raise ValueError(f"{text!r} is a clock's notation, expected seconds: {total}{also}")
    if _DECIMAL_COMMA.fullmatch(text):
        raise ValueError(f"{text!r} has a decimal comma, expected a point: {text.replace(',', '.')}")
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{text!r} is not a number of seconds, expected one like 12.5")
    seconds = float(text)
    if not 0 <= seconds <= MAX_TIME_S:
        raise ValueError(f"{text} is outside of 0 to {MAX_TIME_S:,} seconds, counted from the video's first frame")
    return round(seconds * 1e6)


def is_text(text: str) -> bool:
    """True unless ``text`` holds control characters, line breaks and tabs among them."""
    return all(letter >= " " and not "\x7f" <= letter < "\xa0" for letter in text)


class _Unusable(Exception):
    """The row being read cannot be used."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


def _row(line: int, cells: dict[str, str], count: int, columns: tuple[str, ...]) -> LabelRow:
    values = {name: cell.strip() for name, cell in cells.items()}
    if any(_TOO_LONG in cell for cell in cells.values()):
        raise _Unusable("bad_row", f"longer than {MAX_LINE} characters")
    if count != len(columns):
        raise _Unusable("bad_row", f"{count} columns, expected {len(columns)}: {','.join(columns)}")
    path = values["path"]
    _check_path(path)
    for column in ("label", "group", "person", "camera"):
        if problem := name_problem(cell := values.get(column, "")):
            raise _Unusable("bad_name", f"the {column} {problem}")
        if len(cell) > MAX_NAME:
            raise _Unusable("bad_name", f"the {column} is not a name: expected at most {MAX_NAME} characters")
    return LabelRow(
        line,
        path,
        values["label"] or None,
        _segment(values.get("start_s", ""), values.get("end_s", "")),
        values.get("group", ""),
        values.get("person", ""),
        values.get("camera", ""),
    )


def _check_path(path: str) -> None:
    if not path or not is_text(path):
        raise _Unusable("bad_path", f"path {path[:MAX_NAME]!r}: expected a path inside the folder")
    if _WINDOWS_ABSOLUTE.match(path):
        raise _Unusable(
            "bad_path", f"path {path!r} starts at a drive, expected a path inside the folder, like ward-3/0001.mp4"
        )
    if Path(path).is_absolute() or ".." in path.replace("\\", "/").split("/"):
        raise _Unusable("bad_path", f"path {path!r}: expected a path inside the folder, like ward-3/0001.mp4")


def _segment(start: str, end: str) -> Segment | None:
    if not start and not end:
        return None
    if not start or not end:
        missing, there = ("start_s", "end_s") if not start else ("end_s", "start_s")
        raise _Unusable("bad_segment", f"{there} without {missing}: a segment needs both, the whole file neither")
    times = []
    for column, text in (("start_s", start), ("end_s", end)):
        try:
            times.append(seconds_us(text))
        except ValueError as error:
            raise _Unusable("bad_segment", f"{column} {error}") from error
    if times[1] <= times[0]:
        from_to = f"from {seconds_text(times[0])} to {seconds_text(times[1])} s"
        raise _Unusable("bad_segment", f"the segment {from_to} is empty: expected end_s after start_s")
    return Segment(*times)


_HEADER_FIX = "start the file with the line path,label, or with more of: " + ",".join(COLUMNS)


def _header(cells: list[str], table: Path) -> tuple[str, ...]:
    """Check the first line; raises DataError."""
    columns = tuple(cell.strip() for cell in cells)
    for mark, word in ((";", "semicolons"), ("\t", "tabs")):
        if len(columns) == 1 and mark in cells[0]:
            raise _no_table(
                table,
                1,
                f"the columns are separated by {word}, expected commas",
                "save the table as 'CSV UTF-8 (comma delimited)'; in LibreOffice: Save As, Edit filter settings, "
                "field delimiter ,",
            )
    if any(_TOO_LONG in cell for cell in cells):
        raise _no_table(table, 1, f"longer than {MAX_LINE} characters, expected path,label", _HEADER_FIX)
    shown = ",".join(columns)[:200]
    if unknown := [name for name in columns if name not in COLUMNS]:
        raise _no_table(
            table,
            1,
            f"the columns are {shown}, expected path,label and any of {','.join(COLUMNS[2:])}; unknown: "
            f"{', '.join(unknown)[:200] or 'a column without a name'}",
            "name the columns as these, and remove others; a table of video,label,start,end: flamest-agent "
            "import-labels FILE --videos DIR",
        )
    if len(set(columns)) < len(columns) or not set(NEEDED) <= set(columns):
        raise _no_table(table, 1, f"the columns are {shown}, expected path,label, each once", _HEADER_FIX)
    return columns


def _check_encoding(content: bytes, table: Path) -> None:
    """Raise DataError unless the content is UTF-8."""
    fix = "save the table as UTF-8: in a spreadsheet 'CSV UTF-8 (comma delimited)'"
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(
            f"{printable_path(table)} is UTF-16 text ('Unicode text' of a spreadsheet), expected UTF-8",
            fix=fix,
            code="labels_csv",
        )
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{printable_path(table)}, line {line}: is not UTF-8 text: {error.reason}", fix=fix, code="labels_csv"
        ) from error


@contextlib.contextmanager
def _no_link_out(table: Path) -> Iterator[None]:
    """Make the error of a link that leads out or nowhere that of a table: what it leads to is not read, nor shown."""
    try:
        yield
    except (DataError, StorageError) as error:
        if error.code != "outside_folder" and not (table.is_symlink() and not table.exists()):
            raise
        raise DataError(
            f"{printable_path(table)} is a link that leads nowhere or to a place outside of the folder",
            fix="put the file itself there",
            code="labels_csv",
        ) from error


def _lines(text: io.TextIOWrapper) -> Iterator[str]:
    """Yield the lines; a longer one than MAX_LINE as a mark."""
    while line := text.readline(MAX_LINE + 1):
        if len(line) <= MAX_LINE:
            yield line
            continue
        while line and not line.endswith(("\n", "\r")):
            line = text.readline(MAX_LINE + 1)
        yield _TOO_LONG + "\n"


def _csv_problem(problem: str) -> str:
    if "unexpected end" in problem or "field larger" in problem:
        return "a quote has no end: unexpected end of the cell"
    return problem


def _no_table(table: Path, line: int, problem: str, fix: str) -> DataError:
    return DataError(f"{printable_path(table)}, line {line}: {problem}", fix=fix, code="labels_csv")
