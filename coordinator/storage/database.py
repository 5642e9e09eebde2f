"""The coordinator's SQLite file: its tables, how it is opened, and the mark of its writer."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from ...base.errors import DataError, FlamestError, SettingsError
from ...base.files import fsync_directory, write_atomic
from ...base.sqlite import Schema, SchemaFault, damaged_error, open_for_reading, open_for_writing, translated_errors

if TYPE_CHECKING:
    from apsw import Connection

DATABASE_FILE = "coordinator.sqlite"

# rounds.lost_at: when the round's model was found damaged; its status is abandoned then.
# rounds.codec_error: of the model that the round made, on its way to the silos.
# rounds.clock_moved: seconds that the wall clock jumped while the round was open.
# updates.norm: distance from the round's model.
# updates.codec_error: norm of what the codec left out over that of all. updates.sent_bytes: of the round's model, to
# this silo, until its update was accepted. updates.by_class: [[label, correct, count], …]; NULL: not reported.
# updates.shared: 1: other silos that agree too may evaluate this update.
TABLES = """
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
    sent_bytes INTEGER NOT NULL DEFAULT 0, lost_at REAL, codec_error REAL, clock_moved REAL,
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
    received_at REAL NOT NULL, norm REAL, codec TEXT, codec_error REAL, sent_bytes INTEGER, by_class TEXT, \
shared INTEGER NOT NULL DEFAULT 0,
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
CREATE TABLE strikes(
    silo TEXT PRIMARY KEY,
    times INTEGER NOT NULL,            -- refusals that count towards quarantine
    code TEXT NOT NULL,                -- of the last one
    message TEXT NOT NULL,
    last_at REAL NOT NULL,
    quarantined_at REAL                -- NULL: not yet
) STRICT;
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
"""
# rounds.most_examples, rounds.most_influence: limits of the closed round's updates (strategies/claims.py); NULL: none.
LIMITS = "ALTER TABLE rounds ADD COLUMN most_examples INTEGER; ALTER TABLE rounds ADD COLUMN most_influence REAL"
# calibration_reports: a silo's numbers for step 0 (confidence) or 1 (scores) of the calibration of the model with this
# hash, as JSON; NULL: it declined. calibrations.temperature: from step 1 on. ended_at: NULL until then; calibration:
# JSON, NULL: there were too few clips.
CALIBRATION = """
CREATE TABLE calibration_reports(
    run TEXT NOT NULL, model_sha256 TEXT NOT NULL, step INTEGER NOT NULL, silo TEXT NOT NULL, numbers TEXT,
    received_at REAL NOT NULL, PRIMARY KEY (run, model_sha256, step, silo)
) STRICT;
CREATE TABLE calibrations(
    run TEXT NOT NULL, model_sha256 TEXT NOT NULL, temperature REAL, calibration TEXT, ended_at REAL,
    PRIMARY KEY (run, model_sha256)
) STRICT
"""
SCHEMA = Schema(
    kind="coordinator's database",
    extra="coordinator",
    tables=TABLES,
    first_version=3,
    migrations=(LIMITS, CALIBRATION),
    oldest_readable=4,
    copy_before_migration=True,
    damaged=SchemaFault(
        DataError,
        "corrupt_state",
        "go back to a backup: flamest-coordinator restore --config coordinator.toml --from BACKUP",
    ),
    older=SchemaFault(
        DataError,
        "older_state",
        "start the coordinator once, which migrates the file and keeps a copy; a file of before version 3 needs the "
        "program that wrote it",
    ),
    newer=SchemaFault(SettingsError, "newer_state", "install the newer version again"),
)


def open_database(path: Path) -> Connection:
    """Open the file for the one writer; made when absent. Raises as ``base.sqlite.open_for_writing``."""
    return open_for_writing(path, SCHEMA)


def read_database(path: Path, *, small_changes: bool = False) -> Connection:
    """Open the file for reading, next to a coordinator that may be writing it; ``small_changes``: to change a row too.

    Raises DataError (``no_state`` when there is none) and as ``base.sqlite.open_for_reading``.
    """
    if not path.exists():
        raise DataError(
            f"{path.parent} holds no coordinator's state",
            fix="start it once: flamest-coordinator run --config coordinator.toml",
            code="no_state",
        )
    return open_for_reading(path, SCHEMA, small_changes=small_changes)


def database_errors(path: Path) -> AbstractContextManager[None]:
    """Raise SQLite's errors inside the block as errors of base/errors.py."""
    return translated_errors(path, SCHEMA)


def incomplete_error(path: Path, problem: str) -> FlamestError:
    """Return the error for rows that no coordinator writes together."""
    return damaged_error(path, SCHEMA, problem)


class WriterMark:
    """A file next to the database while it is open for writing, so that a missing -wal file is noticed.

    Without it SQLite would open the database as it was at the last checkpoint: acknowledged updates and whole rounds
    would be missing without an error. An ordinary end moves the -wal file's content into the database, and then removes
    the mark; a crash leaves both, a lost -wal file leaves the mark alone.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mark = path.with_name(f"{path.name}.running")

    def check(self) -> None:
        """Raise DataError (``corrupt_state``) when the last changes are missing. Call before the file is opened."""
        log_file = self._path.with_name(f"{self._path.name}-wal")
        if self._mark.exists() and not (self._path.exists() and log_file.exists()):
            missing = log_file if self._path.exists() else self._path
            raise damaged_error(self._path, SCHEMA, f"{missing.name}, which held the last changes, is gone")

    def begin(self, connection: Connection) -> None:
        """Write the mark. Call after the file was opened."""
        with database_errors(self._path):
            connection.pragma("user_version", SCHEMA.version)  # something is written: from here on there is a -wal file
        write_atomic(self._mark, b"a coordinator writes here, or ended by a crash\n")

    def end(self, connection: Connection) -> None:
        """Remove the mark. Call before the file is closed; nothing is lost if it fails."""
        import apsw

        with contextlib.suppress(apsw.Error, OSError):
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            self._mark.unlink(missing_ok=True)
            fsync_directory(self._mark.parent)
