"""Segments in the feature store; stores of 0.2.0, which knew none."""

import apsw
import numpy as np
import pytest
from flamest.agent.cli.main import app
from flamest.agent.extraction.report import ExtractRequest
from flamest.agent.extraction.store import Failure, FeatureRow, FeatureStore
from flamest.agent.extraction.store_schema import FEATURE_STORE, TABLES
from flamest.agent.status import LOCK_FILE, AgentStatus, write_status
from flamest.agent.tasks import extract_new
from flamest.base.errors import DataError
from flamest.base.files import FileLock
from flamest.runtime.clip_records import Caption, Clip, ClipFeatures, Segment, clip_identity
from typer.testing import CliRunner

FILE = "ab" * 32
CUTS = (Segment(0, 2_500_000), Segment(2_500_000, 4_000_000), Segment(10_000_000, 12_000_000))


def clip(tmp_path, segment, label="wave", **more):
    path = tmp_path / "long.mp4"
    if segment is None:
        return Clip(path, FILE, label, "g")
    return Clip(path, clip_identity(FILE, segment), label, "g", segment, FILE, **more)


def row(made):
    name = "long.mp4" if made.segment is None else f"long.mp4#{made.segment}"
    return name, FeatureRow(made, np.full(4, 2.0, np.float32), 2, "f", "fp32", "a caption", 1, (0.5,))


