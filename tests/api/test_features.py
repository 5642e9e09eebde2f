"""Features: from arrays, stores and .npz files, and parts of them."""

from __future__ import annotations

import flamest as fl
import numpy as np
import pytest
from flamest.agent.extraction.npz import write_npz
from flamest.agent.extraction.store import FeatureStore


def same(one: fl.Features, other: fl.Features) -> bool:
    texts = ("labels", "groups", "fingerprint", "precision", "vlm_width", "clips", "captions")
    equal = all(getattr(one, name) == getattr(other, name) for name in texts)
    return equal and np.array_equal(one.x, other.x) and np.array_equal(one.y, other.y)


def test_arrays_become_numbered_classes_in_alphabetical_order():
    f = fl.Features.from_arrays([[1.0, 2], [3, 4], [5, 6]], ["walk", "fall", ""], groups=[7, 7, 8])
    assert f.labels == ("fall", "walk")
    assert f.y.tolist() == [1, 0, -1]
    assert f.names == ["walk", "fall", ""]
    assert f.groups == ("7", "7", "8")
    assert f.x.dtype == np.float32
    assert f.fingerprint == "imported:features:2"
    assert f.counts() == {"fall": 1, "walk": 1}
    assert len(f) == 3


def test_classes_may_be_numbers_and_clips_are_their_own_groups():
    f = fl.Features.from_arrays(np.eye(3), [2, 0, 2])
    assert f.labels == ("0", "2")
    assert len(set(f.groups)) == 3


