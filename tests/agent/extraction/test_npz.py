"""Features to and from .npz files, without pickle."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from flamest.agent.extraction.npz import imported_fingerprint, read_npz, write_npz
from flamest.agent.extraction.store import FeatureRow, FeatureStore
from flamest.base.errors import DataError, StorageError, UsageError
from flamest.runtime.clip_records import Clip, Segment, clip_identity

X = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float16)
Y = np.array(["wave", "wave", "punch", ""])
CLIPS = np.array(["v_wave_g01_c01.avi", "v_wave_g01_c02.avi", "v_punch_g02_c01.avi", "ü.avi"])


def saved(path: Path, **arrays) -> Path:
    """As np.savez does it, which takes no array called ``file``."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, np.asanyarray(array))
    return path


def stored(path, name="vgg16", store="store.sqlite"):
    with FeatureStore.open(path.parent / store) as opened:
        opened.add_rows(read_npz(path, name))
        return opened.read()


def by_path(found):
    return dict(zip(found.paths, zip(found.labels, found.groups, found.x.tolist(), strict=True), strict=True))


def test_imported_features_are_read_like_extracted_ones(tmp_path):
    found = stored(saved(tmp_path / "f.npz", x=X, y=Y, clip=CLIPS, group=np.array(["a", "a", "b", "c"])))
    assert found.fingerprint == "imported:vgg16:6"
    assert (found.precision, found.vlm_width) == ("fp16", 0)
    expected = {
        name: (label or None, group, row)
        for name, label, group, row in zip(CLIPS, Y, "aabc", X.astype(np.float32).tolist(), strict=True)
    }
    assert by_path(found) == expected


def test_groups_are_read_from_clip_names_where_none_are_given(tmp_path):
    found = stored(saved(tmp_path / "f.npz", x=X, y=Y, clip=CLIPS))
    assert {path: row[1] for path, row in by_path(found).items()} == {
        CLIPS[0]: "wave_g01",
        CLIPS[1]: "wave_g01",
        CLIPS[2]: "punch_g02",
        CLIPS[3]: "ü",
    }


def test_without_names_every_row_is_a_clip_of_its_own(tmp_path):
    found = stored(saved(tmp_path / "f.npz", x=np.ones((3, 2), np.float64), y=np.array(["a", "a", "b"])))
    assert len(found.clips) == 3
    assert len(set(found.groups)) == 3
    assert found.precision == "fp32"


def test_importing_again_changes_nothing(tmp_path):
    file = saved(tmp_path / "f.npz", x=X, y=Y, clip=CLIPS)
    assert stored(file).clips == stored(file).clips
    nameless = saved(tmp_path / "g.npz", x=X, y=Y)
    assert stored(nameless, store="b.sqlite").clips == stored(nameless, store="b.sqlite").clips


def test_other_embeddings_of_the_same_clips_are_another_kind(tmp_path):
    one = {row.clip.sha256 for _, row in read_npz(saved(tmp_path / "f.npz", x=X, y=Y, clip=CLIPS), "vgg16")}
    other = {row.clip.sha256 for _, row in read_npz(saved(tmp_path / "g.npz", x=X[:, :2], y=Y, clip=CLIPS), "clip")}
    assert one == other


