"""Small pictures of a clip's frames."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from flamest.base.errors import DataError
from flamest.runtime.bundle.manifest import FramePreprocessing, KeyframeRule
from flamest.runtime.clip_records import Segment
from flamest.runtime.video.decoder import VideoDecoder
from flamest.runtime.video.pictures import frames_at, keyframe_strip
from PIL import Image

GREY = FramePreprocessing(size=32, fit="crop", filter="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
RULE = KeyframeRule(count=8, candidates=16, preprocessing=GREY, feature_width=4, space="test")


def write_video(path: Path, frames: int) -> Path:
    """Frames that brighten from black to white, 96 x 64 pixels."""
    pictures = [np.full((64, 96, 3), level, dtype=np.uint8) for level in np.linspace(0, 255, frames)]
    return encode(path, pictures, "mpeg4", 10)


def encode(path: Path, pictures: list[np.ndarray], codec: str, rate: int | Fraction, **options: str) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.pix_fmt = "yuv420p"
        stream.height, stream.width = pictures[0].shape[:2]
        for picture in pictures:
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


def test_pictures_are_taken_where_the_container_knows_times_nearly(tmp_path: Path) -> None:
    """A program stream has no time for each of several small frames: they are taken from the rate."""
    pictures = [np.full((48, 64, 3), 4 * number, dtype=np.uint8) for number in range(60)]
    for number, picture in enumerate(pictures):
        picture[:, number] = 255
    video = encode(tmp_path / "x.mpg", pictures, "mpeg2video", Fraction(30000, 1001), bf="2")
    with VideoDecoder(None) as decoder:
        assert not decoder.frame_times(video).exact
    found = levels_at(video, [number * 1.001 / 30 for number in range(60)])
    assert len(found) >= 55
    assert found == sorted(found)
    assert (found[0] < 20, found[-1] > 220) == (True, True)


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
