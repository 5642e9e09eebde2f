"""Opening, checking and migrating a database file, with a made-up schema of three versions."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import apsw
import pytest
from flamest.base.errors import DataError, FlamestError, LockedError, SettingsError, StorageError
from flamest.base.sqlite import (
    Schema,
    SchemaFault,
    copy_database,
    open_for_reading,
    open_for_writing,
    translated_errors,
)

FIRST = Schema(
    kind="list of clips",
    extra="agent",
    tables="CREATE TABLE clips(name TEXT PRIMARY KEY) STRICT;",
    first_version=1,
    application_id=7,
    damaged=SchemaFault(DataError, "list_damaged", "restore it"),
    older=SchemaFault(DataError, "list_older", "start the writer once"),
    newer=SchemaFault(SettingsError, "list_newer", "install the newer version"),
    foreign=SchemaFault(DataError, "not_a_list", "name the list"),
    copy_before_migration=True,
)
THIRD = dataclasses.replace(
    FIRST,
    migrations=(
        "ALTER TABLE clips ADD COLUMN label TEXT;",
        "CREATE TABLE groups(name TEXT) STRICT; INSERT INTO groups SELECT name FROM clips;",
    ),
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "clips.sqlite"


def made(path, schema=FIRST, *names: str) -> None:
    connection = open_for_writing(path, schema)
    for name in names:
        connection.execute("INSERT INTO clips(name) VALUES (?)", (name,))
    connection.close()


def contents(path) -> dict:
    return {file: file.read_bytes() for file in path.parent.iterdir()}


def schema_of(path) -> list:
    connection = apsw.Connection(str(path))
    try:
        return [connection.pragma("user_version"), *connection.execute("SELECT name, sql FROM sqlite_schema")]
    finally:
        connection.close()


def test_a_new_file_is_durable_private_and_of_this_version(path):
    connection = open_for_writing(path, THIRD)
    pragmas = {name: connection.pragma(name) for name in ("journal_mode", "synchronous", "foreign_keys")}
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    assert (connection.pragma("user_version"), connection.pragma("application_id")) == (3, 7)
    connection.close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_older_file_is_copied_and_migrated(path):
    made(path, FIRST, "a.mp4")
    connection = open_for_writing(path, THIRD)
    assert connection.pragma("user_version") == 3
    assert list(connection.execute("SELECT name, label FROM clips")) == [("a.mp4", None)]
    assert list(connection.execute("SELECT name FROM groups")) == [("a.mp4",)]
    connection.close()
    copy = open_for_reading(path.with_name("clips.sqlite.schema-1"), FIRST)
    assert list(copy.execute("SELECT * FROM clips")) == [("a.mp4",)]
    copy.close()


def test_only_kinds_that_ask_for_it_keep_a_copy(path):
    made(path)
    made(path, dataclasses.replace(THIRD, copy_before_migration=False))
    assert schema_of(path)[0] == 3
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_migrated_file_has_the_tables_of_a_new_one(path):
    made(path)
    made(path, THIRD)
    made(new := path.with_name("new.sqlite"), THIRD)
    assert schema_of(path) == schema_of(new)


def test_a_migration_that_fails_changes_nothing_and_is_tried_again(path):
    made(path, FIRST, "a.mp4")
    before = schema_of(path)
    broken = dataclasses.replace(THIRD, migrations=(THIRD.migrations[0], "INSERT INTO nowhere VALUES (1);"))
    with pytest.raises(FlamestError, match="nowhere"):
        open_for_writing(path, broken)
    assert schema_of(path) == before
    made(path, THIRD)
    assert schema_of(path)[0] == 3


def test_a_reader_leaves_the_migration_to_the_writer(path):
    made(path)
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"older version \(schema version 1, expected 3\)") as refused:
        open_for_reading(path, THIRD)
    assert (refused.value.code, refused.value.fix) == ("list_older", "start the writer once")
    assert path.read_bytes() == before


@pytest.mark.parametrize("opened", [open_for_writing, open_for_reading])
def test_a_newer_file_is_refused_and_not_changed(path, opened):
    made(path, THIRD)
    before = path.read_bytes()
    with pytest.raises(SettingsError, match="newer version") as refused:
        opened(path, FIRST)
    assert (refused.value.code, refused.value.exit_code) == ("list_newer", 78)
    assert path.read_bytes() == before


def test_a_writer_leaves_no_file_next_to_a_newer_one(path):
    made(path, THIRD)
    before = contents(path)
    with pytest.raises(SettingsError):
        open_for_writing(path, FIRST)
    assert contents(path) == before


def test_another_programs_database_is_refused_and_not_changed(path):
    other = apsw.Connection(str(path))
    other.execute("CREATE TABLE theirs(a)")
    other.close()
    before = contents(path)
    with pytest.raises(DataError, match="not a list of clips") as refused:
        open_for_writing(path, FIRST)
    assert refused.value.code == "not_a_list"
    assert contents(path) == before


def test_a_file_that_is_no_database_is_damaged(path):
    path.write_bytes(b"no database " * 1000)
    with pytest.raises(DataError, match="damaged") as refused:
        open_for_writing(path, FIRST)
    assert (refused.value.code, refused.value.fix) == ("list_damaged", "restore it")


def test_a_damaged_page_is_found_at_opening(path):
    made(path, FIRST, *(f"{number:0200}" for number in range(200)))
    content = bytearray(path.read_bytes())
    content[4096:8192] = os.urandom(4096)
    path.write_bytes(content)
    for opened in (open_for_reading, open_for_writing):
        with pytest.raises(DataError) as refused:
            opened(path, FIRST)
        assert refused.value.code == "list_damaged"


CRASH = """
import os, sys
from pathlib import Path
import apsw
connection = apsw.Connection(sys.argv[1])
connection.execute("INSERT INTO clips(name) VALUES ('last')")
os._exit(9)
"""


def test_a_reader_after_a_crash_leaves_the_log_file(path):
    made(path)
    subprocess.run([sys.executable, "-c", CRASH, str(path)], check=False)
    log_file = path.with_name("clips.sqlite-wal")
    before = (path.read_bytes(), log_file.read_bytes())
    for small_changes in (False, True):
        connection = open_for_reading(path, FIRST, small_changes=small_changes)
        assert list(connection.execute("SELECT name FROM clips")) == [("last",)]
        connection.close()
        assert (path.read_bytes(), log_file.read_bytes()) == before


def test_a_reader_writes_only_where_it_asked_to(path):
    made(path)
    connection = open_for_reading(path, FIRST)
    with pytest.raises(StorageError), translated_errors(path, FIRST):
        connection.execute("INSERT INTO clips(name) VALUES ('a')")
    connection.close()
    connection = open_for_reading(path, FIRST, small_changes=True)
    connection.execute("INSERT INTO clips(name) VALUES ('a')")
    connection.close()


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (apsw.CorruptError, DataError, "list_damaged"),
        (apsw.BusyError, LockedError, "locked"),
        (apsw.FullError, StorageError, "disk_full"),
        (apsw.IOError, StorageError, "storage"),
        (apsw.SQLError, FlamestError, "unexpected"),
    ],
)
def test_sqlite_errors_become_errors_with_an_exit_code(path, error, kind, code):
    with pytest.raises(kind) as caught, translated_errors(path, FIRST):
        raise error("why")
    assert caught.value.code == code
    assert "clips.sqlite" in caught.value.message


def test_a_copy_is_one_file_that_only_its_owner_reads(path):
    made(path, FIRST, "a.mp4")
    connection = open_for_writing(path, FIRST)
    copy_database(connection, copy := path.with_name("copy.sqlite"))
    connection.close()
    assert copy.stat().st_mode & 0o777 == 0o600
    copied = open_for_reading(copy, FIRST)
    assert list(copied.execute("SELECT name FROM clips")) == [("a.mp4",)]
    copied.close()
