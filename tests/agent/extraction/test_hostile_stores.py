"""A feature store that something else wrote: refused by name, and what it defines never runs."""

import os
import time

import apsw
import numpy as np
import pytest
from flamest.agent.extraction.store import FeatureRow, FeatureStore
from flamest.base.errors import DataError, FlamestError
from flamest.runtime.clip_records import Clip

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "store.sqlite"
    with FeatureStore.open(path) as opened:
        rows = [
            (f"{n}.avi", FeatureRow(Clip(tmp_path / "a.avi", f"{n:064x}", "l", "g"), np.ones(4, "<f4"), 2, "f", "fp32"))
            for n in range(8)
        ]
        opened.add_rows(rows)
    return path


def changed(path, *statements):
    connection = apsw.Connection(str(path))
    connection.pragma("foreign_keys", False)
    for statement in statements:
        connection.execute(statement)
    connection.pragma("wal_checkpoint(TRUNCATE)")
    connection.close()
    return path


def exit_code(path, *, read_only=False):
    """With which a command would end that reads the store."""
    try:
        with FeatureStore.open(path, read_only=read_only) as opened:
            opened.read()
            opened.notes()
    except FlamestError as error:
        return error.exit_code
    return 0


SCHEMAS = {
    "trigger": "CREATE TRIGGER t AFTER INSERT ON clips BEGIN DELETE FROM features; END",
    "trigger without end": f"CREATE TRIGGER t AFTER INSERT ON clips BEGIN INSERT INTO failures {ENDLESS}; END",
    "view": f"CREATE VIEW v AS {ENDLESS}",
    "another table": "CREATE TABLE other(a)",
    "another index": "CREATE INDEX i ON clips(label)",
    "index of an expression": "CREATE INDEX i ON clips(upper(label))",
    "another column": "ALTER TABLE clips ADD COLUMN more TEXT",
    "generated column": "ALTER TABLE clips ADD COLUMN more TEXT GENERATED ALWAYS AS (label || label) VIRTUAL",
    "no table": "DROP TABLE failures",
    "virtual table": "CREATE VIRTUAL TABLE f USING fts5(a)",
}


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("schema", SCHEMAS)
def test_other_tables_are_damage_before_a_row_is_read(store, schema, read_only):
    changed(store, SCHEMAS[schema])
    before = store.read_bytes()
    began = time.monotonic()
    with pytest.raises(DataError) as caught:
        FeatureStore.open(store, read_only=read_only)
    assert caught.value.code == "store_damaged"
    assert time.monotonic() - began < 5
    assert store.read_bytes() == before


def test_a_view_in_place_of_a_table_is_not_asked(store):
    changed(
        store,
        "DROP TABLE clips",
        f"CREATE VIEW clips AS SELECT 'a' AS sha256, 'a' AS path, 'a' AS label, 'a' AS grp FROM ({ENDLESS})",
    )
    with pytest.raises(DataError) as caught:
        FeatureStore.open(store, read_only=True)
    assert caught.value.code == "store_damaged"


VALUES = {
    "huge blob": "UPDATE features SET x = zeroblob(400000000) WHERE rowid = 1",
    "huge caption": "UPDATE features SET caption = hex(zeroblob(50000000)) WHERE rowid = 1",
    "odd bytes": "UPDATE features SET x = zeroblob(15)",
    "no bytes": "UPDATE features SET x = zeroblob(0)",
    "other width": "UPDATE features SET x = zeroblob(20) WHERE rowid = 1",
    "negative part": "UPDATE features SET vlm_width = -1",
    "part beyond the whole": "UPDATE features SET vlm_width = 9223372036854775807",
    "NaN": "UPDATE features SET x = x'0000c07f0000c07f0000c07f0000c07f'",
    "infinity": "UPDATE features SET x = x'0000807f0000807f0000807f0000807f' WHERE rowid = 3",
    "invalid UTF-8": "UPDATE clips SET label = CAST(x'fffe' AS TEXT)",
}


@pytest.mark.parametrize("value", VALUES)
def test_values_that_were_never_written_are_damage(store, value):
    changed(store, VALUES[value])
    with pytest.raises(DataError) as caught, FeatureStore.open(store, read_only=True) as opened:
        opened.read()
    assert caught.value.code == "store_damaged"


@pytest.mark.parametrize("times", ["[", "{}", '["a"]', "[" * 100_000, "null", "[1e999]"])
def test_times_that_are_none_are_damage(store, times):
    changed(store, f"UPDATE features SET times = '{times}'")
    with pytest.raises(DataError) as caught, FeatureStore.open(store, read_only=True) as opened:
        opened.notes()
    assert caught.value.code == "store_damaged"


@pytest.mark.parametrize("suffix", ["-wal", "-shm", ".lock"])
@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_a_companion_file_of_a_wrong_kind_ends_soon(store, tmp_path, suffix, kind):
    target = tmp_path / "other"
    target.write_bytes(b"keep me")
    companion = store.with_name(store.name + suffix)
    companion.unlink(missing_ok=True)
    {"link": lambda: companion.symlink_to(target), "fifo": lambda: os.mkfifo(companion), "folder": companion.mkdir}[
        kind
    ]()
    began = time.monotonic()
    assert exit_code(store) in (0, 65, 74)
    assert time.monotonic() - began < 15
    assert target.read_bytes() == b"keep me"


def test_random_damage_ends_by_name(store):
    whole, random = store.read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(whole)
        for position in random.integers(0, len(data), random.integers(1, 20)):
            data[position] = random.integers(256)
        store.write_bytes(data)
        assert exit_code(store, read_only=True) in (0, 65, 78)
