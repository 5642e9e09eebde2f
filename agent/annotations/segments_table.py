"""Tables of ``video,label,start,end``: read, and written.

Times are seconds, or a clock's ``MM:SS``, ``MM:SS.ss`` and ``HH:MM:SS``, which Create ML knows too:
https://developer.apple.com/documentation/createml/building-an-action-classifier-data-source
Without start and end a row is the whole video.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from typing import Any

from ...base.errors import DataError
from ...runtime.clip_records import seconds_text
from ..extraction.labels_table import MAX_LINE, LabelRow
from .annotation import (
    Annotation,
    AnnotationFile,
    Unusable,
    read_label,
    read_name,
    read_segment,
    read_video_name,
    shown,
)

FORMAT = "segments"
COLUMNS = {  # the names that each column is known by
    "video": ("video", "path", "file", "filename", "file_name", "video_id", "video_name"),
    "label": ("label", "class", "action", "activity"),
    "start": ("start", "start_s", "start_sec", "start_time", "begin", "t-start"),
    "end": ("end", "end_s", "end_sec", "end_time", "stop", "t-end"),
    "person": ("person", "subject"),
    "camera": ("camera", "view"),
    "group": ("group",),
}
FRAME_COLUMNS = ("start_frame", "end_frame", "first_frame", "last_frame", "frame_start", "frame_end")
_CLOCK = re.compile(r"(?:(\d{1,3}):)?(\d{1,3}):(\d{1,2}(?:\.\d+)?)", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_SEPARATOR_LINE = re.compile(r"\Asep=.\r?\n", re.IGNORECASE)  # a spreadsheet's own first line
FIX_TABLE = "in Label Studio: Export, JSON or JSON-MIN"  # of a table that Label Studio exported
_FIX_TEXT = "save it as CSV UTF-8: spreadsheets offer that among the file types"
_FIX = "start the table with the line video,label,start,end; times are seconds from the video's first frame"


def read_segments(content: bytes, name: str) -> AnnotationFile:
    """Read a table. Raises DataError ``annotations_table`` where it is none; ``name`` is the file's."""
    text = _SEPARATOR_LINE.sub("\n", _decode(content, name), count=1)  # lines keep their numbers
    found = AnnotationFile(FORMAT)
    header = text.lstrip("\r\n").partition("\n")[0]
    separator = max(",;\t", key=header.count)
    if ("timelinelabels" in text and "label" not in header) or _is_label_studio(header):
        raise _no_table(name, 1, "is Label Studio's CSV export: its segments are JSON inside of cells", fix=FIX_TABLE)
    lines = csv.reader(_lines(text, name), delimiter=separator, strict=True)
    columns: dict[str, int] = {}
    width = 0
    while True:
        line = lines.line_num + 1
        try:
            cells = next(lines, None)
        except csv.Error as error:
            if not columns or "expected after" not in str(error):
                raise _no_table(name, line, "a quote has no end, or a line is broken") from error
            found.refuse(f"line {line}", Unusable("bad_row", "there is text after a closing quote"))
            continue
        if cells is None:
            break
        if not columns and not cells:
            continue
        if not columns:
            columns, width = _header(cells, name, found), len(cells)
        elif any(cell.strip() for cell in cells):
            try:
                if len(cells) != width:
                    raise Unusable("bad_row", f"{len(cells)} columns, expected {width}")
                row = {key: cells[number].strip() for key, number in columns.items()}
                found.add(_read_row(f"line {line}", row, decimal_comma=separator != ","))
            except Unusable as problem:
                found.refuse(f"line {line}", problem)
    if not columns:
        raise _no_table(name, 1, "the file is empty")
    return found


def _read_row(where: str, row: dict[str, str], *, decimal_comma: bool) -> Annotation:
    video, label = read_video_name(row["video"]), read_label(row["label"])
    names: dict[str, Any] = {key: read_name(row.get(key), f"the {key}") for key in ("person", "camera", "group")}
    start, end = row["start"], row["end"]
    if not start and not end:
        return Annotation(where, video, label, None, **names)
    times = [_seconds(value, decimal_comma=decimal_comma) if value else None for value in (start, end)]
    return Annotation(where, video, label, read_segment(*times), **names)


def _seconds(text: str, *, decimal_comma: bool) -> float:
    plain = text.replace(",", ".") if decimal_comma and text.count(",") == 1 else text
    if match := _CLOCK.fullmatch(plain):
        hours, minutes, seconds = int(match[1] or 0), int(match[2]), float(match[3])
        if seconds >= 60 or (match[1] is not None and minutes >= 60):
            raise Unusable("bad_time", f"{text} is no time of a clock: expected MM:SS or HH:MM:SS")
        return hours * 3600 + minutes * 60 + seconds
    if not _NUMBER.fullmatch(plain):
        raise Unusable("bad_time", f"{shown(text)} is not a time, expected seconds like 12.5")
    return float(plain)


def _is_label_studio(header: str) -> bool:
    """True for a header with the columns that only Label Studio writes, and none for times."""
    names = {cell.strip('" \r').casefold() for cell in re.split(r"[,;\t]", header)}
    return {"annotation_id", "annotator"} <= names and not names & {*COLUMNS["start"], *COLUMNS["end"]}


def _header(cells: list[str], name: str, found: AnnotationFile) -> dict[str, int]:
    """Return the number of each column that is read."""
    names = [cell.strip().casefold() for cell in cells]
    columns: dict[str, int] = {}
    for number, column in enumerate(names):
        known = next((key for key, words in COLUMNS.items() if column in words), None)
        if known in columns:
            raise _no_table(name, 1, f"two columns are the {known}: {names[columns[known]]} and {column}")
        if known:
            columns[known] = number
        elif column:
            found.note(f"the column {shown(column)} is not read")
    if frames := [column for column in names if column in FRAME_COLUMNS]:
        raise _no_table(name, 1, f"the column {frames[0]} counts in frames, and from 0 or from 1 is unknown")
    if missing := [key for key in ("video", "label", "start", "end") if key not in columns]:
        raise _no_table(name, 1, f"the columns are {shown(','.join(names))}, without {', '.join(missing)}")
    return columns


def _decode(content: bytes, name: str) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _no_table(name, 1, "is UTF-16 text, expected UTF-8", fix=_FIX_TEXT)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _no_table(name, line, f"is not UTF-8 text: {error.reason}", fix=_FIX_TEXT) from error
    if "\0" in text:
        raise _no_table(name, text.count("\n", 0, text.index("\0")) + 1, "holds a NUL: it is no text")
    return text


def _lines(text: str, name: str) -> Iterator[str]:
    for number, line in enumerate(io.StringIO(text, newline=""), 1):
        if len(line) > MAX_LINE:
            raise _no_table(name, number, f"longer than {MAX_LINE} characters")
        yield line


def _no_table(name: str, line: int, problem: str, *, fix: str = _FIX) -> DataError:
    return DataError(f"{name}, line {line}: {problem}", fix=fix, code="annotations_table")


def write_segments(rows: Iterable[LabelRow]) -> bytes:
    """Return labelled rows as a table; columns for person, camera and group only where a row has them."""
    rows = list(rows)
    more = [key for key in ("person", "camera", "group") if any(getattr(row, key) for row in rows)]
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["video", "label", "start", "end", *more])
    for row in rows:
        span = [seconds_text(row.segment.start_us), seconds_text(row.segment.end_us)] if row.segment else ["", ""]
        table.writerow([row.path, row.label, *span, *(getattr(row, key) for key in more)])
    return text.getvalue().encode()