@pytest.mark.parametrize(
    ("x", "y", "groups", "message"),
    [
        ([1.0, 2.0], ["a", "b"], None, r"x has the shape \[2\], expected \[clips, width\]"),
        ([[1.0], [np.nan]], ["a", "b"], None, "x holds NaN or infinity"),
        ([[1.0], [2.0]], ["a"], None, r"y has the shape \[1\], expected \[2\]"),
        ([[1.0], [2.0]], ["a", "b"], ["g"], r"groups has the shape \[1\], expected \[2\]"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(x, y, groups, message):
    with pytest.raises(fl.FlamestError, match=message):
        fl.Features.from_arrays(x, y, groups=groups)


def test_features_are_indexed_by_rows_masks_and_slices(features):
    assert same(features[[1, 2]], features[1:3])
    mask = np.zeros(len(features), bool)
    mask[1:3] = True
    assert same(features[mask], features[1:3])
    assert features[features.y == 3].counts()["class-3"] == 40
    with pytest.raises(fl.FlamestError, match="rows of features: index 1000"):
        features[[1000]]
    with pytest.raises(fl.FlamestError, match="a slice, row numbers or a mask"):
        features[np.zeros((2, 2), int)]


def test_a_saved_file_loads_as_it_was(features, tmp_path):
    features.save(tmp_path / "f.npz")
    assert same(fl.load(tmp_path / "f.npz"), features)


def test_store_and_npz_of_it_give_the_same_features(extracted, tmp_path):
    f, store = extracted
    with FeatureStore.open(store, create=False, read_only=True) as opened:
        write_npz(tmp_path / "f.npz", opened.read())
    assert same(fl.load(store), f)
    assert same(fl.load(str(tmp_path / "f.npz")), f)
    assert (f.width, f.vlm_width, f.precision) == (384, 128, "fp32")
    assert f.fingerprint == fl.open_bundle().fingerprint
    assert f.labels == ("ball_crossing", "ball_lifting", "box_crossing", "box_lifting")
    assert all(f.captions)


def test_aliases_call_a_silos_labels_by_the_runs_classes(extracted, tmp_path):
    f, store = extracted
    f.save(tmp_path / "f.npz")
    words = {"ball_crossing": "crossing", "box_crossing": "crossing"}
    for path in (store, tmp_path / "f.npz"):
        called = fl.load(path, aliases=words)
        assert called.labels == ("ball_lifting", "box_lifting", "crossing")
        assert called.names == [words.get(name, name) for name in f.names]
    for wrong in ({"a": 1}, ["a"], {"a": "b", "b": "c"}):
        with pytest.raises(fl.FlamestError, match="aliases"):
            fl.load(store, aliases=wrong)


def test_a_researchers_own_npz_needs_x_and_y_only(tmp_path):
    np.savez(tmp_path / "mine.npz", x=np.eye(4), y=np.array(["b", "a", "a", ""]))
    f = fl.load(tmp_path / "mine.npz")
    assert f.labels == ("a", "b")
    assert f.y.tolist() == [1, 0, 0, -1]
    assert f.fingerprint == "imported:features:4"


def test_the_parts_of_an_embedding_are_features_of_their_own_kind(extracted, features):
    f, _ = extracted
    assert np.array_equal(np.concatenate([f.vlm.x, f.cnn.x], axis=1), f.x)
    assert len({f.fingerprint, f.vlm.fingerprint, f.cnn.fingerprint}) == 3
    with pytest.raises(fl.FlamestError, match="the parts of these embeddings are not known"):
        features.vlm  # noqa: B018


def test_a_path_without_features_is_an_error_with_a_fix(tmp_path):
    with pytest.raises(fl.FlamestError, match="there is no feature store") as raised:
        fl.load(tmp_path / "none.sqlite")
    assert "flamest-agent extract" in raised.value.fix
    with pytest.raises(fl.FlamestError, match="is a folder") as raised:
        fl.load(tmp_path)
    assert "fl.open_bundle" in raised.value.fix


def test_features_say_what_they_hold(features, extracted):
    assert repr(features) == (
        "Features: 200 clips of 5 classes, 20 groups, 24-d embeddings, fp32, of imported:features:24"
    )
    assert repr(features[:1]).startswith("Features: 1 clip of 1 class, 1 group, ")
    assert "384-d embeddings (128 + 256)" in repr(extracted[0])


def test_the_features_that_come_along_load_by_their_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    f = fl.load("miniworld")
    assert (len(f), len(f.labels), len(set(f.groups)), f.vlm_width) == (300, 25, 12, 128)
    assert f.fingerprint == fl.open_bundle("miniworld").fingerprint
    f[:5].save("miniworld.npz")
    (tmp_path / "miniworld.npz").rename("miniworld")
    assert len(fl.load("miniworld")) == 5  # a file of that name comes first, and its first bytes say what it is


@pytest.mark.parametrize(
    ("content", "message", "fix"),
    [
        (b"\x93NUMPY\x01\x00", r"a single array \(\.npy\)", "fl.Features.from_arrays(numpy.load"),
        ((80).to_bytes(8, "little") + b'{"__metadata__"', r"a model \(\.safetensors\)", "fl.load_model"),
        (b"name,label\n", "neither a feature store nor an .npz file", "one of those"),
    ],
)
def test_a_file_of_another_kind_is_called_by_its_name(tmp_path, content, message, fix):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(fl.FlamestError, match=message) as raised:
        fl.load(tmp_path / "file")
    assert fix in raised.value.fix
    assert "backup" not in raised.value.fix


@pytest.mark.parametrize("name", ["groups", "clips", "captions"])
def test_an_array_of_a_misspelt_name_is_refused(tmp_path, name):
    np.savez(tmp_path / "mine.npz", x=np.eye(2), y=np.array(["a", "b"]), **{name: np.array(["g", "g"])})
    with pytest.raises(fl.FlamestError, match=f"holds an array '{name}', which is not read: it is called"):
        fl.load(tmp_path / "mine.npz")


def test_the_kind_that_is_asked_for_has_to_be_in_the_file(features, tmp_path):
    features.save(tmp_path / "f.npz")
    assert len(fl.load(tmp_path / "f.npz", fingerprint="imported:", precision="fp32")) == 200
    for wrong in ({"fingerprint": "sha256"}, {"precision": "fp16"}):
        with pytest.raises(fl.FlamestError, match="it has imported:features:24, fp32") as raised:
            fl.load(tmp_path / "f.npz", **wrong)
        assert raised.value.code == "no_such_features"
