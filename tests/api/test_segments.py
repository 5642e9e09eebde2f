"""Clips that are segments of recordings, in the Python API."""

from __future__ import annotations

from pathlib import Path

import flamest as fl
import numpy as np
import pytest
from flamest.agent.extraction.store import FeatureRow, FeatureStore
from flamest.base.files import sha256_bytes
from flamest.runtime.clip_records import Clip, clip_identity

RECORDINGS, EACH, WIDTH = 10, 6, 8


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten recordings of six segments that overlap by a second, with the recording as group, and five whole files."""
    path = tmp_path_factory.mktemp("segments") / "features.sqlite"
    random = np.random.default_rng(0)
    rows = []
    for number in range(RECORDINGS):
        file = sha256_bytes(f"night-{number}".encode())
        for part in range(EACH):
            segment = fl.Segment.of_seconds(4 * part, 4 * part + 5)
            name, group = f"night-{number}.mp4", f"night-{number}"
            clip = Clip(Path(name), clip_identity(file, segment), "ab"[part % 2], group, segment, file)
            rows.append((f"{name}#{segment}", clip))
    for number in range(5):
        name = f"whole-{number}.mp4"
        rows.append((name, Clip(Path(name), sha256_bytes(name.encode()), "ab"[number % 2], name)))
    with FeatureStore.open(path) as opened:
        opened.add_rows(
            (name, FeatureRow(clip, random.normal(size=WIDTH).astype(np.float32), 0, f"imported:x:{WIDTH}", "fp32"))
            for name, clip in rows
        )
    return path


def test_features_name_files_and_segments(store):
    f = fl.load(store)
    one = f[[row for row, path in enumerate(f.paths) if path == "night-3.mp4#t=4,9"]]
    assert (one.files, one.segments, one.groups) == (
        ("night-3.mp4",),
        (fl.Segment(4_000_000, 9_000_000),),
        ("night-3",),
    )
    assert sorted(path for path in f.paths if "#" not in path) == [f"whole-{number}.mp4" for number in range(5)]


@pytest.mark.parametrize("partition", ["dirichlet", "iid", "label-skew"])
def test_no_recording_is_in_two_silos_or_in_the_test_too(store, partition):
    f = fl.load(store)
    skew = fl.LabelSkew(most_silos=2) if partition == "label-skew" else partition
    silos, test = fl.split(f, silos=2, seed=1, partition=skew)
    parts = [set(part.files) for part in (*silos.values(), test)]
    assert all(parts)
    assert sum(map(len, parts)) == len(set().union(*parts))


def test_segments_that_share_frames_are_not_divided_by_groups(store, tmp_path):
    f = fl.load(store)
    apart = fl.Features(**{**vars(f), "groups": f.clips})  # every segment a group of its own
    silos, test = fl.split(apart, silos=2, seed=1)
    assert not set(silos.union.files) & set(test.files)


def test_segments_are_kept_through_union_and_indexing(store):
    f = fl.load(store)
    silos, _ = fl.split(f, silos=2, seed=0)
    assert sorted(silos.union.paths) == sorted(path for silo in silos.values() for path in silo.paths)
    assert f[:7].segments == f.segments[:7]


def test_a_saved_file_keeps_recordings_and_segments(store, tmp_path):
    f = fl.load(store)
    f.save(tmp_path / "f.npz")
    read = fl.load(tmp_path / "f.npz")
    assert (read.files, read.segments, read.paths) == (f.files, f.segments, f.paths)
    assert (read.clips, read.groups) == (f.clips, f.groups)


def test_features_of_arrays_have_no_files(features):
    assert set(features.files) == {""}
    assert set(features.segments) == {None}
    assert set(features.paths) == {""}
