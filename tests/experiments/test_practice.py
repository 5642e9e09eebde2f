"""The practice folder of the quick starts: what is in it, with and without PyAV."""

from __future__ import annotations

import csv
import importlib.util
from collections import Counter

import av
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
    held = ["bundle", "corridor.csv", "labels.txt", "new", "recording", "ward-7", "ward-8"]
    assert sorted(entry.name for entry in folder.iterdir()) == held
    assert [clip.label for clip in find_clips(folder / "recording")] == [None]
    check_recording(folder)
    (folder / "ward-7" / "agent.toml").touch()  # the reader's own work stays
    assert not make_practice(folder).written
    assert (folder / "ward-7" / "agent.toml").exists()


def check_recording(folder):
    """The table of the recording's segments names every class, and covers all frames once."""
    with (folder / "corridor.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["video"] for row in rows} == {"corridor.mp4"}
    assert Counter(row["label"] for row in rows) == dict.fromkeys(LABELS, 4)
    assert [row["start"] for row in rows] == ["0", *(row["end"] for row in rows[:-1])]
    with av.open(str(folder / "recording" / "corridor.mp4")) as container:
        stream = container.streams.video[0]
        assert float(rows[-1]["end"]) == pytest.approx(stream.frames / float(stream.average_rate), abs=1e-5)


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
