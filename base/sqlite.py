"""Opening SQLite files: checked, durable, brought to this version by migrations, with errors of base/errors.py.

SQLite comes with apsw: the standard library's may have the WAL-reset bug that SQLite 3.51.3 fixed
(https://sqlite.org/releaselog/3_51_3.html). apsw is imported in the functions, so that this module imports without it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import DataError, FlamestError, LockedError, MissingExtra, SettingsError, StorageError
from .files import fsync_directory, open_regular, printable_path, storage_code
from .log import Log

if TYPE_CHECKING:
    from apsw import Connection

log = Log("sqlite")

WAIT_MS = 10_000  # for another process's short transaction


@dataclass(frozen=True)
class SchemaFault:
    """Report of one kind of problem with a file: the error's class, code and fix."""

    error: type[DataError] | type[SettingsError]
    code: str
    fix: str


@dataclass(frozen=True)
class Schema:
    """One kind of database file: its tables, its version (``PRAGMA user_version``), and how its faults are reported.

    A new file is made by ``tables`` and then by every migration in order, so that new and migrated files are alike.
    """

    kind: str  # for messages: "feature store"
    extra: str  # that installs apsw for this program
    tables: str  # SQL; SQLite keeps its text, comments included, in the file: change tables by a migration
    first_version: int  # that ``tables`` makes
    damaged: SchemaFault
    older: SchemaFault
    newer: SchemaFault
    foreign: SchemaFault | None = None  # another program's file; found by the application id
    application_id: int = 0  # PRAGMA application_id; 0: none
    migrations: tuple[str, ...] = ()  # SQL of each later version
    oldest_readable: int | None = None  # version that is read before its writer migrates it; None: the newest alone
    copy_before_migration: bool = False  # keep the older file as NAME.schema-VERSION
    largest_value: int | None = None  # bytes of one text, blob or row; None: SQLite's own limit, a billion

    @property
    def version(self) -> int:
        return self.first_version + len(self.migrations)


def open_for_writing(path: Path, schema: Schema) -> Connection:
    """Open the file for its one writer. A file that is absent is made, an older one is migrated.

    WAL with synchronous=FULL: a committed transaction survives a crash and a power cut. Application id, version,
    tables and integrity are checked before anything is written.

    Raises the schema's faults, LockedError when another process holds a lock for more than ``WAIT_MS``, StorageError,
    MissingExtra.
    """
    _need_apsw(schema)
    import apsw

    _make_private_file(path)
    open_regular(path).close()  # SQLite would wait for the other end of a FIFO
    with translated_errors(path, schema):
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        with _closed_on_error(connection):
            _restrict(connection, schema)
            if _is_empty(connection):
                with connection:  # one transaction: a crash leaves an empty file, not half of the tables
                    connection.execute(schema.tables)
                    if schema.application_id:
                        connection.pragma("application_id", schema.application_id)
                    _run_migrations(connection, schema, schema.first_version)
            _check(connection, path, schema)
            _make_durable(connection, path)
            _migrate(connection, path, schema)
    return connection


def open_for_reading(path: Path, schema: Schema, *, small_changes: bool = False) -> Connection:
    """Open the file next to a process that may be writing it; nothing is made, migrated or moved out of the -wal file.

    ``small_changes``: for short transactions too. Raises as ``open_for_writing``; ``older`` for a file that its
    writer has yet to migrate, unless it is ``oldest_readable``.
    """
    _need_apsw(schema)
    import apsw

    flags = apsw.SQLITE_OPEN_READWRITE if small_changes else apsw.SQLITE_OPEN_READONLY
    open_regular(path).close()
    with translated_errors(path, schema):
        connection = apsw.Connection(str(path), flags=flags)
        with _closed_on_error(connection):
            _restrict(connection, schema)
            # Otherwise the last connection to close would remove the -wal file of a writer that crashed.
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            _check(connection, path, schema)
            oldest = schema.version if schema.oldest_readable is None else schema.oldest_readable
            if _version(connection) < oldest:
                raise _wrong_version_error(path, schema, _version(connection))
            if small_changes:
                _make_durable(connection, path)
    return connection


@contextlib.contextmanager
def translated_errors(path: Path, schema: Schema) -> Iterator[None]:
    """Raise SQLite's errors inside the block as DataError, LockedError, StorageError or FlamestError."""
    import apsw

    name = printable_path(path)
    try:
        yield
    except (apsw.CorruptError, apsw.NotADBError, apsw.FormatError) as error:
        raise damaged_error(path, schema, str(error)) from error
    except (apsw.TooBigError, UnicodeDecodeError) as error:
        raise damaged_error(path, schema, f"it holds a value that was never written to it: {error}") from error
    except (apsw.BusyError, apsw.LockedError) as error:
        raise LockedError(
            f"{name} is in use by another process: {error}",
            fix="wait until the other process has ended, or stop it, then run the command again",
        ) from error
    except (apsw.FullError, apsw.IOError, apsw.CantOpenError, apsw.ReadOnlyError, apsw.PermissionsError) as error:
        raise StorageError(
            f"cannot use {name}: {error}",
            fix=f"check free space and permissions of {printable_path(path.parent)}, then run the command again",
            code="disk_full" if isinstance(error, apsw.FullError) else None,
        ) from error
    except apsw.Error as error:
        raise FlamestError(f"{name}: {error}", fix="run the command again; report it if it happens again") from error


def damaged_error(path: Path, schema: Schema, problem: str) -> FlamestError:
    """Make the error for a file that is not what was written."""
    return _schema_error(schema.damaged, f"{printable_path(path)} is damaged: {problem}")


