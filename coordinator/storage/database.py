"""The coordinator's SQLite file: what it holds, and its errors in our words.

WAL with synchronous=FULL: a transaction that has been committed survives a crash and a power cut.
Through apsw, which brings its own SQLite (the standard library's may have the WAL-reset bug that
SQLite 3.51.3 fixed, https://sqlite.org/releaselog/3_51_3.html).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...base.errors import DataError, FlamestError, LockedError, SettingsError, StorageError
from ...base.files import fsync_directory, storage_code, write_atomic
from ...base.log import Log
from ...fedproto.certificates import need

log = Log("coordinator")

FILE = "coordinator.sqlite"
SCHEMA = """
CREATE TABLE runs(
    name TEXT PRIMARY KEY,
    settings BLOB NOT NULL,            -- canonical JSON of RunSettings
    initial_sha256 TEXT NOT NULL,      -- of the model before round 1
    started_at REAL NOT NULL           -- seconds since 1970, like every *_at
) STRICT;
CREATE TABLE rounds(
    run TEXT NOT NULL REFERENCES runs(name),
    number INTEGER NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('open', 'closed', 'abandoned')),
    wanted INTEGER NOT NULL,
    base_sha256 TEXT NOT NULL,         -- of the model that it starts from
    opened_at REAL NOT NULL,
    ended_at REAL,
    seconds REAL,                      -- from its first contact to its end, by a monotonic clock
    model_sha256 TEXT,                 -- of the model that it made
    sent_bytes INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (run, number)
) STRICT;
CREATE TABLE updates(
    run TEXT NOT NULL,
    round INTEGER NOT NULL,
    silo TEXT NOT NULL,
    update_id TEXT NOT NULL,
    digest TEXT NOT NULL,              -- over header and payload
    examples INTEGER NOT NULL,
    payload_sha256 TEXT NOT NULL,
    received_bytes INTEGER NOT NULL,   -- of its messages
    loss REAL,                         -- of the base model on the silo's held-out clips; NULL: not reported
    correct INTEGER,
    count INTEGER,
    received_at REAL NOT NULL,
    PRIMARY KEY (run, round, silo),
    FOREIGN KEY (run, round) REFERENCES rounds(run, number)
) STRICT;
CREATE TABLE refusals(
    run TEXT NOT NULL,
    round INTEGER NOT NULL,            -- that was open then
    silo TEXT NOT NULL,
    code TEXT NOT NULL,
    times INTEGER NOT NULL,
    message TEXT NOT NULL,             -- the last one
    last_at REAL NOT NULL,
    PRIMARY KEY (run, round, silo, code)
) STRICT;
"""

# What was added since, by the version that it makes; a new file is made by the same steps.
UPGRADES = {
    2: """
ALTER TABLE updates ADD COLUMN norm REAL;    -- distance from the round's model; NULL: from before this column
ALTER TABLE rounds ADD COLUMN lost_at REAL;  -- when its model was found damaged; its status is abandoned then
CREATE TABLE strikes(
    silo TEXT PRIMARY KEY,
    times INTEGER NOT NULL,            -- refusals that count towards quarantine
    code TEXT NOT NULL,                -- of the last one
    message TEXT NOT NULL,
    last_at REAL NOT NULL,
    quarantined_at REAL                -- NULL: not yet
) STRICT;
""",
    3: """
