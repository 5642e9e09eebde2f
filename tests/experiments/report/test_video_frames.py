"""Small pictures of a clip's frames."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
from flamest.base.errors import DataError
from flamest.experiments.report.video_frames import keyframe_strip
from flamest.runtime.bundle.manifest import FramePreprocessing, KeyframeRule
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
