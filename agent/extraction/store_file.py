"""The file under the feature store: its tables, how it is opened and checked, and what can go wrong."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ...base.errors import DataError, LockedError, MissingExtra, SettingsError, StorageError
from ...base.files import printable_path

if TYPE_CHECKING:
    import apsw

SCHEMA = 2  # PRAGMA user_version
APPLICATION_ID = 0x464C4D53  # "FLMS", PRAGMA application_id
WAIT_MS = 10_000  # for another process's short transaction
TABLES = """
CREATE TABLE clips (
    sha256 TEXT PRIMARY KEY,  -- of the file's content
    path TEXT NOT NULL,       -- relative to the video folder, as last seen
    label TEXT,               -- NULL: not known
    grp TEXT NOT NULL         -- clips of one scene or person
) STRICT;
CREATE TABLE features (
    sha256 TEXT NOT NULL REFERENCES clips,
    fingerprint TEXT NOT NULL,   -- of the bundle's meaning
    precision TEXT NOT NULL,
    x BLOB NOT NULL,             -- float32, little endian: vision-language, then spatio-temporal
    vlm_width INTEGER NOT NULL,  -- numbers of the first part; 0 where the parts are not known
    caption TEXT NOT NULL,
    keyframe INTEGER NOT NULL,   -- which keyframe was captioned
    times TEXT NOT NULL,         -- JSON, seconds of the keyframes
    PRIMARY KEY (sha256, fingerprint, precision)
) STRICT;
CREATE TABLE failures (
    path TEXT PRIMARY KEY,
    sha256 TEXT NOT NULL,
    code TEXT NOT NULL,
    message TEXT NOT NULL,
    limit_s REAL           -- seconds that decoding could take then; NULL: not known
) STRICT;
"""
UPGRADES = {2: "ALTER TABLE failures ADD COLUMN limit_s REAL"}  # by the version that each leads to


def make_file(path: Path) -> None:
    """An empty file that only its owner may read: captions and labels tell what the videos show."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return  # another process was faster; the lock decides who writes
    except OSError as error:
        raise StorageError(f"cannot create {printable_path(path)}: {error.strerror}") from error


def connect(path: Path, *, read_only: bool) -> apsw.Connection:
    """A checked connection to the store's file; an empty file is given its tables.

    Raises DataError, SettingsError or StorageError; a file that is not a store of this version is
    not changed.
    """
    try:
        import apsw
    except ImportError as error:
        raise MissingExtra("apsw", extra="agent") from error
    with translated(path):
        flags = apsw.SQLITE_OPEN_READONLY if read_only else apsw.SQLITE_OPEN_READWRITE
        database = apsw.Connection(str(path), flags=flags)
        try:
            database.set_busy_timeout(WAIT_MS)
            empty = not list(database.execute("SELECT 1 FROM sqlite_schema LIMIT 1"))
            if empty and database.pragma("user_version") == 0 and not read_only:
                _create_tables(database)
            _check(path, database)
            if not read_only:
                _make_durable(path, database)
                _upgrade(database)
        except BaseException:
            database.close()
            raise
    return database


def _create_tables(database: apsw.Connection) -> None:
    with database:  # one transaction: a crash leaves an empty file, not half a store
        database.execute(TABLES)
        database.pragma("application_id", APPLICATION_ID)
        database.pragma("user_version", SCHEMA)


def _make_durable(path: Path, database: apsw.Connection) -> None:
    mode = database.pragma("journal_mode", "wal")
    if mode != "wal":
        raise StorageError(
            f"{printable_path(path)}: this file system allows no write-ahead log (journal mode {mode})",
            fix="keep the store on a local disk, not on a network share",
        )
    database.pragma("synchronous", "full")
    database.pragma("foreign_keys", True)


def _upgrade(database: apsw.Connection) -> None:
    """Bring an older store up to date; whoever only reads needs nothing of what is new."""
    version = int(database.pragma("user_version"))
    with database:  # all of it or nothing
        for number in range(version + 1, SCHEMA + 1):
            database.execute(UPGRADES[number])
        if version < SCHEMA:
            database.pragma("user_version", SCHEMA)


def _check(path: Path, database: apsw.Connection) -> None:
    """A store of this version, or of one that is upgraded where it is written to; whole."""
    if database.pragma("application_id") != APPLICATION_ID:
        raise DataError(
            f"{printable_path(path)} is a database, but not a feature store",
            fix="give the file that flamest-agent extract made",
            code="not_a_store",
        )
    version = database.pragma("user_version")
    if not 1 <= version <= SCHEMA:
        raise SettingsError(
            f"{printable_path(path)} is a feature store of version {version}, this flamest-agent reads 1 to {SCHEMA}",
            fix="use the flamest-agent that wrote it, or extract into a new store; nothing was changed",
            code="store_version",
        )
    verdict = list(database.execute("PRAGMA quick_check(1)"))
    if verdict != [("ok",)]:
        raise _damaged(path, str(verdict[0][0]))


def _damaged(path: Path, problem: str) -> DataError:
    return DataError(
        f"{printable_path(path)} is damaged: {problem}",
        fix="restore it from a backup; or move it away and extract again, features can be made anew from the clips",
        code="store_damaged",
    )


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """SQLite's errors about the file, as ours: damaged, held by another, or not writable."""
    import apsw

    try:
        yield
    except (apsw.CorruptError, apsw.NotADBError, apsw.FormatError) as error:
        raise _damaged(path, str(error)) from error
    except (apsw.BusyError, apsw.LockedError) as error:
        raise LockedError(f"{printable_path(path)} is busy in another process: {error}") from error
    except (apsw.FullError, apsw.IOError, apsw.CantOpenError, apsw.ReadOnlyError, apsw.PermissionsError) as error:
        raise StorageError(
            f"cannot use {printable_path(path)}: {error}",
            fix="check free space and permissions of the file and its folder, then run the command again",
        ) from error
