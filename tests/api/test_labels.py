"""Labels of other tools, through the Python API."""

from __future__ import annotations

from pathlib import Path

import flamest as fl
import pytest
from flamest.experiments.miniworld.videos import ClipKey, render_recording

CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><source>night.mp4</source></task></meta>
<track id="0" label="ball_lifting"><box frame="0" outside="0"/><box frame="{cut}" outside="1"/></track>
<track id="1" label="box_crossing"><box frame="{cut}" outside="0"/><box frame="{cut2}" outside="1"/></track>
<track id="2" label="box_crossing"><box frame="90000" outside="0"/></track>
</annotations>
"""


@pytest.fixture
def exported(tmp_path: Path) -> tuple[Path, tuple[tuple[str, fl.Segment], ...]]:
    """``annotations.xml`` of CVAT with two clips of ``videos/night.mp4`` and one after its end."""
    (tmp_path / "videos").mkdir()
    keys = [ClipKey(3, 0, *what, 0) for what in (("ball", "lifting"), ("box", "crossing"))]
    parts = render_recording(tmp_path / "videos" / "night.mp4", keys)
    frames = [keys[0].spec().frames, sum(key.spec().frames for key in keys) - 1]
    (tmp_path / "annotations.xml").write_text(CVAT.format(cut=frames[0], cut2=frames[1]))
    return tmp_path, parts


def test_cvats_tracks_become_clips_with_features(exported):
    folder, parts = exported
    done = fl.import_labels(folder / "annotations.xml", videos=folder / "videos")
    assert done.written
    assert {label: states["new"] for label, states in done.classes.items()} == {"ball_lifting": 1, "box_crossing": 1}
    (problem,) = done.problems
    assert "90000" in problem.reason + problem.where
    assert str(done).startswith("Labels: 2 rows written to labels.csv\nball_lifting: 1 new\nbox_crossing: 1 new\n")
    f = fl.open_bundle().extract(folder / "videos", threads=1, progress=False)
    assert sorted(f.names) == ["ball_lifting", "box_crossing"]
    assert set(f.files) == {"night.mp4"}
    assert parts[0][1] in f.segments
    model = fl.train(f, rounds=2, hidden=(4,), progress=False).model
    predicted = fl.predict(folder / "videos", model=model, bundle="miniworld", segments=True, progress=False)
    assert sorted(each.name for each in predicted) == sorted(str(folder / "videos" / path) for path in f.paths)
    assert all(each.labels for each in predicted)
    again = fl.import_labels([folder / "annotations.xml"], videos=folder / "videos", format="cvat")
    assert not again.written
    assert all(states["equal"] == 1 for states in again.classes.values())


def test_a_trial_writes_nothing(exported):
    folder, _ = exported
    done = fl.import_labels(folder / "annotations.xml", videos=str(folder / "videos"), dry_run=True)
    assert not done.written
    assert [entry.name for entry in (folder / "videos").iterdir()] == ["night.mp4"]


def test_wrong_arguments_are_named(exported):
    folder, _ = exported
    for words, wrong in (
        ("there is no format", {"format": "coco"}),
        ("fps is 'x'", {"fps": "x"}),
        ("videos is 3", {"videos": 3}),
    ):
        with pytest.raises(fl.FlamestError, match=words):
            fl.import_labels(folder / "annotations.xml", **{"videos": folder / "videos", **wrong})
    with pytest.raises(fl.FlamestError) as raised:
        fl.import_labels(folder / "videos" / "night.mp4", videos=folder / "videos")
    assert raised.value.code == "annotations_format"
