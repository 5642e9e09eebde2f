"""Editing a ``labels.csv``: rows put and removed one by one, beside other programs that write the same file.

Every write holds the lock file ``.labels.csv.lock``, reads the file again if it changed meanwhile, and replaces it
atomically. Rows and columns that a change does not concern keep their bytes, but for the empty cell of a column that a
row makes necessary. A change that meets another row than the caller saw is a conflict: it is returned, never applied.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from ...base.errors import DataError, LockedError, StorageError, printable
from ...base.files import (
    FileLock,
    FileStamp,
    printable_path,
    read_regular,
    remove_unfinished,
    sha256_bytes,
    write_atomic,
)
from ...runtime.clip_records import Segment
from ..extraction.clips import scan_clips
from ..extraction.groups import DEFAULT_RULES, ClipRules
from ..extraction.labels_table import LABELS_FILE, MAX_TABLE, BadRow, LabelRow
from .table_text import Record, TableText

LOCK_FILE = f".{LABELS_FILE}.lock"
BACKUP_FILE = f"{LABELS_FILE}.bak"
LOCK_WAIT_S = 10.0
ATTEMPTS = 5  # to write, where a program that takes no lock writes at the same time
RowKey = tuple[str, Segment | None]  # path relative to the folder, with slashes; None for the whole file


def row_key(row: LabelRow) -> RowKey:
    """Return the path and segment that a row is known by."""
    return clean_path(row.path), row.segment


def clean_path(path: str) -> str:
    """Return the path without ``./`` and doubled slashes."""
    return PurePosixPath(path).as_posix()


def same_row(one: LabelRow | None, other: LabelRow | None) -> bool:
    """Return True for rows that say the same, wherever in the file they are."""
    if one is None or other is None:
        return one is other
    return replace(one, line=0, path=clean_path(one.path)) == replace(other, line=0, path=clean_path(other.path))


@dataclass(frozen=True)
class PutRow:
    """Add ``row``, or write it in the place of the row known by ``replaces``."""

    row: LabelRow  # its line is not used
    replaces: RowKey | None = None  # None: there is no row of this path and segment yet
    expected: LabelRow | None = None  # with ``replaces``: the row that is there, as the caller saw it; None: any


@dataclass(frozen=True)
class RemoveRow:
    """Remove the row of this path and segment."""

    path: str
    segment: Segment | None
    expected: LabelRow | None = None  # the row as the caller saw it; None: any


Change = PutRow | RemoveRow


@dataclass(frozen=True)
class AppliedChange:
    """A change that is in the file now; ``before`` and ``after`` are what an undo needs."""

    change: Change
    before: LabelRow | None  # None: the row is new
    after: LabelRow | None  # None: the row was removed


@dataclass(frozen=True)
class ChangeConflict:
    """A change that was not applied.

    ``code``: ``missing`` (the row that it replaces or removes is not there), ``changed`` (it is another one than
    ``expected``), ``exists`` (another row has this path and segment), ``invalid`` (the row cannot be in a table).
    """

    change: Change
    code: str
    reason: str  # a sentence for the person
    found: LabelRow | None  # the row that is there


@dataclass(frozen=True)
class AppliedChanges:
    """The result of ``LabelsFile.apply``."""

    revision: str  # of the file as it is now
    applied: tuple[AppliedChange, ...]  # changes to what the file says already are among them
    conflicts: tuple[ChangeConflict, ...]
    written: bool  # False where the file says all of it already
    unlisted: tuple[str, ...] = ()  # clips whose names cannot be in a table, when the file was made


class LabelsFile:
    """The ``labels.csv`` of a folder, as it was read last. For one thread at a time.

    Without the file, ``rows`` are what the folders give and ``revision`` is empty; the first write lists all of them,
    so that no clip changes its label or group.
    """

    def __init__(self, folder: Path, rules: ClipRules, listed: Callable[[str], bool]) -> None:
        self.folder = folder
        self._rules = rules
        self._listed = listed
        self._backed_up = False
        self._stamp: FileStamp | None = None
        self._mode = 0o644
        self._owner = (-1, -1)  # user and group of the file; -1: whoever writes it
        self._data: bytes | None = None  # None: there is no file
        self.revision = ""  # hash of the content; empty without the file
        self._table = TableText.empty()
        self._unlisted: tuple[str, ...] = ()  # clips of the folders that no table can have
        self._read()

    @classmethod
    def open(
        cls, folder: Path, *, rules: ClipRules = DEFAULT_RULES, listed: Callable[[str], bool] = lambda _: True
    ) -> LabelsFile:
        """Read the labels of ``folder``.

        ``listed``: where there is no file yet, True for the path of a clip that is listed as its folder says.

        Raises StorageError where the folder or the file cannot be read, DataError ``labels_csv`` where the file is no
        table: it is never written over.
        """
        return cls(Path(folder), rules, listed)

    @property
    def rows(self) -> tuple[LabelRow, ...]:
        """The usable rows, in the file's order, each with its line."""
        return self._table.rows

    @property
    def bad(self) -> tuple[BadRow, ...]:
        """Rows that cannot be used; they stay in the file as they are."""
        return self._table.bad

    def find(self, path: str, segment: Segment | None) -> LabelRow | None:
        """Return the row of this path and segment."""
        record = self._table.find((clean_path(path), segment))
        return record.row if record else None

    def reload(self) -> bool:
        """Read the file again if it changed on disk. Returns True when its content is another one."""
        before = self.revision
        if self._stamp is None or _stamp(self._path) != self._stamp:
            self._read()
        return self.revision != before

    def apply(self, changes: Iterable[Change]) -> AppliedChanges:
        """Apply the changes, in their order, to the file as it is now.

        Raises LockedError when another program holds the lock for 10 s; StorageError when the disk is full or the
        folder cannot be written to; DataError ``labels_csv`` when someone made the file one that is no table. The file
        is then as it was.
        """
        changes = tuple(changes)
        with self._lock():
            for _ in range(ATTEMPTS):
                self.reload()
                try:
                    done = self._apply(changes)
                finally:
                    if self._table.touched:  # not written
                        self._table, self._unlisted = self._fresh_table()
                if done is not None:
                    return done
        raise LockedError(
            f"{printable_path(self._path)} is being written by another program, which does not wait for its turn",
            fix="close the file in other programs, then try again",
        )

    def _apply(self, changes: tuple[Change, ...]) -> AppliedChanges | None:
        """Change the table and write it; None when another program wrote it since it was read."""
        table, unlisted = self._table, self._unlisted
        if self._data is None:
            table.forget_unlabelled(_paths_with_segments(changes))
        applied, conflicts = _change(table, changes)
        if not table.touched:
            return AppliedChanges(self.revision, applied, conflicts, written=False)
        data = table.encode()
        if not self._write(data):
            return None
        table.settle()
        self._data, self.revision, self._stamp, self._unlisted = data, sha256_bytes(data), _stamp(self._path), ()
        if self._stamp is None or read_regular(self._path, largest=MAX_TABLE) != data:  # written again at once
            self._read()
        return AppliedChanges(sha256_bytes(data), applied, conflicts, written=True, unlisted=unlisted)

    def _read(self) -> None:
        """Read the file, or without one the folders."""
        for _ in range(ATTEMPTS):
            self._path = self._real_path()
            self._stamp = _stamp(self._path)
            data = None
            if self._stamp is not None:
                data = read_regular(self._path, largest=MAX_TABLE, inside=self.folder.resolve())
                status = self._path.stat()
                self._mode, self._owner = status.st_mode & 0o777, (status.st_uid, status.st_gid)
            if _stamp(self._path) == self._stamp:
                self._data, self.revision = data, "" if data is None else sha256_bytes(data)
                self._table, self._unlisted = self._fresh_table()
                return
        raise LockedError(
            f"{printable_path(self._path)} changes while it is read",
            fix="wait until the other program has written it, then try again",
        )

    def _fresh_table(self) -> tuple[TableText, tuple[str, ...]]:
        """Return the table as it was read, and the clips that cannot be in it."""
        if self._data is None:
            return _table_of_folders(self.folder, self._rules, self._listed)
        return TableText.decode(self._data, self.folder), ()

    def _real_path(self) -> Path:
        """Return the file that is read and replaced: where ``labels.csv`` is a link inside the folder, its target."""
        path = self.folder / LABELS_FILE
        if not path.is_symlink():
            return path
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError):
            real = Path("/")
        if self.folder.resolve() not in real.parents:
            raise DataError(
                f"{printable_path(path)} is a link that leads nowhere or to a place outside of the folder",
                fix="put the file itself there",
                code="labels_csv",
            )
        return real

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        path = self.folder / LOCK_FILE
        if path.is_symlink():
            raise StorageError(f"{printable_path(path)} is a link, expected a file", fix="remove the link")
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                lock = FileLock.take(path, owner="a program that writes labels")
                break
            except LockedError as error:
                if time.monotonic() > deadline:
                    raise LockedError(
                        f"another program is writing {printable_path(self.folder / LABELS_FILE)}",
                        fix="try again; if it goes on, end the other flamest-agent label or import-labels",
                    ) from error
                time.sleep(0.02)
        with lock:
            remove_unfinished(self.folder / LABELS_FILE)
            yield

    def _write(self, data: bytes) -> bool:
        """Replace the file; mode and owner stay. Returns False when another program wrote it since it was read.

        Raises StorageError for a file that this user may not write: being able to replace it is not enough.
        """
        if self._stamp is not None and not os.access(self._path, os.W_OK):
            raise StorageError(
                f"{printable_path(self._path)} is read-only for this user",
                fix=f"allow it: chmod u+w {shlex.quote(str(self._path))}",
            )
        if self._stamp is not None and not self._backed_up:
            old = read_regular(self._path, largest=MAX_TABLE)
            if sha256_bytes(old) != self.revision:
                return False
            write_atomic(self.folder / BACKUP_FILE, old, mode=self._mode)
        if _stamp(self._path) != self._stamp:
            return False
        write_atomic(self._path, data, mode=self._mode)
        with contextlib.suppress(OSError):  # root only, where the owner is another
            os.chown(self._path, *self._owner)
        self._backed_up = True
        return True