def test_a_written_file_is_read_back_whole(tmp_path):
    found = stored(saved(tmp_path / "f.npz", x=X, y=Y, clip=CLIPS))
    write_npz(tmp_path / "out.npz", found)
    again = stored(tmp_path / "out.npz", store="again.sqlite")
    assert again.clips == found.clips
    assert again.x.tobytes() == found.x.tobytes()
    assert (again.labels, again.groups, again.captions) == (found.labels, found.groups, found.captions)
    with np.load(tmp_path / "out.npz", allow_pickle=False) as file:
        assert set(file.files) >= {
            "x",
            "y",
            "clip",
            "group",
            "caption",
            "path",
            "fingerprint",
            "precision",
            "vlm_width",
        }
        assert file["y"].tolist() == [label or "" for label in found.labels]
        assert str(file["fingerprint"]) == found.fingerprint


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": Y}, "no array 'x'"),
        ({"x": X}, "no array 'y'"),
        ({"x": X[0], "y": Y}, r"x is float16\[6\], expected floating point"),
        ({"x": X.astype(np.int64), "y": Y}, "x is int64"),
        ({"x": X[:0], "y": Y[:0]}, r"x is float16\[0, 6\]"),
        ({"x": X, "y": Y[:3]}, r"y is <U5\[3\], expected text \[4\]"),
        ({"x": X, "y": np.arange(4)}, "y is int64"),
        ({"x": X, "y": Y, "clip": CLIPS[:2]}, "clip is"),
        ({"x": X, "y": Y, "group": np.zeros((4, 1), "U1")}, "group is"),
    ],
)
def test_an_invalid_array_is_named(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message):
        read_npz(saved(tmp_path / "f.npz", **arrays), "vgg16")


def test_embeddings_that_are_not_finite_are_refused_with_their_row(tmp_path):
    for bad in (np.nan, np.inf, 1e39):
        x = np.ones((4, 2))
        x[2, 1] = bad
        with pytest.raises(DataError, match="first in row 2") as caught:
            read_npz(saved(tmp_path / "f.npz", x=x, y=Y), "vgg16")
        assert caught.value.code == "not_finite"


def test_a_file_with_python_objects_runs_no_code(tmp_path):
    trap = tmp_path / "trap"

    class Attack:
        def __reduce__(self):
            return Path.touch, (trap,)

    bad = np.array([Attack(), 1, 2, 3], dtype=object)
    file = saved(tmp_path / "f.npz", x=X, y=bad)
    with np.load(file, allow_pickle=True) as opened:
        opened["y"]
    assert trap.exists()  # with pickle allowed it works
    trap.unlink()
    with pytest.raises(DataError, match=r"cannot be read as \.npz") as caught:
        read_npz(file, "vgg16")
    assert "dtype=str" in caught.value.fix
    assert not trap.exists()
    (tmp_path / "p.npz").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(DataError):
        read_npz(tmp_path / "p.npz", "vgg16")
    assert not trap.exists()


def test_files_that_are_not_npz_are_refused(tmp_path):
    (tmp_path / "text.npz").write_text("x,y\n1,2\n")
    (tmp_path / "empty.npz").touch()
    (tmp_path / "zip.npz").write_bytes(b"PK\x03\x04 and nothing more")
    np.save(tmp_path / "one.npy", X)
    for name in ("text.npz", "empty.npz", "zip.npz", "one.npy"):
        with pytest.raises(DataError):
            read_npz(tmp_path / name, "vgg16")
    with pytest.raises(StorageError):
        read_npz(tmp_path / "absent.npz", "vgg16")


def test_an_imported_fingerprint_holds_name_and_width():
    assert imported_fingerprint("vgg16-fc7", 4096) == "imported:vgg16-fc7:4096"
    for name in ("", "VGG16", "a b", "-a", "a" * 65, "ü"):
        with pytest.raises(UsageError):
            imported_fingerprint(name, 2)


# --- segments ---

FILES = np.array(["long.mp4", "long.mp4", "long.mp4", "short.mp4"])
TIMES = {"start_s": np.array([0, 2.5, 10, np.nan]), "end_s": np.array([2.5, 4, 12.125, np.nan])}


def by_name(found):
    rows = zip(found.clips, found.labels, found.groups, found.segments, found.persons, found.cameras, strict=True)
    return dict(zip(found.paths, rows, strict=True))