def copy_database(connection: Connection, copy: Path) -> None:
    """Copy the database as it is at one moment to the new file ``copy``, whole and durable. Raises StorageError."""
    import apsw

    building = copy.with_name(f".{copy.name}.tmp")
    building.unlink(missing_ok=True)
    building.touch(mode=0o600)
    target = apsw.Connection(str(building))
    try:
        with target.backup("main", connection, "main") as backup:
            while not backup.done:
                backup.step()
        target.pragma("journal_mode", "delete")
    finally:
        target.close()
    try:
        with building.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(building, copy)
        fsync_directory(copy.parent)
    except OSError as error:
        raise StorageError(
            f"cannot write {copy}: {error.strerror}",
            fix=f"check free space and permissions of {printable_path(copy.parent)}",
            code=storage_code(error),
        ) from error


def _need_apsw(schema: Schema) -> None:
    if importlib.util.find_spec("apsw") is None:
        raise MissingExtra("apsw", extra=schema.extra)


def _make_private_file(path: Path) -> None:
    """Make an empty file that only its owner may read, unless there is one: rows tell what the owner's data shows."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        raise StorageError(
            f"cannot create {printable_path(path)}: {error.strerror}",
            fix=f"check free space and permissions of {printable_path(path.parent)}",
            code=storage_code(error),
        ) from error


@contextlib.contextmanager
def _closed_on_error(connection: Connection) -> Iterator[None]:
    """Close when the block fails. Into a damaged file nothing is written, not even what its -wal file holds."""
    import apsw

    try:
        yield
    except BaseException as error:
        if not isinstance(error, SettingsError):
            with contextlib.suppress(apsw.Error):
                connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.close()
        raise


def _restrict(connection: Connection, schema: Schema) -> None:
    """Trust nothing that the file itself defines, and bound what one value may take. Before the first statement."""
    import apsw

    connection.set_busy_timeout(WAIT_MS)
    connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
    connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_VIEW, 0)
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)
    if schema.largest_value is not None:
        connection.limit(apsw.SQLITE_LIMIT_LENGTH, schema.largest_value)


def _is_empty(connection: Connection) -> bool:
    return not list(connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1")) and _version(connection) == 0


def _version(connection: Connection) -> int:
    return int(connection.pragma("user_version"))


def _check(connection: Connection, path: Path, schema: Schema) -> None:
    """Raise unless the file is of this kind, of a version from the first to this one, and whole.

    The tables come first: the check of the content runs expressions that a strange file may define.
    """
    if schema.foreign is not None and connection.pragma("application_id") != schema.application_id:
        raise _schema_error(schema.foreign, f"{printable_path(path)} is a database, but not a {schema.kind}")
    if not schema.first_version <= _version(connection) <= schema.version:
        raise _wrong_version_error(path, schema, _version(connection))
    expected = _definitions_of(schema, _version(connection))
    if _definitions(connection, at_most=len(expected) + 1) != expected:
        raise damaged_error(path, schema, "its tables are not those that this program makes")
    verdict = list(connection.execute("PRAGMA quick_check(1)"))
    if verdict != [("ok",)]:
        raise damaged_error(path, schema, str(verdict[0][0]))


def _definitions(connection: Connection, *, at_most: int) -> set[tuple[object, ...]]:
    """Return what the file defines: tables, indexes, triggers and views, each with its SQL."""
    query = "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_stat%' LIMIT ?"
    return set(connection.execute(query, (at_most,)))


@functools.cache
def _definitions_of(schema: Schema, version: int) -> set[tuple[object, ...]]:
    """Return what a file of ``schema`` in ``version`` defines, new or migrated: its text follows from the same SQL."""
    import apsw

    connection = apsw.Connection(":memory:")
    try:
        connection.execute(schema.tables)
        for sql in schema.migrations[: version - schema.first_version]:
            connection.execute(sql)
        return _definitions(connection, at_most=-1)
    finally:
        connection.close()


def _make_durable(connection: Connection, path: Path) -> None:
    mode = connection.pragma("journal_mode", "wal")
    if mode != "wal":
        raise StorageError(
            f"{printable_path(path)}: this file system allows no write-ahead log (journal mode {mode})",
            fix="keep the file on a local disk, not on a network share",
        )
    connection.pragma("synchronous", "full")
    connection.pragma("foreign_keys", True)


def _migrate(connection: Connection, path: Path, schema: Schema) -> None:
    """Bring an older file to this version in one transaction."""
    found = _version(connection)
    if found == schema.version:
        return
    if schema.copy_before_migration:
        copy = path.with_name(f"{path.name}.schema-{found}")
        copy_database(connection, copy)
        log.info("migrating", file=path.name, schema=found, to=schema.version, copy=copy.name)
    with connection:
        _run_migrations(connection, schema, found)


def _run_migrations(connection: Connection, schema: Schema, found: int) -> None:
    for sql in schema.migrations[found - schema.first_version :]:
        connection.execute(sql)
    connection.pragma("user_version", schema.version)


def _wrong_version_error(path: Path, schema: Schema, found: int) -> FlamestError:
    fault, which = (schema.newer, "a newer") if found > schema.version else (schema.older, "an older")
    return _schema_error(
        fault,
        f"{printable_path(path)} is a {schema.kind} of {which} version (schema version {found}, expected "
        f"{schema.version}); nothing was changed",
    )


def _schema_error(fault: SchemaFault, message: str) -> FlamestError:
    return fault.error(message, fix=fault.fix, code=fault.code)
