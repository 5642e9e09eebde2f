"""The feature store: it survives crashes, and its errors name what is wrong with a file."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import apsw
import numpy as np
import pytest
from flamest.agent.extraction.store import Failure, FeatureKind, FeatureStore
from flamest.base.errors import DataError, LockedError, SettingsError, StorageError
from flamest.runtime.clip_records import Caption, Clip, ClipFeatures

PRINT = "a" * 64


def clip(number, label="wave", group="g1"):
    return Clip(Path(f"/videos/wave/{number}.avi"), f"{number:064x}", label, group)


def features(number=0, fingerprint=PRINT, precision="fp32", **changes):
    random = np.random.default_rng(number)
    fields = {
        "vlm": random.normal(size=3).astype(np.float32),
        "cnn": random.normal(size=5).astype(np.float32),
        "caption": Caption(f"a person waves {number}", (1, 2)),
        "keyframe": number % 8,
        "keyframe_times_s": (0.0, 0.5),
        "fingerprint": fingerprint,
        "precision": precision,
    }
    return ClipFeatures(**(fields | changes))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "features.sqlite"


def filled(path, count=3):
    with FeatureStore.open(path) as store:
        for number in reversed(range(count)):
            store.add(clip(number), features(number), name=f"wave/{number}.avi")
    return path


def reading(path):
    return FeatureStore.open(path, create=False, read_only=True)


def test_features_are_read_back_to_the_bit_sorted_by_hash(path):
    with reading(filled(path)) as store:
        stored = store.read()
    assert stored.clips == tuple(f"{number:064x}" for number in range(3))
    expected = [np.concatenate([features(number).vlm, features(number).cnn]) for number in range(3)]
    assert stored.x.tobytes() == np.stack(expected).tobytes()
    assert stored.x.dtype == np.float32
    assert stored.x.shape == (3, 8)
    assert stored.labels == ("wave",) * 3
    assert stored.groups == ("g1",) * 3
    assert stored.captions == tuple(f"a person waves {number}" for number in range(3))
    assert stored.paths == tuple(f"wave/{number}.avi" for number in range(3))
    assert (stored.fingerprint, stored.precision, stored.vlm_width) == (PRINT, "fp32", 3)


def test_a_clip_is_identified_by_content_fingerprint_and_precision(path):
    with FeatureStore.open(filled(path)) as store:
        sha256 = clip(1).sha256
        assert store.has(sha256, PRINT, "fp32")
        assert not store.has(sha256, PRINT, "fp16")
        assert not store.has(sha256, "b" * 64, "fp32")
        assert not store.has(clip(9).sha256, PRINT, "fp32")


def test_a_new_label_leaves_the_features_unchanged(path):
    with FeatureStore.open(filled(path)) as store:
        before = store.read()
        store.note_clip(clip(1, label=None, group="g2"), name="loose.avi")
        after = store.read()
    assert after.labels == ("wave", None, "wave")
    assert after.groups == ("g1", "g2", "g1")
    assert after.paths[1] == "loose.avi"
    assert after.x.tobytes() == before.x.tobytes()


def test_adding_again_replaces(path):
    with FeatureStore.open(filled(path)) as store:
        store.add(clip(1), features(7), name="wave/1.avi")
        assert store.kinds() == [FeatureKind(PRINT, "fp32", 3)]
        assert store.read().captions[1] == "a person waves 7"


def test_several_kinds_of_features_are_never_mixed(path):
    with FeatureStore.open(filled(path)) as store:
        store.add(clip(5), features(5, "ab" * 32), name="5.avi")
        store.add(clip(5), features(6, precision="fp16"), name="5.avi")
        assert store.kinds() == [
            FeatureKind(PRINT, "fp32", 3),
            FeatureKind(PRINT, "fp16", 1),
            FeatureKind("ab" * 32, "fp32", 1),
        ]
        with pytest.raises(DataError) as caught:
            store.read()
        assert caught.value.code == "several_kinds"
        assert caught.value.fix.endswith(f"--fingerprint {PRINT[:12]} --precision fp16")  # extracted last
        assert PRINT in caught.value.message
        assert "ab" * 32 in caught.value.message
        assert store.read(PRINT, "fp16").captions == ("a person waves 6",)
        assert store.read("abab").clips == (clip(5).sha256,)  # the beginning is enough
        assert store.read(precision="fp16").fingerprint == PRINT
        for asked in (("c" * 64, None), (None, "int8"), ("abab", "fp16")):
            with pytest.raises(DataError) as caught:
                store.read(*asked)
            assert caught.value.code == "no_such_features"


def test_the_error_of_an_empty_store_says_how_to_fill_it(path):
    with FeatureStore.open(path) as store:
        with pytest.raises(DataError) as caught:
            store.read()
    assert caught.value.code == "store_empty"
    assert "flamest-agent extract" in caught.value.fix


def test_failures_are_kept_until_the_clip_works(path):
    with FeatureStore.open(path) as store:
        store.note_failure("wave/1.avi", clip(1).sha256, Failure("video_damaged", "cut off"))
        assert store.failure(clip(1).sha256) == Failure("video_damaged", "cut off")
        store.note_failure("wave/copy.avi", clip(1).sha256, Failure("video_timeout", "took long", 60.0))
        assert store.failure(clip(1).sha256) == Failure("video_timeout", "took long", 60.0)
        assert store.failure(clip(3).sha256) is None
        store.add(clip(1), features(1), name="elsewhere.avi")
        assert store.failure(clip(1).sha256) is None


# --- one writer, many readers ---


def test_a_second_writer_is_refused_and_readers_are_not(path):
    with FeatureStore.open(filled(path)) as writer:
        with pytest.raises(LockedError) as caught:
            FeatureStore.open(path)
        assert caught.value.exit_code == 75
        with reading(path) as reader:
            assert len(reader.read().clips) == 3
            writer.add(clip(8), features(8), name="8.avi")
            assert len(reader.read().clips) == 4
    FeatureStore.open(path).close()  # free again


def test_a_reader_cannot_write(path):
    with reading(filled(path)) as store, pytest.raises(StorageError):
        store.add(clip(9), features(9), name="9.avi")


def test_the_lock_is_freed_when_opening_fails(path):
    path.write_bytes(b"not a database, but long enough to be looked at as one" * 40)
    for _ in range(2):
        with pytest.raises(DataError):
            FeatureStore.open(path)


# --- the file ---


def test_only_its_owner_can_read_it(path):
    filled(path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_reading_does_not_create_a_missing_store(path):
    for options in ({"create": False}, {"read_only": True}):
        with pytest.raises(DataError) as caught:
            FeatureStore.open(path, **options)
        assert caught.value.code == "store_missing"
        assert not path.exists()


def test_a_store_of_another_version_is_refused_and_not_changed(path):
    filled(path)
    database = apsw.Connection(str(path))
    database.pragma("user_version", 99)
    database.close()
    before = path.read_bytes()
    for options in ({}, {"read_only": True}):
        with pytest.raises(SettingsError, match="version 99") as caught:
            FeatureStore.open(path, **options)
        assert caught.value.code == "store_version"
        assert caught.value.exit_code == 78
    assert path.read_bytes() == before


def test_another_programs_database_is_refused_and_not_changed(path):
    database = apsw.Connection(str(path))
    database.execute("CREATE TABLE theirs (a)")
    database.close()
    before = path.read_bytes()
    with pytest.raises(DataError) as caught:
        FeatureStore.open(path)
    assert caught.value.code == "not_a_store"
    assert path.read_bytes() == before


def test_a_damaged_store_is_refused_with_a_fix(path):
    filled(path, count=60)
    whole = path.read_bytes()
    refused = 0
    for start in range(0, len(whole), 4096):
        harmed = bytearray(whole)
        harmed[start : start + 512] = os.urandom(512)
        path.write_bytes(harmed)
        try:
            with reading(path) as store:
                assert len(store.read().clips) <= 60
        except (DataError, SettingsError) as error:
            refused += error.code in ("store_damaged", "not_a_store", "store_version") and bool(error.fix)
    assert refused > len(whole) // 4096 * 0.8  # a page of caption text alone can only be noticed by a checksum
    path.write_bytes(b"this is no database at all " * 200)
    with pytest.raises(DataError) as caught:
        FeatureStore.open(path)
    assert caught.value.code == "store_damaged"
    assert caught.value.exit_code == 65
    assert "extract again" in caught.value.fix


WRITER = """
import sys
from pathlib import Path
import numpy as np
from flamest.agent.extraction.store import FeatureStore
from flamest.runtime.clip_records import Caption, Clip, ClipFeatures
one = np.ones(8, np.float32)
with FeatureStore.open(Path(sys.argv[1])) as store:
    for number in range(100000):
        made = ClipFeatures(one * number, one, Caption("c", ()), 0, (0.0,), "a" * 64, "fp32")
        store.add(Clip(Path("x"), f"{number:064x}", "l", "g"), made, name=f"{number}")
        print(number, flush=True)
"""


def test_a_killed_store_holds_every_acknowledged_clip(path):
    for number in range(6):
        path.unlink(missing_ok=True)
        for rest in path.parent.glob("features.sqlite-*"):
            rest.unlink()
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        writer.stdout.readline()
        time.sleep(0.01 * number)
        writer.send_signal(signal.SIGKILL)
        acknowledged = 1 + len(writer.stdout.read().splitlines())
        writer.wait()
        writer.stdout.close()
        with FeatureStore.open(path, create=False) as store:
            stored = store.read()
        assert acknowledged <= len(stored.clips) <= acknowledged + 1
        assert (stored.x[:, 0] == np.arange(len(stored.clips))).all()


def test_times_are_stored_as_json_seconds(path):
    filled(path, 1)
    database = apsw.Connection(str(path))
    assert json.loads(next(database.execute("SELECT times FROM features"))[0]) == [0.0, 0.5]
    database.close()
