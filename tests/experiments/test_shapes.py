"""The mini-world's video files."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest
from flamest.base.errors import StorageError, UsageError
from flamest.experiments.shape_frames import FRAME_SIZES, MOTIONS, OBJECTS, draw_clip, draw_scene
from flamest.experiments.shapes import CLASSES, ShapeClip, render_dataset

GROUPS, PER_CLASS = 3, 2


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[ShapeClip]:
    folder = tmp_path_factory.mktemp("shapes") / "clips"
    return render_dataset(folder, groups=GROUPS, clips_per_class_and_group=PER_CLASS, seed=5)


@pytest.fixture(scope="module")
def tracks(clips: list[ShapeClip]) -> dict[ShapeClip, np.ndarray]:
    """What ``track`` sees in every clip; decoded once."""
    return {clip: track(clip.path) for clip in clips}


def frames_of(path: Path) -> np.ndarray:
    """uint8 [T, H, W, 3]"""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def track(path: Path) -> np.ndarray:
    """float64 [T, 3]: where the coloured object is (x, y, as shares of the frame) and its share of the area."""
    red, green, blue = np.moveaxis(frames_of(path), -1, 0)
    vivid = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue) > 60
    _, height, width = vivid.shape
    x = (vivid.sum(axis=1) * np.arange(width)).sum(axis=1) / width
    y = (vivid.sum(axis=2) * np.arange(height)).sum(axis=1) / height
    count = vivid.sum(axis=(1, 2))
    return np.stack([x / count, y / count, count / (width * height)], axis=1)


def headers(clips: Sequence[ShapeClip]) -> list[tuple[str, int, int, float, int]]:
    rows = []
    for clip in clips:
        with av.open(str(clip.path)) as container:
            stream = container.streams.video[0]
            rows.append((clip.group, stream.width, stream.height, float(stream.average_rate or 0), stream.frames))
    return rows


def test_every_class_and_scene_has_its_clips(clips: list[ShapeClip]) -> None:
    assert len(CLASSES) >= 6
    found = [(clip.label, clip.group) for clip in clips]
    assert len(found) == len(CLASSES) * GROUPS * PER_CLASS
    assert {found.count((label, f"scene-{g:02d}")) for label in CLASSES for g in range(GROUPS)} == {PER_CLASS}
    assert len({clip.path for clip in clips}) == len(clips)
    assert all(clip.path.is_file() and clip.path.parent.name == clip.label for clip in clips)


def test_every_class_differs_from_another_by_its_motion_only() -> None:
    assert sorted(CLASSES) == sorted(f"{thing}-{motion}" for thing in OBJECTS for motion in MOTIONS)


def test_labels_csv_names_the_same_clips(clips: list[ShapeClip]) -> None:
    folder = clips[0].path.parents[1]
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as file:
        rows = [ShapeClip(folder / row["path"], row["label"], row["group"]) for row in csv.DictReader(file)]
    assert rows == clips


def test_clips_are_short_h264_films_in_yuv420p(clips: list[ShapeClip]) -> None:
    for clip in clips[::7]:
        with av.open(str(clip.path)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
            assert (stream.width, stream.height) in FRAME_SIZES
            assert 15 <= float(stream.average_rate or 0) <= 30
            count = sum(1 for _ in container.decode(video=0))
            assert 1.4 <= count / float(stream.average_rate or 0) <= 3.1


def test_header_of_a_clip_depends_on_its_scene_and_not_on_its_class(clips: list[ShapeClip]) -> None:
    found = set(headers(clips))
    assert len(found) == GROUPS
    assert len({row[1:] for row in found}) == GROUPS


def test_object_that_goes_sideways_sweeps_the_width_at_one_height(tracks: dict[ShapeClip, np.ndarray]) -> None:
    for clip in (clip for clip in tracks if clip.label.endswith("sideways")):
        x, y, _ = np.ptp(tracks[clip], axis=0)
        assert x > 0.5, clip
        assert y < 0.06, clip


def test_object_that_approaches_grows_and_stays_where_it_is(tracks: dict[ShapeClip, np.ndarray]) -> None:
    for clip in (clip for clip in tracks if clip.label.endswith("approaching")):
        path = tracks[clip]
        assert path[:, 2].max() > 6 * path[:, 2].min(), clip
        assert np.ptp(path[:, :2], axis=0).max() < 0.12, clip


def test_object_is_large_and_stands_out(tracks: dict[ShapeClip, np.ndarray]) -> None:
    for clip, path in tracks.items():
        area = path[:, 2]
        assert area.max() > 0.07, clip
        assert area.min() > 0.005, clip


def test_clips_of_one_class_and_scene_differ(clips: list[ShapeClip], tracks: dict[ShapeClip, np.ndarray]) -> None:
    for first, second in zip(clips[::2], clips[1::2], strict=True):
        assert (first.label, first.group) == (second.label, second.group)
        assert np.abs(tracks[first] - tracks[second]).mean() > 0.01


@pytest.mark.parametrize("thing", OBJECTS)
@pytest.mark.parametrize("motion", MOTIONS)
def test_frames_of_any_draw_fit_their_scene(thing: str, motion: str) -> None:
    for seed in range(6):
        random = np.random.default_rng(seed)
        scene = draw_scene(random)
        frames = list(draw_clip(scene, thing, motion, random))
        assert len(frames) == scene.frames
        assert {(frame.shape, frame.dtype) for frame in frames} == {((scene.height, scene.width, 3), np.dtype("uint8"))}


def test_same_seed_gives_the_same_bytes_however_many_processes_render(clips: list[ShapeClip], tmp_path: Path) -> None:
    again = render_dataset(tmp_path / "a", groups=1, clips_per_class_and_group=1, seed=5, workers=1)
    other = render_dataset(tmp_path / "b", groups=1, clips_per_class_and_group=1, seed=6, workers=2)
    first = {clip.path.name: clip.path.read_bytes() for clip in clips}
    assert all(first[clip.path.name] == clip.path.read_bytes() for clip in again)
    assert not any(first[clip.path.name] == clip.path.read_bytes() for clip in other)


def test_progress_advances_once_per_clip(tmp_path: Path) -> None:
    class Steps:
        taken = 0

        def advance(self, steps: int = 1) -> None:
            self.taken += steps

        def describe(self, text: str) -> None: ...

    steps = Steps()
    made = render_dataset(tmp_path / "c", groups=1, clips_per_class_and_group=1, seed=0, progress=steps)
    assert steps.taken == len(made) == len(CLASSES)


def test_folder_with_files_in_it_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(StorageError, match="not empty"):
        render_dataset(tmp_path, groups=1, clips_per_class_and_group=1, seed=0)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("wrong", [{"groups": 0}, {"clips_per_class_and_group": 0}, {"workers": -1}])
def test_counts_below_one_are_refused(wrong: dict[str, int], tmp_path: Path) -> None:
    asked = {"groups": 1, "clips_per_class_and_group": 1, "workers": 1, **wrong}
    with pytest.raises(UsageError, match="at least 1 of each"):
        render_dataset(tmp_path / "d", seed=0, **asked)
    assert not (tmp_path / "d").exists()