ALTER TABLE updates ADD COLUMN codec TEXT;             -- that it came in; NULL: from before these columns
ALTER TABLE updates ADD COLUMN codec_error REAL;       -- norm of what the codec left out over that of all
ALTER TABLE updates ADD COLUMN sent_bytes INTEGER;     -- of the round's model, to this silo, until its update was taken
ALTER TABLE updates ADD COLUMN by_class TEXT;          -- [[label, correct, count], …]; NULL: not told
ALTER TABLE updates ADD COLUMN shared INTEGER NOT NULL DEFAULT 0;  -- 1: other silos that agree too may measure it
ALTER TABLE rounds ADD COLUMN codec_error REAL;        -- of the model that it made, on its way to the silos
ALTER TABLE rounds ADD COLUMN clock_moved REAL;        -- seconds that the wall clock jumped while it was open
CREATE TABLE final_reports(
    run TEXT NOT NULL,
    silo TEXT NOT NULL,
    results INTEGER NOT NULL,          -- 0: it declined
    received_at REAL NOT NULL,
    PRIMARY KEY (run, silo)
) STRICT;
CREATE TABLE final_evaluations(
    run TEXT NOT NULL,
    silo TEXT NOT NULL,                -- whose held-out clips
    subject TEXT NOT NULL,             -- whose model; empty: the run's final one
    loss REAL NOT NULL,
    correct INTEGER NOT NULL,
    count INTEGER NOT NULL,
    by_class TEXT,
    PRIMARY KEY (run, silo, subject)
) STRICT;
""",
}
SCHEMA_VERSION = max(UPGRADES)
Connection = Any  # apsw.Connection; apsw is imported late


def open_database(path: Path) -> Connection:
    """Open the file for the one writer; made when absent, brought to this version when older.

    Integrity and version are checked first. Raises DataError (``corrupt_state``), SettingsError (``newer_state``),
    StorageError.
    """
    need("apsw")
    import apsw

    with state_errors(path):
        connection = apsw.Connection(str(path))
        with _closed_on_error(connection):
            connection.set_busy_timeout(5000)
            connection.pragma("journal_mode", "wal")
            connection.pragma("synchronous", "full")
            connection.pragma("foreign_keys", True)
            check_database(connection, path)
            _upgrade(connection, path)
    return connection


@contextlib.contextmanager
def _closed_on_error(connection: Connection) -> Iterator[None]:
    """Close it when the block fails; of a damaged file nothing is written, not even what is in its -wal file."""
    import apsw

    try:
        yield
    except BaseException as error:
        if not isinstance(error, SettingsError):
            with contextlib.suppress(apsw.Error):
                connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.close()
        raise


def _upgrade(connection: Connection, path: Path) -> None:
    """One transaction from any older version to this one; a file that holds something is copied before."""
    version = connection.pragma("user_version")
    if version == SCHEMA_VERSION:
        return
    if version > 0:
        copy = path.with_name(f"{path.name}.schema-{version}")
        copy_database(connection, copy)
        log.info("upgrading", file=path.name, schema=version, to=SCHEMA_VERSION, copy=copy.name)
    with connection:
        if version == 0:
            connection.execute(SCHEMA)
        for number in range(max(version, 1) + 1, SCHEMA_VERSION + 1):
            connection.execute(UPGRADES[number])
        connection.pragma("user_version", SCHEMA_VERSION)


def copy_database(connection: Connection, copy: Path) -> None:
    """The file as it is now, whole and durable under the name ``copy``."""
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
        raise StorageError(f"cannot write {copy}: {error.strerror}", code=storage_code(error)) from error


def read_database(path: Path, *, writing: bool = False) -> Connection:
    """Open the file for reading, beside a coordinator that may be writing it; ``writing``: for a small change too.

    Raises DataError (``no_state`` when there is none, ``older_state``).
    """
    need("apsw")
    import apsw

    if not path.exists():
        raise DataError(
            f"{path.parent} holds no coordinator's state",
            fix="start it once: flamest-coordinator run --config coordinator.toml",
            code="no_state",
        )
    with state_errors(path):
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        connection.set_busy_timeout(5000)
        # The last one who closes would else remove the -wal file, and a crash and a lost -wal would look alike.
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        with _closed_on_error(connection):
            connection.pragma("query_only", not writing)
            check_database(connection, path)
            version = connection.pragma("user_version")
            if version < SCHEMA_VERSION:
                raise DataError(
                    f"{path} was written by an older version (schema {version}, this one knows {SCHEMA_VERSION})",
                    fix="start the coordinator once: it upgrades the file, and keeps a copy",
                    code="older_state",
                )
    return connection


def check_database(connection: Connection, path: Path) -> None:
    """Raise unless the file is whole and of a version that this code knows."""
    found = connection.pragma("quick_check")
    if found != "ok":
        raise _corrupt(path, str(found))
    version = connection.pragma("user_version")
    if version > SCHEMA_VERSION:
        raise SettingsError(
            f"{path} was written by a newer version (schema {version}, this one knows {SCHEMA_VERSION})",
            fix="install the newer version again",
            code="newer_state",
        )


@contextlib.contextmanager
def state_errors(path: Path) -> Iterator[None]:
    """SQLite's errors inside the block, as ours."""
    import apsw

    try:
        yield
    except (apsw.CorruptError, apsw.NotADBError) as error:
        raise _corrupt(path, str(error)) from error
    except (apsw.BusyError, apsw.LockedError) as error:
        raise LockedError(f"{path} is in use by another process: {error}") from error
    except (apsw.FullError, apsw.IOError, apsw.ReadOnlyError, apsw.CantOpenError, apsw.PermissionsError) as error:
        raise StorageError(
            f"cannot write {path}: {error}",
            fix=f"check free space and permissions of {path.parent}",
            code="disk_full" if isinstance(error, apsw.FullError) else None,
        ) from error
    except apsw.Error as error:
        raise FlamestError(f"{path}: {error}") from error


def _corrupt(path: Path, said: str) -> DataError:
    return DataError(
        f"{path} is damaged: {said}",
        fix="nothing was changed; go back to a backup: "
        "flamest-coordinator restore --config coordinator.toml --from BACKUP",
        code="corrupt_state",
    )


class Running:
    """A mark beside the file while it is open for writing, so that a -wal file that was taken away is noticed.

    Without it SQLite would open the file as it was at the last checkpoint: acknowledged updates and whole rounds
    would be gone without a word. An ordinary end folds the -wal file into the main one first, and then takes the
    mark away; a crash leaves both, a lost -wal file leaves the mark alone.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mark = path.with_name(f"{path.name}.running")

    def check(self) -> None:
        """Before the file is opened. Raises DataError (``corrupt_state``)."""
        log_file = self._path.with_name(f"{self._path.name}-wal")
        if self._mark.exists() and not (self._path.exists() and log_file.exists()):
            lost = log_file if self._path.exists() else self._path
            raise _corrupt(self._path, f"{lost.name}, which held the last changes, is gone")

    def begin(self, connection: Connection) -> None:
        """After the file was opened."""
        with state_errors(self._path):
            connection.pragma("user_version", SCHEMA_VERSION)  # something is written: from here on there is a -wal file
        write_atomic(self._mark, b"a coordinator writes here, or ended by a crash\n")

    def end(self, connection: Connection) -> None:
        """Before it is closed. Nothing is lost if this cannot be done."""
        import apsw

        with contextlib.suppress(apsw.Error, OSError):
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            self._mark.unlink(missing_ok=True)
            fsync_directory(self._mark.parent)
