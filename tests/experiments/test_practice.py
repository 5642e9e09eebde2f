"""The practice folder of the quick starts: what is in it, with and without PyAV."""

from __future__ import annotations

import importlib.util

import pytest
from flamest.agent.extraction.clips import find_clips
from flamest.base.errors import StorageError
from flamest.experiments.practice import KEYS, LABELS, make_practice
from flamest.runtime.bundle.manifest_reading import read_manifest


def test_a_practice_folder_has_bundle_names_and_clips(tmp_path):
    folder = tmp_path / "practice"
    made = make_practice(folder)
    assert made.written
    assert made.clips == {"ward-7": 54, "ward-8": 54, "new": 12}
    assert sum(made.clips.values()) == len(KEYS)
    assert read_manifest(folder / "bundle").width == 384
    assert tuple((folder / "labels.txt").read_text().splitlines()) == LABELS
    groups = {}
    for silo in ("ward-7", "ward-8"):
        found = find_clips(folder / silo / "videos")
        assert {clip.label for clip in found} == set(LABELS)
        groups[silo] = {clip.group for clip in found}
    assert not groups["ward-7"] & groups["ward-8"]
    assert {file.name.partition("-")[0] for file in (folder / "new").iterdir()} == set(LABELS)
    assert sorted(entry.name for entry in folder.iterdir()) == ["bundle", "labels.txt", "new", "ward-7", "ward-8"]
    (folder / "ward-7" / "agent.toml").touch()  # the reader's own work stays
    assert not make_practice(folder).written
    assert (folder / "ward-7" / "agent.toml").exists()


def test_without_pyav_a_practice_folder_has_no_clips(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "av" else found(name, *rest))
    made = make_practice(tmp_path / "practice")
    assert made.written
    assert made.clips == {}
    assert sorted(entry.name for entry in made.folder.iterdir()) == ["bundle", "labels.txt"]


def test_another_folder_is_not_filled_with_practice_files(tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(StorageError, match="not empty"):
        make_practice(tmp_path)