def old_store(path):
    """A store as 0.2.0 made it, with two clips of two labels and a failure."""
    database = apsw.Connection(str(path))
    database.execute(TABLES)
    database.pragma("application_id", FEATURE_STORE.application_id)
    database.pragma("user_version", 2)
    database.pragma("journal_mode", "wal")
    for number, label in enumerate(("wave", None)):
        database.execute("INSERT INTO clips VALUES (?, ?, ?, ?)", (f"{number:064x}", f"{number}.avi", label, "g"))
        x = np.full(4, number, "<f4").tobytes()
        values = (f"{number:064x}", "f", "fp32", x, 2, "a caption", 1, "[0.5]")
        database.execute("INSERT INTO features VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
    database.execute("INSERT INTO failures VALUES ('bad.avi', ?, 'video_damaged', 'cut off', NULL)", ("e" * 64,))
    database.close()
    return path


def contents(store):
    stored = store.read()
    return stored.x.tobytes(), stored.labels, stored.groups, stored.clips, stored.captions, stored.paths, store.notes()


def test_a_store_of_0_2_0_is_read_before_it_is_migrated(tmp_path):
    path = old_store(tmp_path / "s.sqlite")
    before = path.read_bytes()
    with FeatureStore.open(path, create=False, read_only=True) as store:
        stored = store.read()
        assert stored.labels == ("wave", None)
        assert (stored.segments, stored.persons, stored.cameras) == ((None,) * 2, ("",) * 2, ("",) * 2)
        assert stored.files == stored.paths == ("0.avi", "1.avi")
        assert store.count_unlisted("f") == 0
        assert store.failure("e" * 64) == Failure("video_damaged", "cut off")
    assert path.read_bytes() == before


def test_migration_keeps_every_row_and_a_copy(tmp_path):
    path = old_store(tmp_path / "s.sqlite")
    with FeatureStore.open(path, create=False, read_only=True) as store:
        before = contents(store)
    with FeatureStore.open(path) as store:
        assert contents(store) == before
        assert store.failure("e" * 64) == Failure("video_damaged", "cut off")
        store.add_rows([row(clip(tmp_path, CUTS[0]))])
    with FeatureStore.open(path, create=False, read_only=True) as store:
        assert len(store.read().clips) == 3
    with FeatureStore.open(path.with_name("s.sqlite.schema-2"), create=False, read_only=True) as copy:
        assert contents(copy) == before


def test_an_open_reader_survives_the_migration(tmp_path):
    path = old_store(tmp_path / "s.sqlite")
    with FeatureStore.open(path, create=False, read_only=True) as reader:
        before = contents(reader)
        with FeatureStore.open(path) as writer:
            writer.note_clip(Clip(tmp_path / "0.avi", f"{0:064x}", "wave", "g"), name="0.avi")
            assert contents(reader) == before


def test_a_segment_comes_back_with_times_person_and_camera(tmp_path):
    with FeatureStore.open(tmp_path / "s.sqlite") as store:
        made = [clip(tmp_path, cut, person="p1", camera="ceiling") for cut in CUTS]
        store.add_rows([row(each) for each in made] + [row(clip(tmp_path, None))])
        stored, notes = store.read(), store.notes()
    assert set(zip(stored.clips, stored.segments, strict=True)) == {
        *((each.sha256, each.segment) for each in made),
        (FILE, None),
    }
    assert {note.sha256: note.segment for note in notes} == dict(zip(stored.clips, stored.segments, strict=True))
    assert set(stored.files) == {note.file for note in notes} == {"long.mp4"}
    for segment, person, camera in zip(stored.segments, stored.persons, stored.cameras, strict=True):
        assert (person, camera) == (("p1", "ceiling") if segment else ("", ""))


def test_segments_no_longer_listed_keep_features_and_lose_their_label(tmp_path):
    with FeatureStore.open(tmp_path / "s.sqlite") as store:
        store.add_rows([row(clip(tmp_path, cut)) for cut in (None, *CUTS)])
        other = Clip(tmp_path / "other.mp4", "cd" * 32, "wave", "g")
        store.add_rows([("other.mp4", FeatureRow(other, np.ones(4, np.float32), 2, "f", "fp32"))])
        kept = clip(tmp_path, CUTS[1])
        store.keep_listed(FILE, {kept.sha256})
        stored = store.read()
        assert {name: label for name, label in zip(stored.paths, stored.labels, strict=True) if label} == {
            "long.mp4#t=2.5,4": "wave",
            "other.mp4": "wave",
        }
        assert [note.label for note in store.notes()] == list(stored.labels)
        assert len(stored.x) == 5
        assert (store.count_unlisted("f"), store.count_unlisted("g")) == (3, 0)
        back = clip(tmp_path, CUTS[0], "run")
        assert store.has(back.sha256, "f", "fp32")
        store.note_clip(back, name="long.mp4#t=0,2.5")
        stored = store.read()
        assert stored.labels[stored.segments.index(CUTS[0])] == "run"
        assert store.count_unlisted("f") == 2


def test_clips_of_paths_that_could_not_be_read_keep_their_label(tmp_path):
    with FeatureStore.open(tmp_path / "s.sqlite") as store:
        store.add_rows([row(clip(tmp_path, cut)) for cut in CUTS])
        store.keep_listed(FILE, (), keeps={"long.mp4#t=0,2.5"}.__contains__)
        assert store.read().labels.count("wave") == 1


def test_an_import_that_knows_less_of_a_segment_changes_no_times(tmp_path):
    with FeatureStore.open(tmp_path / "s.sqlite") as store:
        made = clip(tmp_path, CUTS[0])
        store.add_rows([row(made)])
        store.add_rows([("x", FeatureRow(Clip(made.path, made.sha256, "run", "g"), np.ones(3, "<f4"), 0, "i", "fp32"))])
        assert store.read("i").segments == (CUTS[0],)
        store.keep_listed(FILE, ())
        assert store.count_unlisted("f") == 1


@pytest.mark.parametrize("harm", ["start_us = 5, end_us = 5", "end_us = NULL", "start_us = -1", "start_us = NULL"])
def test_times_that_no_segment_has_are_damage(tmp_path, harm):
    path = tmp_path / "s.sqlite"
    with FeatureStore.open(path) as store:
        store.add_rows([row(clip(tmp_path, CUTS[1]))])
    database = apsw.Connection(str(path))
    database.execute(f"UPDATE clips SET {harm}")
    database.close()
    with FeatureStore.open(path, read_only=True) as store:
        for read in (store.read, store.notes):
            with pytest.raises(DataError) as caught:
                read()
            assert caught.value.code == "store_damaged"


def test_a_segments_group_without_one_is_its_files_name(tmp_path):
    made = Clip(tmp_path / "long.mp4", clip_identity(FILE, CUTS[0]), "wave", None, CUTS[0], FILE)
    features = ClipFeatures(
        np.ones(2, "<f4"), np.ones(2, "<f4"), Caption("", ()), 0, (0.0,), fingerprint="f", precision="fp32"
    )
    with FeatureStore.open(tmp_path / "s.sqlite") as store:
        store.add(made, features, name="ward/long.mp4#t=0,2.5")
        assert store.read().groups == ("long",)


def test_commands_that_read_leave_an_old_store_as_it_is(tmp_path):
    path = old_store(tmp_path / "s.sqlite")
    database = apsw.Connection(str(path))
    database.execute("UPDATE clips SET label = 'run' WHERE label IS NULL")
    database.close()
    before = path.read_bytes()
    for words in (
        ["features", "--store", path, "--out", tmp_path / "f.npz"],
        ["train", "--store", path, "--out", tmp_path / "m.safetensors", "--passes", 1, "--threads", 1],
    ):
        done = CliRunner().invoke(app, [*map(str, words), "--json"])
        assert done.exit_code == 0, done.output
    assert path.read_bytes() == before
    with np.load(tmp_path / "f.npz") as written:
        assert written["file"].tolist() == ["0.avi", "1.avi"]
        assert np.isnan(written["start_s"]).all()


def test_the_daemon_counts_unlisted_clips_and_names_none(tmp_path, toy_bundle, clips):
    clips.write_clip(tmp_path / "videos" / "long.mp4", frames=50)
    table = tmp_path / "videos" / "labels.csv"
    request = ExtractRequest(toy_bundle, tmp_path / "videos", tmp_path / "s.sqlite", threads=1)
    table.write_text("path,label,start_s,end_s\nlong.mp4,wave,0,1\nlong.mp4,run,1,2\n")
    assert "unlisted" not in extract_new(request).figures
    table.write_text("path,label,start_s,end_s\nlong.mp4,wave,0,0.8\nlong.mp4,run,1.2,2\n")
    summary = extract_new(request)
    assert (summary.figures["unlisted"], summary.unlisted, summary.figures["extracted"]) == (2, 2, 2)
    assert "long" not in repr(summary)


def test_status_shows_how_many_clips_are_unlisted(tmp_path):
    connection = 'address = "h:1"\nca = "c"\ncertificate = "s"\nkey = "k"\n'
    (tmp_path / "agent.toml").write_text(f'state = "."\nstore = "s.sqlite"\n[coordinator]\n{connection}')
    write_status(tmp_path, AgentStatus(unlisted_clips=2))
    with FileLock.take(tmp_path / LOCK_FILE, owner="flamest-agent"):  # otherwise status ends with 69
        done = CliRunner().invoke(app, ["status", "--config", str(tmp_path / "agent.toml")])
    assert "clips in the store that are not listed any more, and not trained on: 2" in done.output
