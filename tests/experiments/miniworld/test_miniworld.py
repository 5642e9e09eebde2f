"""The mini-world: files, captions, and properties that may not depend on the class."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import av
import numpy as np
import pytest
from flamest.base.errors import StorageError, UsageError
from flamest.experiments.metadata import metadata_accuracy
from flamest.experiments.miniworld.specs import (
    MOTIONS,
    OBJECTS,
    caption_frame,
    caption_nouns,
    class_captions,
    sample_clip,
    sample_scene,
)
from flamest.experiments.miniworld.videos import CLASSES, ClipKey, clip_keys, render_dataset
from flamest.experiments.silos import LabelledVideo
from flamest.export.weights.vocabulary import small_vocabulary

GROUPS = 3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("miniworld") / "clips"
    render_dataset(folder, groups=GROUPS, seed=5)
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def digests(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_processes(world: Path, tmp_path: Path) -> None:
    some = {"objects": OBJECTS[:2], "motions": MOTIONS[:2]}
    render_dataset(tmp_path / "one", groups=2, seed=5, processes=1, **some)
    render_dataset(tmp_path / "two", groups=2, seed=5, processes=2, **some)
    render_dataset(tmp_path / "other", groups=2, seed=6, processes=1, **some)
    one, two, other, whole = (digests(path) for path in (tmp_path / "one", tmp_path / "two", tmp_path / "other", world))
    assert one == two
    clips = [name for name in one if name.endswith(".mp4")]
    assert len(clips) == 8
    assert all(one[name] == whole[name] for name in clips)  # a clip does not depend on the others
    assert not any(one[name] == other[name] for name in clips)


def test_every_class_has_one_clip_in_every_group(world: Path) -> None:
    labels = rows(world / "labels.csv")
    assert len({row["path"] for row in labels}) == len(labels) == len(CLASSES) * GROUPS
    assert {(row["label"], row["group"]) for row in labels} == {
        (label, f"g{group:02d}") for label in CLASSES for group in range(GROUPS)
    }
    for row in labels:
        assert row["path"].startswith(f"{row['label']}/{row['group']}_c")
        assert (world / row["path"]).is_file()


def test_headers_are_the_same_within_a_group(world: Path) -> None:
    headers: dict[str, set[tuple[object, ...]]] = {}
    for row in rows(world / "labels.csv"):
        with av.open(str(world / row["path"])) as container:
            stream = container.streams.video[0]
            header = (stream.width, stream.height, stream.average_rate, stream.codec_context.name)
        headers.setdefault(row["group"], set()).add(header)
    assert all(len(found) == 1 for found in headers.values())
    assert all(240 <= width <= 320 for found in headers.values() for width, *_ in found)


def test_both_codecs_occur() -> None:
    assert {sample_scene(0, group).codec for group in range(30)} == {"libx264", "mpeg4"}


def test_metadata_hardly_predicts_the_class(world: Path) -> None:
    labels = rows(world / "labels.csv")
    train = [row for row in labels if row["group"] != "g02"]
    test = [row for row in labels if row["group"] == "g02"]
    sides = [[LabelledVideo(world / row["path"], row["label"], row["group"]) for row in side] for side in (train, test)]
    assert metadata_accuracy(*sides) <= 0.2  # 0.04 by chance


def test_every_clip_has_eight_true_captions(world: Path) -> None:
    captions = rows(world / "captions.csv")
    assert len(captions) == 8 * len(CLASSES) * GROUPS
    words = set(small_vocabulary())
    for row in captions:
        kind, motion = row["path"].split("/")[0].split("_")
        actor, other = caption_nouns(row["caption"])
        assert actor == kind != other
        assert not set(row["caption"].split()) & set(MOTIONS), motion
        assert set(row["caption"].split()) <= words


def test_caption_says_where_the_actor_is() -> None:
    for key in clip_keys(groups=1, seed=3):
        spec = key.spec()
        for frame in (0, spec.frames - 1):
            x = spec.actor.x[frame] - spec.other.x[frame]
            caption = caption_frame(spec, frame)
            assert not (" left of " in caption and x >= 0), caption
            assert not (" right of " in caption and x <= 0), caption


def test_every_class_has_a_fixed_caption() -> None:
    assert set(class_captions()) == set(CLASSES)
    assert set(" ".join(class_captions().values()).split()) <= set(small_vocabulary())


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_motion_has_the_shape_of_its_name(motion: str) -> None:
    for number in range(8):
        actor = sample_clip(1, number, "ball", motion, 0).actor
        x, y, growth = np.ptp(actor.x), np.ptp(actor.y), actor.radius.max() / actor.radius.min()
        assert (growth > 1.5) == (motion == "approaching")
        turns = int((np.diff(np.sign(np.diff(actor.x))) != 0).sum())
        if motion == "crossing":
            assert x > 0.5 > 0.1 > y
        elif motion == "lifting":
            assert y > 0.4 > 0.1 > x
        elif motion == "approaching":
            assert max(x, y) < 0.1
        else:
            assert turns >= 1
            assert (y > 0.25) or motion == "swinging"


def test_colour_and_distractor_vary_within_a_class() -> None:
    specs = [sample_clip(0, group, kind, motion, 0) for group in range(12) for kind in OBJECTS for motion in MOTIONS]
    for label in CLASSES:
        assert len({spec.actor.colour for spec in specs if spec.label == label}) >= 3
        assert len({spec.other.kind for spec in specs if spec.label == label}) >= 3


def test_a_folder_with_files_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(StorageError, match="not empty"):
        render_dataset(tmp_path, groups=1, seed=0, objects=OBJECTS[:1], motions=MOTIONS[:1], processes=1)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("wrong", [{"groups": 0}, {"processes": 0}, {"objects": ("cat",)}, {"motions": ()}])
def test_impossible_arguments_are_refused_before_rendering(wrong: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"at least 1|mini-world knows"):
        render_dataset(tmp_path / "d", **{"groups": 1, "seed": 0, **wrong})  # type: ignore[arg-type]
    assert not (tmp_path / "d").exists()


def test_progress_advances_once_per_clip(tmp_path: Path) -> None:
    class Steps:
        taken = 0

        def advance(self, steps: int = 1) -> None:
            self.taken += steps

        def describe(self, text: str) -> None: ...

    steps = Steps()
    some = {"objects": OBJECTS[:2], "motions": MOTIONS[:1]}
    render_dataset(tmp_path / "c", groups=2, seed=0, processes=1, progress=steps, **some)
    assert steps.taken == 4


def test_a_key_names_its_file() -> None:
    key = ClipKey(seed=0, group=3, kind="ring", motion="swinging", number=1)
    assert (key.path, key.label) == ("ring_swinging/g03_c01.mp4", "ring_swinging")
