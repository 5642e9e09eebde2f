"""The text of a ``labels.csv`` as records, each with its bytes: a change of one leaves those of the others."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from ...runtime.clip_records import Segment, seconds_text
from ..extraction.labels_table import LABELS_FILE, MAX_LINE, BadRow, LabelRow, parse_labels

BOM = "\ufeff"
NEW_COLUMNS = ("path", "label", "start_s", "end_s", "group", "person", "camera")  # of a table that is made
RowKey = tuple[str, Segment | None]  # path relative to the folder, with slashes; None for the whole file


def row_key(row: LabelRow) -> RowKey:
    """Return the path and segment that a row is known by."""
    return clean_path(row.path), row.segment


def clean_path(path: str) -> str:
    """Return the path without ``./`` and doubled slashes."""
    return PurePosixPath(path).as_posix()


@dataclass(eq=False)
class Record:
    """A record of the table: one line, or several where a quoted cell holds line breaks."""

    raw: str  # with its line end
    cells: list[str]
    row: LabelRow | None = None  # None: header, empty line, or a row that cannot be used
    bad: BadRow | None = None  # why it cannot
    removed: bool = False
    after: list[Record] = field(default_factory=list)  # put behind it

    def __iter__(self) -> Iterator[Record]:
        """Yield this record and those that were put behind it, the removed ones too."""
        waiting = [self]
        while waiting:
            record = waiting.pop()
            yield record
            waiting += reversed(record.after)


class TableText:
    """Header and records of a table. ``touched``: it says something else than the text that it was read from."""

    def __init__(self, header: Record, records: list[Record]) -> None:
        self._header = header
        self._records = records
        self.touched = False
        self._columns = [cell.strip() for cell in header.cells]
        self._eol = "\r\n" if header.raw.endswith("\r\n") else "\n"
        self._by_key: dict[RowKey, list[Record]] = {}  # the first of rows of one key counts
        self._last: dict[str, Record] = {}  # of each path: rows of one video stay together
        for record in records:
            self._index(record)

    @classmethod
    def empty(cls) -> TableText:
        """Return a table with all columns and no row."""
        return cls(Record(_line(NEW_COLUMNS, "\n"), list(NEW_COLUMNS)), [])

    @classmethod
    def decode(cls, data: bytes, folder: Path) -> TableText:
        """Read a table. Raises DataError ``labels_csv`` where it is none."""
        table = parse_labels(data, folder / LABELS_FILE)
        usable = {row.line: row for row in table.rows}
        bad = {row.line: row for row in table.bad}
        text = data.decode("utf-8-sig" if data.startswith(BOM.encode()) else "utf-8")
        header, *records = _records(text, usable, bad) or [Record("", [])]
        if data.startswith(BOM.encode()):
            header.raw = BOM + header.raw
        return cls(header, records)

    @property
    def rows(self) -> tuple[LabelRow, ...]:
        """The rows that can be used, in order, each with its line."""
        return tuple(record.row for record in self._kept() if record.row is not None)

    @property
    def bad(self) -> tuple[BadRow, ...]:
        """The rows that cannot be used."""
        return tuple(record.bad for record in self._kept() if record.bad is not None)

    def settle(self) -> None:
        """Number the lines as they are in the encoded text: it was written, and is what this table was read from."""
        self._records = self._kept()
        line = 1 + _line_count(self._header.raw)
        for record in self._records:
            record.after = []
            if record.row is not None and record.row.line != line:
                record.row = replace(record.row, line=line)
            if record.bad is not None and record.bad.line != line:
                record.bad = replace(record.bad, line=line)
            line += _line_count(record.raw)
        self._last = {clean_path(record.row.path): record for record in self._records if record.row is not None}
        self.touched = False

    def find(self, key: RowKey) -> Record | None:
        records = self._by_key.get(key)
        return records[0] if records else None

    def problem(self, row: LabelRow) -> str:
        """Return why the row cannot be in a table: it would be read as another one. Empty when it can."""
        cells = _cells(row)
        try:
            data = (_line(NEW_COLUMNS, "\n") + _line([cells[name] for name in NEW_COLUMNS], "\n")).encode()
        except UnicodeEncodeError:
            return "the file's name is not UTF-8 text: rename the file"
        table = parse_labels(data)
        if table.bad:
            return table.bad[0].reason
        if [replace(read, line=0) for read in table.rows] != [replace(row, line=0)]:
            return "a cell begins or ends with a blank, or is not as a table can have it: rename the file or the label"
        return ""

    def insert(self, row: LabelRow) -> Record:
        """Add a row, behind the last one of the same video."""
        self._need_columns(row)
        record = Record("", [])
        self._fill(record, row)
        last = self._last.get(clean_path(row.path))
        if last is not None:
            last.after.insert(0, record)
        else:
            self._records.append(record)
        self._index(record)
        return record

    def rewrite(self, record: Record, row: LabelRow) -> Record:
        """Write ``row`` in the place of the record's; unknown columns keep their cells."""
        if record.row is not None and replace(record.row, line=0) == replace(row, line=0):
            return record
        self._need_columns(row)
        moved = record.row is None or row_key(record.row) != row_key(row)
        if moved:
            self._forget(record)
        self._fill(record, row)
        if moved:
            self._index(record)
        return record

    def remove(self, record: Record) -> None:
        self._forget(record)
        record.removed = self.touched = True

    def forget_unlabelled(self, paths: set[str]) -> None:
        """Leave out whole files of ``paths`` that no one labelled: they get segments. For a table that is made."""
        for path in paths:
            record = self.find((path, None))
            if record is not None and record.row is not None and record.row.label is None:
                self.remove(record)

    def encode(self) -> bytes:
        """Return the table's bytes."""
        records = [self._header, *self._kept()]
        for record in records[:-1]:
            if not record.raw.endswith(("\n", "\r")):  # the last line of the text had no end, and got a successor
                record.raw += self._eol
        return "".join(record.raw for record in records).encode()

    def _kept(self) -> list[Record]:
        return [record for first in self._records for record in first if not record.removed]

    def _index(self, record: Record) -> None:
        if record.row is not None:
            self._by_key.setdefault(row_key(record.row), []).append(record)
            self._last[clean_path(record.row.path)] = record

    def _forget(self, record: Record) -> None:
        if record.row is not None:
            self._by_key[row_key(record.row)].remove(record)

    def _fill(self, record: Record, row: LabelRow) -> None:
        cells = _cells(row)
        old = dict(zip(self._columns, record.cells, strict=False))
        record.cells = [cells.get(name, old.get(name, "")) for name in self._columns]
        record.raw = _line(record.cells, self._eol)
        record.row = row
        self.touched = True

    def _need_columns(self, row: LabelRow) -> None:
        """Add the columns that the row needs and the table lacks, empty in every other record."""
        needed = [name for name, cell in _cells(row).items() if cell and name not in self._columns]
        if not needed:
            return
        if "start_s" in needed or "end_s" in needed:
            needed = [name for name in NEW_COLUMNS if name in {*needed, "start_s", "end_s"} - set(self._columns)]
        self._columns += needed
        for record in [self._header, *self._kept()]:
            added = needed if record is self._header else [""] * len(needed)
            if any(cell.strip() for cell in record.cells):
                text = record.raw.rstrip("\r\n")
                record.raw = text + "".join(f",{cell}" for cell in added) + record.raw[len(text) :]
                record.cells = [*record.cells, *added]