def test_segments_with_person_and_camera_survive_a_round_trip(tmp_path):
    file = saved(tmp_path / "f.npz", x=X, y=Y, file=FILES, **TIMES, person=np.array([3, 3, 4, 4]), camera=CLIPS)
    found = stored(file)
    assert set(found.paths) == {"long.mp4#t=0,2.5", "long.mp4#t=2.5,4", "long.mp4#t=10,12.125", "short.mp4"}
    assert by_name(found)["long.mp4#t=2.5,4"][1:] == ("wave", "3", Segment.of_seconds(2.5, 4), "3", CLIPS[1])
    write_npz(tmp_path / "out.npz", found)
    again = stored(tmp_path / "out.npz", store="again.sqlite")
    assert by_name(again) == by_name(found)
    assert again.x.tobytes() == found.x.tobytes()
    with np.load(tmp_path / "out.npz", allow_pickle=False) as out:
        whole = out["file"] == "short.mp4"
        assert np.isnan(out["start_s"][whole]).all()
        assert np.isnan(out["end_s"][whole]).all()
        assert sorted(out["start_s"][~whole].tolist()) == [0, 2.5, 10]


def test_extracted_segments_are_the_same_clips_after_a_round_trip(tmp_path):
    part, sha256 = Segment.of_seconds(1, 2), "ab" * 32
    clip = Clip(tmp_path / "a.mp4", clip_identity(sha256, part), "wave", "g", part, sha256, "p", "c")
    with FeatureStore.open(tmp_path / "s.sqlite") as store:
        store.add_rows([("ward/a.mp4#t=1,2", FeatureRow(clip, np.ones(3, "<f4"), 0, "f", "fp32"))])
        write_npz(tmp_path / "out.npz", store.read())
        store.add_rows(read_npz(tmp_path / "out.npz", "mine"))
        one, other = store.read("f"), store.read("imported:mine:3")
    assert by_name(one) == by_name(other)
    assert one.files == ("ward/a.mp4",)


def test_rows_of_one_name_and_other_times_are_other_clips(tmp_path):
    for number, clip in enumerate((np.array(["a.mp4"] * 4), np.array(["cd" * 32] * 4))):
        found = stored(saved(tmp_path / "f.npz", x=X, y=Y, clip=clip, **TIMES), store=f"{number}.sqlite")
        assert len(set(found.clips)) == 4
    assert clip_identity("cd" * 32, Segment.of_seconds(2.5, 4)) in found.clips
    assert "cd" * 32 in found.clips


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ({"start_s": TIMES["start_s"]}, "'start_s' without the other"),
        ({"end_s": TIMES["end_s"]}, "'end_s' without the other"),
        ({**TIMES, "start_s": np.zeros(3)}, r"start_s is float64\[3\]"),
        ({**TIMES, "end_s": np.array(list("abcd"))}, "end_s is <U1"),
        ({**TIMES, "start_s": np.array([0, 2.5, np.nan, np.nan])}, "start_s nan and end_s 12.125 in row 2"),
        ({**TIMES, "start_s": np.array([0, 4, 10, np.nan])}, "start_s 4 and end_s 4 in row 1"),
        ({**TIMES, "start_s": np.array([-1, 2, 10, np.nan])}, "start_s -1 and end_s 2.5 in row 0"),
        ({**TIMES, "end_s": np.array([2.5, 4, np.inf, np.nan])}, "end_s inf in row 2"),
        ({**TIMES, "end_s": np.array([2.5, 2.5000001, 12, np.nan])}, "in row 1"),
        ({**TIMES, "end_s": np.array([2.5, 4, 1e300, np.nan])}, r"end_s 1e\+300 in row 2"),
        ({"person": np.zeros(4)}, r"person is float64\[4\]"),
        ({"file": np.arange(4)}, r"file is int64\[4\]"),
    ],
)
def test_times_that_no_segment_has_are_named_with_their_row(tmp_path, times, message):
    with pytest.raises(DataError, match=message):
        read_npz(saved(tmp_path / "f.npz", x=X, y=Y, **times), "vgg16")
