"""Small pictures of a clip's frames."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
from flamest.base.errors import DataError
from flamest.experiments.report.video_frames import frames_at, keyframe_strip
from flamest.runtime.bundle.manifest import FramePreprocessing, KeyframeRule
from flamest.runtime.clip_records import Segment
from PIL import Image

GREY = FramePreprocessing(size=32, fit="crop", filter="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
RULE = KeyframeRule(count=8, candidates=16, preprocessing=GREY, feature_width=4, space="test")


def write_video(path: Path, frames: int) -> Path:
    """Frames that brighten from black to white, 96 x 64 pixels."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for level in np.linspace(0, 255, frames):
            picture = np.full((64, 96, 3), level, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def brightness(jpeg: bytes) -> float:
    return float(np.asarray(Image.open(io.BytesIO(jpeg)).convert("L")).mean())


def test_the_strip_spans_the_whole_clip(tmp_path: Path) -> None:
    strip = keyframe_strip(write_video(tmp_path / "x.mp4", 30), RULE, pictures=5, height=32)
    levels = [brightness(picture) for picture in strip]
    assert len(strip) == 5
    assert levels == sorted(levels)
    assert levels[0] < 50
    assert levels[-1] > 205
    assert {Image.open(io.BytesIO(picture)).size for picture in strip} == {(48, 32)}


def test_a_short_clip_has_a_picture_per_frame(tmp_path: Path) -> None:
    assert len(keyframe_strip(write_video(tmp_path / "x.mp4", 3), RULE)) == 3


def test_a_file_that_is_not_a_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_text("no video")
    with pytest.raises(DataError):
        keyframe_strip(tmp_path / "x.mp4", RULE)


def levels_at(video: Path, times_s: list[float], segment: Segment | None = None) -> list[int]:
    return [round(brightness(picture)) for picture in frames_at(video, times_s, segment=segment)]


@pytest.mark.parametrize("kind", ["mp4", "avi", "mkv"])
def test_pictures_are_of_the_frames_at_the_times(tmp_path: Path, kind: str) -> None:
    """Frame n of 30 has the grey level 255 n / 29, and is shown at n / 10 seconds."""
    video = write_video(tmp_path / f"x.{kind}", 30)
    found = levels_at(video, [2.9, 0.0, 1.2])  # in time order whatever the order asked
    assert np.allclose(found, [0, 12 * 255 / 29, 255], atol=3)
    inside = levels_at(video, [0.0, 0.5], Segment.of_seconds(1.45, 2.6))  # its first frame is shown at 1.5 s
    assert np.allclose(inside, [15 * 255 / 29, 20 * 255 / 29], atol=3)


def test_the_strip_of_a_segment_stays_inside_it(tmp_path: Path) -> None:
    video = write_video(tmp_path / "x.mp4", 30)
    strip = keyframe_strip(video, RULE, segment=Segment.of_seconds(1, 2))
    levels = [brightness(picture) for picture in strip]
    assert len(strip) == 8
    assert np.allclose([levels[0], levels[-1]], [10 * 255 / 29, 19 * 255 / 29], atol=3)


def test_pictures_of_a_segment_after_the_end_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="t=60,70") as raised:
        frames_at(write_video(tmp_path / "x.mp4", 30), [0.0], segment=Segment.of_seconds(60, 70))
    assert raised.value.code == "segment_outside"