def _cells(row: LabelRow) -> dict[str, str]:
    segment = row.segment
    return {
        "path": row.path,
        "label": row.label or "",
        "start_s": seconds_text(segment.start_us) if segment else "",
        "end_s": seconds_text(segment.end_us) if segment else "",
        "group": row.group,
        "person": row.person,
        "camera": row.camera,
    }


def _line(cells: list[str] | tuple[str, ...], eol: str) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=eol).writerow(cells)
    return text.getvalue()


def _line_count(raw: str) -> int:
    return sum(1 for _ in io.StringIO(raw, newline=""))


def _records(text: str, usable: dict[int, LabelRow], bad: dict[int, BadRow]) -> list[Record]:
    """Split the text of a table that was read without an error; ``usable`` and ``bad``: its rows by line."""
    lines = list(io.StringIO(text, newline=""))
    reader = csv.reader((line if len(line) <= MAX_LINE else "\x1a\n" for line in lines), strict=True)
    records, done = [], 0
    while done < len(lines):
        try:
            cells = next(reader, [])
        except csv.Error:  # text after a closing quote: a row that cannot be used
            cells = ["?"]
        end = max(reader.line_num, done + 1)
        record = Record("".join(lines[done:end]), cells)
        for number in range(done + 1, end + 1):
            record.row = record.row or usable.get(number)
            record.bad = record.bad or bad.get(number)
        records.append(record)
        done = end
    return records