def _paths_with_segments(changes: tuple[Change, ...]) -> set[str]:
    """Return the files that get segments, but those whose row a change replaces itself."""
    puts = [change for change in changes if isinstance(change, PutRow)]
    replaced = {clean_path(change.replaces[0]) for change in puts if change.replaces is not None}
    return {clean_path(change.row.path) for change in puts if change.row.segment is not None} - replaced


def _change(
    table: TableText, changes: tuple[Change, ...]
) -> tuple[tuple[AppliedChange, ...], tuple[ChangeConflict, ...]]:
    applied: list[AppliedChange] = []
    conflicts: list[ChangeConflict] = []
    for change in changes:
        result = _put(table, change) if isinstance(change, PutRow) else _remove(table, change)
        if isinstance(result, ChangeConflict):
            conflicts.append(result)
        else:
            applied.append(result)
    return tuple(applied), tuple(conflicts)


def _put(table: TableText, change: PutRow) -> AppliedChange | ChangeConflict:
    found = table.find(row_key(change.row))
    if problem := table.problem(change.row):
        return ChangeConflict(change, "invalid", problem, None)
    done = found is not None and same_row(found.row, change.row)  # by a call whose answer was lost, for one
    if found is not None and done and (not change.replaces or table.find(_clean(change.replaces)) in (None, found)):
        return AppliedChange(change, found.row, found.row)
    if change.replaces is None:
        return _exists(change, found) if found else AppliedChange(change, None, table.insert(change.row).row)
    key = _clean(change.replaces)
    old = table.find(key)
    if old is None:
        return ChangeConflict(change, "missing", f"the row {_shown(key)} is no longer there", None)
    if change.expected is not None and not same_row(old.row, change.expected):
        return ChangeConflict(change, "changed", f"the row {_shown(key)} was changed meanwhile", old.row)
    if found is not None and found is not old:
        return _exists(change, found)
    return AppliedChange(change, old.row, table.rewrite(old, change.row).row)


