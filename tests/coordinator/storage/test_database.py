"""The database file: damaged, taken away, older, newer."""

from __future__ import annotations

import dataclasses
import random
import shutil
import subprocess
import sys

import apsw
import pytest
from flamest.base.errors import DataError, FlamestError, SettingsError
from flamest.coordinator.rounds import Cohort, RoundPolicy
from flamest.coordinator.storage import database
from flamest.coordinator.storage.backup import back_up, restore
from flamest.coordinator.storage.database import DATABASE_FILE, read_database
from flamest.coordinator.storage.run_store import RunStore
from flamest.fedproto.head import HeadSpec
from flamest.fedproto.records import RunSettings

RUN = RunSettings("r", ("x", "y"), HeadSpec(3, 2, (4,)), rounds=3, min_silos=1, deadline_s=9.0, fingerprint="f")
POLICY, COHORT = RoundPolicy(3, 1, 9.0), Cohort(frozenset("ab"), 2)

PAGE = 4096

BEGIN_AND_DIE = """
import os, sys
from pathlib import Path
import msgspec
from flamest.coordinator.rounds import Cohort, RoundPolicy
from flamest.coordinator.storage.run_store import RunStore
from flamest.fedproto.head import HeadSpec
from flamest.fedproto.records import RunSettings
run = RunSettings("r", ("x", "y"), HeadSpec(3, 2, (4,)), rounds=3, min_silos=1, deadline_s=9.0, fingerprint="f")
store = RunStore.open(Path(sys.argv[1]), run)
store.load(RoundPolicy(3, 1, 9.0), Cohort(frozenset("ab"), 2))
os._exit(9)
"""


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "state"


def begin(folder) -> None:
    with RunStore.open(folder, RUN) as store:
        store.load(POLICY, COHORT)


def started(folder):
    """State of the run, or code and exit code of the refusal."""
    try:
        with RunStore.open(folder, RUN) as store:
            return store.load(POLICY, COHORT)[0]
    except FlamestError as error:
        return error.code, error.exit_code


def test_a_changed_database_page_is_found_at_the_start_or_unused(folder, tmp_path):
    """Every page overwritten in turn; the start refuses with exit code 65, or knows all that was there."""
    begin(folder)
    with RunStore.open(folder, RUN) as store:
        expected = store.load(POLICY, COHORT)[0]
    whole, found = (folder / DATABASE_FILE).read_bytes(), 0
    for place in range(0, len(whole), PAGE):
        content = bytearray(whole)
        content[place : place + PAGE] = random.Random(place).randbytes(PAGE)
        shutil.copytree(folder, copy := tmp_path / f"copy-{place}")
        (copy / DATABASE_FILE).write_bytes(bytes(content))
        found_at_start = started(copy)
        if found_at_start == expected:  # an index that no query needed
            continue
        assert found_at_start in (("corrupt_state", 65), ("lost_run", 65))
        found += 1
    assert found > len(whole) // PAGE / 2


def test_a_missing_wal_file_after_a_crash_is_noticed(folder):
    """Without its -wal file the database would open as it was long before."""
    subprocess.run([sys.executable, "-c", BEGIN_AND_DIE, str(folder)], check=False)
    log_file = folder / f"{DATABASE_FILE}-wal"
    kept = log_file.read_bytes()
    log_file.unlink()
    before = (folder / DATABASE_FILE).read_bytes()
    with pytest.raises(DataError, match="-wal, which held the last changes, is gone") as refused:
        RunStore.open(folder, RUN)
    assert (refused.value.code, refused.value.exit_code) == ("corrupt_state", 65)
    assert "backup" in refused.value.fix
    assert (folder / DATABASE_FILE).read_bytes() == before
    log_file.write_bytes(kept)  # found again
    with RunStore.open(folder, RUN) as store:
        assert store.load(POLICY, COHORT)[0].open.number == 1


def test_reading_the_state_after_a_crash_keeps_the_wal_file(folder):
    subprocess.run([sys.executable, "-c", BEGIN_AND_DIE, str(folder)], check=False)
    read_database(folder / DATABASE_FILE).close()
    begin(folder)


def test_an_orderly_end_leaves_only_the_main_file(folder):
    begin(folder)
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(DATABASE_FILE)) == [DATABASE_FILE]


def test_a_newer_database_is_refused_and_no_byte_changes(tmp_path):
    begin(tmp_path)
    newer = apsw.Connection(str(tmp_path / DATABASE_FILE))
    newer.pragma("user_version", 99)
    newer.close()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(SettingsError, match="newer version") as refused:
        RunStore.open(tmp_path, RUN)
    assert (refused.value.code, refused.value.exit_code) == ("newer_state", 78)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.fixture
def older_backup(tmp_path, monkeypatch):
    """A backup of the first version of the database."""
    with monkeypatch.context() as patch:
        patch.setattr(database, "SCHEMA", dataclasses.replace(database.SCHEMA, migrations=(), oldest_readable=None))
        begin(tmp_path / "older")
        back_up(tmp_path / "older", tmp_path / "backup")
    return tmp_path / "backup"


def test_an_older_database_is_migrated_and_a_copy_kept(older_backup, tmp_path):
    begin(older := tmp_path / "older")
    assert (older / f"{DATABASE_FILE}.schema-{database.SCHEMA.first_version}").is_file()
    assert not isinstance(started(older), tuple)


def test_a_backup_of_an_older_version_is_restored(older_backup, folder):
    restore(folder, older_backup)
    assert not isinstance(started(folder), tuple)
