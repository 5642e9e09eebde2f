"""The database file: damaged, taken away, older, newer."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys

import apsw
import pytest
from flamest.base.errors import DataError, FlamestError, SettingsError
from flamest.coordinator.rounds import Cohort, RoundPolicy
from flamest.coordinator.storage import database
from flamest.coordinator.storage.database import FILE, SCHEMA, SCHEMA_VERSION, open_database, read_database
from flamest.coordinator.storage.run_store import RunStore
from flamest.fedproto.head import HeadSpec
from flamest.fedproto.records import RunSettings

RUN = RunSettings("r", ("x", "y"), HeadSpec(3, 2, (4,)), rounds=3, min_silos=1, deadline_s=9.0, fingerprint="f")
PLAN, ROLL = RoundPolicy(3, 1, 9.0), Cohort(frozenset("ab"), 2)

PAGE = 4096

BEGIN_AND_DIE = """
import os, sys
from pathlib import Path
import msgspec
from flamest.coordinator.rounds import RoundPolicy, Roll
from flamest.coordinator.storage.run_store import RunStore
from flamest.fedproto.head import HeadSpec
from flamest.fedproto.records import RunSettings
run = RunSettings("r", ("x", "y"), HeadSpec(3, 2, (4,)), rounds=3, min_silos=1, deadline_s=9.0, fingerprint="f")
store = RunStore.open(Path(sys.argv[1]), run)
store.load(Plan(3, 1, 9.0), Roll(frozenset("ab"), 2))
os._exit(9)
"""


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "state"


def begin(folder) -> None:
    with RunStore.open(folder, RUN) as store:
        store.load(PLAN, ROLL)


def started(folder):
    """Where the run stands, or the code of the refusal."""
    try:
        with RunStore.open(folder, RUN) as store:
            return store.load(PLAN, ROLL)[0]
    except FlamestError as error:
        return error.code, error.exit_code


def test_a_changed_database_is_found_at_the_start_or_changes_nothing(folder, tmp_path):
    """T07: every page overwritten in turn; the start refuses with exit code 65, or knows all that was there."""
    begin(folder)
    with RunStore.open(folder, RUN) as store:
        expected = store.load(PLAN, ROLL)[0]
    whole, found = (folder / FILE).read_bytes(), 0
    for place in range(0, len(whole), PAGE):
        content = bytearray(whole)
        content[place : place + PAGE] = random.Random(place).randbytes(PAGE)
        shutil.copytree(folder, copy := tmp_path / f"copy-{place}")
        (copy / FILE).write_bytes(bytes(content))
        told = started(copy)
        if told == expected:  # an index that no query needed
            continue
        assert told in (("corrupt_state", 65), ("lost_run", 65))
        found += 1
    assert found > len(whole) // PAGE / 2


def test_a_log_file_that_was_taken_away_after_a_crash_is_missed(folder):
    """T07: without its -wal file the database would open as it was long before."""
    subprocess.run([sys.executable, "-c", BEGIN_AND_DIE, str(folder)], check=False)
    log_file = folder / f"{FILE}-wal"
    kept = log_file.read_bytes()
    log_file.unlink()
    before = (folder / FILE).read_bytes()
    with pytest.raises(DataError, match="-wal, which held the last changes, is gone") as refused:
        RunStore.open(folder, RUN)
    assert (refused.value.code, refused.value.exit_code) == ("corrupt_state", 65)
    assert "backup" in refused.value.fix
    assert (folder / FILE).read_bytes() == before
    log_file.write_bytes(kept)  # found again
    with RunStore.open(folder, RUN) as store:
        assert store.load(PLAN, ROLL)[0].open.number == 1


def test_a_look_at_the_state_after_a_crash_leaves_the_log_file_where_it_is(folder):
    subprocess.run([sys.executable, "-c", BEGIN_AND_DIE, str(folder)], check=False)
    read_database(folder / FILE).close()
    begin(folder)


def test_after_an_ordinary_end_the_main_file_alone_holds_everything(folder):
    begin(folder)
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(FILE)) == [FILE]


def old_file(path) -> None:
    """As schema 1 left it, with a round in it."""
    connection = apsw.Connection(str(path))
    connection.pragma("journal_mode", "wal")
    with connection:
        connection.execute(SCHEMA)
        connection.execute("INSERT INTO runs VALUES ('r', x'00', 'aa', 1.0)")
        connection.execute("INSERT INTO rounds VALUES ('r', 1, 'closed', 2, 'aa', 1.0, 2.0, 1.0, 'bb', 7)")
        connection.execute("INSERT INTO updates VALUES ('r', 1, 'a', 'id', 'd', 5, 's', 9, NULL, NULL, NULL, 1.5)")
        connection.pragma("user_version", 1)
    connection.close()


def test_an_older_file_is_copied_and_brought_to_this_version(tmp_path):
    """T08."""
    old_file(tmp_path / FILE)
    with pytest.raises(DataError, match="older version") as refused:
        read_database(tmp_path / FILE)
    assert refused.value.code == "older_state"
    now = open_database(tmp_path / FILE)
    assert now.pragma("user_version") == SCHEMA_VERSION
    assert list(now.execute("SELECT silo, examples, norm FROM updates")) == [("a", 5, None)]
    assert list(now.execute("SELECT number, status, lost_at FROM rounds")) == [(1, "closed", None)]
    now.close()
    copy = apsw.Connection(str(tmp_path / f"{FILE}.schema-1"))
    assert copy.pragma("user_version") == 1
    assert next(iter(copy.execute("SELECT * FROM updates")))[:3] == ("r", 1, "a")
    copy.close()


def test_an_upgrade_that_fails_half_way_changes_nothing(tmp_path, monkeypatch):
    """T08: one transaction; the next start tries again."""
    old_file(tmp_path / FILE)
    whole = dict(database.UPGRADES)
    monkeypatch.setitem(database.UPGRADES, SCHEMA_VERSION, whole[SCHEMA_VERSION] + "INSERT INTO nowhere VALUES (1);")
    with pytest.raises(FlamestError, match="nowhere"):
        open_database(tmp_path / FILE)
    left = apsw.Connection(str(tmp_path / FILE))
    assert left.pragma("user_version") == 1
    assert not list(left.execute("SELECT name FROM sqlite_schema WHERE name = 'strikes'"))
    left.close()
    monkeypatch.setattr(database, "UPGRADES", whole)
    open_database(tmp_path / FILE).close()


def test_an_old_binary_refuses_a_newer_file_and_changes_no_byte(tmp_path, monkeypatch):
    """T08: exit code 78."""
    begin(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(database, "SCHEMA_VERSION", SCHEMA_VERSION - 1)
    with pytest.raises(SettingsError, match="newer version") as refused:
        RunStore.open(tmp_path, RUN)
    assert (refused.value.code, refused.value.exit_code) == ("newer_state", 78)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