def _remove(table: TableText, change: RemoveRow) -> AppliedChange | ChangeConflict:
    key = _clean((change.path, change.segment))
    found = table.find(key)
    if found is None:
        return ChangeConflict(change, "missing", f"the row {_shown(key)} is no longer there", None)
    if change.expected is not None and not same_row(found.row, change.expected):
        return ChangeConflict(change, "changed", f"the row {_shown(key)} was changed meanwhile", found.row)
    row = found.row
    table.remove(found)
    return AppliedChange(change, row, None)


def _clean(key: RowKey) -> RowKey:
    return clean_path(key[0]), key[1]


def _exists(change: PutRow, found: Record) -> ChangeConflict:
    label = found.row.label if found.row else None
    there = f"with the label {printable(label)}" if label else "without a label"
    return ChangeConflict(change, "exists", f"{_shown(row_key(change.row))} has a row already, {there}", found.row)


def _shown(key: RowKey) -> str:
    path, segment = key
    return printable(path if segment is None else f"{path}#{segment}")


def _stamp(path: Path) -> FileStamp | None:
    try:
        return FileStamp.of(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(
            f"cannot read {printable_path(path)}: {error.strerror}", fix="check that this user may read it"
        ) from error


def _table_of_folders(
    folder: Path, rules: ClipRules, listed: Callable[[str], bool]
) -> tuple[TableText, tuple[str, ...]]:
    """Return the table that says what the folders say, and the clips whose names cannot be in one."""
    table = TableText.empty()
    unlisted = []
    for clip in scan_clips(folder, rules=rules).clips:
        row = LabelRow(0, clip.path.relative_to(folder).as_posix(), clip.label, None, "", "", "")
        if not listed(row.path):
            continue
        if table.problem(row):
            unlisted.append(clip.name)
        else:
            table.insert(row)
    table.touched = False
    return table, tuple(unlisted)
