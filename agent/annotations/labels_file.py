"""Editing a ``labels.csv``: rows put and removed one by one, next to other programs that write the same file.

Every write holds the lock file ``.labels.csv.lock``, reads the file again if it changed meanwhile, and replaces it
atomically. Rows and columns that a change does not concern keep their bytes, but for the empty cell of a column that a
row makes necessary. The changes are in ``row_changes``.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ...base.errors import DataError, LockedError, StorageError
from ...base.file_access import Access, current_umask
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
from .backups import write_backup, write_numbered_backup
from .row_changes import (
    AppliedChange,
    AppliedChanges,
    Change,
    ChangeConflict,
    PutRow,
    RemoveRow,
    change_table,
    paths_with_segments,
    same_row,
)
from .table_text import RowKey, TableText, clean_path, row_key

__all__ = [
    "AppliedChange",
    "AppliedChanges",
    "Change",
    "ChangeConflict",
    "LabelsFile",
    "PutRow",
    "RemoveRow",
    "RowKey",
    "clean_path",
    "row_key",
    "same_row",
]

LOCK_FILE = f".{LABELS_FILE}.lock"
LOCK_WAIT_S = 10.0
ATTEMPTS = 5  # to write, where a program that takes no lock writes at the same time


class LabelsFile:
    """The ``labels.csv`` of a folder, as it was read last. For one thread at a time.

    Without the file, ``rows`` are what the folders give and ``revision`` is empty; the first write lists all of them,
    so that no clip changes its label or group.
    """

    def __init__(
        self, folder: Path, rules: ClipRules, listed: Callable[[str], bool], *, numbered_backup: bool = False
    ) -> None:
        self.folder = folder
        self._rules, self._listed, self._numbered_backup = rules, listed, numbered_backup
        self.backup: Path | None = None  # the numbered copy of the file before the first write
        self._backed_up = False
        self._stamp: FileStamp | None = None
        self._access = Access(0o644 & ~current_umask())
        self._data: bytes | None = None  # None: there is no file
        self.revision = ""  # hash of the content; empty without the file
        self._table = TableText.empty()
        self._unlisted: tuple[str, ...] = ()  # clips of the folders that no table can have
        self._read()

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        rules: ClipRules = DEFAULT_RULES,
        listed: Callable[[str], bool] = lambda _: True,
        numbered_backup: bool = False,
    ) -> LabelsFile:
        """Read the labels of ``folder``.

        ``listed``: where there is no file yet, True for the path of a clip that is listed as its folder says.
        ``numbered_backup``: next to ``labels.csv.bak``, which the next writer replaces, the first write keeps a copy of
        what was there under a number, which nothing replaces.

        Raises StorageError where the folder or the file cannot be read, DataError ``labels_csv`` where the file is no
        table: it is never written over.
        """
        return cls(Path(folder), rules, listed, numbered_backup=numbered_backup)

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
            table.forget_unlabelled(paths_with_segments(changes))
        applied, conflicts = change_table(table, changes)
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
                with contextlib.suppress(OSError):  # gone already, which the next line sees
                    self._access = Access.of(self._path)
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

    @property
    def _lock_access(self) -> Access:
        """Of the lock file: for those who may write the table, whoever made the lock."""
        return self._access._replace(mode=0o600 | (0o060 if self._access.mode & 0o020 else 0))

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        path = self.folder / LOCK_FILE
        if path.is_symlink():
            raise StorageError(f"{printable_path(path)} is a link, expected a file", fix="remove the link")
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                lock = FileLock.take(path, owner="a program that writes labels", access=self._lock_access)
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

    def _back_up(self) -> bool:
        """Keep a copy of the file as it is. Returns False when another program wrote it since it was read."""
        old = read_regular(self._path, largest=MAX_TABLE)
        if sha256_bytes(old) != self.revision:
            return False
        if self._numbered_backup:
            self.backup = write_numbered_backup(self.folder, old, self._access)
        write_backup(self.folder, old, self._access)
        return True

    def _write(self, data: bytes) -> bool:
        """Replace the file; mode and owner stay. Returns False when another program wrote it since it was read.

        Raises StorageError for a file that this user may not write: being able to replace it is not enough.
        """
        if self._stamp is not None and not os.access(self._path, os.W_OK):
            raise StorageError(
                f"{printable_path(self._path)} is read-only for this user",
                fix=f"allow it: chmod u+w {shlex.quote(str(self._path))}",
            )
        if self._stamp is not None and not self._backed_up and not self._back_up():
            return False
        if _stamp(self._path) != self._stamp:
            return False
        write_atomic(self._path, data, access=self._access)
        self._backed_up = True
        return True


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
