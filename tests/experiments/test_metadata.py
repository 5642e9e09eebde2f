"""The metadata-only baseline, which reads file headers."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from flamest.base.errors import DataError, StorageError
from flamest.experiments.metadata import metadata_accuracy, metadata_features
from flamest.experiments.miniworld.videos import CLASSES, render_dataset
from flamest.experiments.silos import LabelledVideo, labelled_videos
from flamest.runtime.clip_records import Segment


def write_video(path: Path, *, width: int = 64, height: int = 48, frames: int = 12, fps: int = 10) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for level in range(frames):
            picture = np.full((height, width, 3), level, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def labelled(files: list[Path], labels: list[str]) -> list[LabelledVideo]:
    return [LabelledVideo(path, label, path.stem) for path, label in zip(files, labels, strict=True)]


@pytest.mark.parametrize("kind", ["mp4", "avi", "mkv"])
def test_columns_are_size_length_rate_and_bytes(kind: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / f"x.{kind}", width=96, height=64, frames=15, fps=10)
    rows = metadata_features([path])
    assert rows.dtype == np.float64
    assert rows[0] == pytest.approx([96, 64, 1.5, 10, path.stat().st_size])


def test_no_files_give_an_empty_table() -> None:
    assert metadata_features([]).shape == (0, 5)


def test_a_file_that_is_not_a_video_has_only_its_bytes(tmp_path: Path) -> None:
    empty, text, cut = tmp_path / "a.mp4", tmp_path / "b.mp4", tmp_path / "c.mp4"
    empty.touch()
    text.write_text("no video at all")
    cut.write_bytes(write_video(tmp_path / "x.mp4").read_bytes()[:200])
    expected = [[0, 0, 0, 0, 0], [0, 0, 0, 0, 15], [0, 0, 0, 0, 200]]
    assert metadata_features([empty, text, cut]).tolist() == expected


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    write_video(tmp_path / "secret.mp4")
    trap = tmp_path / "trap.mp4"
    trap.write_text("ffconcat version 1.0\nfile secret.mp4\n")
    assert metadata_features([trap])[0, :4].tolist() == [0, 0, 0, 0]


def test_a_segment_has_its_own_length_and_share_of_the_bytes(tmp_path: Path) -> None:
    path = write_video(tmp_path / "x.avi", frames=40, fps=10)
    size = path.stat().st_size
    rows = metadata_features([path] * 3, [None, Segment.of_seconds(1, 2), Segment.of_seconds(3, 99)])
    assert rows[:, 2].tolist() == [4, 1, 1]
    assert rows[:, 4].tolist() == [size, size / 4, size / 4]


def test_a_missing_file_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot read"):
        metadata_features([tmp_path / "absent.mp4"])


def test_only_classes_that_differ_in_length_are_predicted(tmp_path: Path) -> None:
    short = [write_video(tmp_path / f"s{n}.avi", frames=4 + n % 3) for n in range(8)]
    long = [write_video(tmp_path / f"l{n}.avi", frames=20 + n % 3) for n in range(8)]
    labels = ["short"] * 4 + ["long"] * 4
    apart = metadata_accuracy(labelled(short[:4] + long[:4], labels), labelled(short[4:] + long[4:], labels))
    assert apart == 1.0
    alike = [write_video(tmp_path / f"m{n}.avi") for n in range(8)]
    assert metadata_accuracy(labelled(alike[:4], ["a", "b"] * 2), labelled(alike[4:], ["a", "b"] * 2)) == 0.5


def test_same_seed_gives_the_same_accuracy(tmp_path: Path) -> None:
    files = [write_video(tmp_path / f"{n}.avi", frames=3 + 2 * (n % 7)) for n in range(16)]
    labels = [str(n * n % 3) for n in range(16)]
    train, test = labelled(files[:10], labels[:10]), labelled(files[10:], labels[10:])
    first, again = (metadata_accuracy(train, test, seed=3) for _ in range(2))
    assert first == again


def test_a_side_without_clips_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 training and 0 test clips"):
        metadata_accuracy(labelled([write_video(tmp_path / "x.mp4")], ["a"]), [])


def test_the_mini_worlds_headers_hardly_predict_its_classes(tmp_path: Path) -> None:
    render_dataset(tmp_path / "clips", groups=6, seed=1, processes=1)
    clips = labelled_videos(tmp_path / "clips")
    train = [clip for clip in clips if clip.group < "g03"]
    test = [clip for clip in clips if clip.group >= "g03"]
    assert metadata_accuracy(train, test) < 2.2 / len(CLASSES)
