"""Pieces of a video as a browser plays them."""

import io
import struct

import numpy as np
import pytest
from flamest.base.errors import DataError
from flamest.runtime.video.decoder import DecodeLimits, VideoDecoder
from flamest.runtime.video.proxy import make_proxy


def played(piece):
    """Format, streams and frames of a piece."""
    import av

    with av.open(io.BytesIO(piece)) as file:
        frames = list(file.decode(video=0))
        return file.format.name, [stream.codec_context.name for stream in file.streams], frames


def test_a_piece_is_webm_with_the_times_of_the_video(clips, tmp_path):
    path = clips.write_clip(tmp_path / "a.avi", frames=100)
    form, codecs, frames = played(make_proxy(path, start_s=1, seconds=2))
    assert "webm" in form
    assert codecs == ["vp8"]
    assert [round(frame.time, 2) for frame in frames] == [round(1 + 0.04 * number, 2) for number in range(50)]
    assert frames[0].to_ndarray(format="rgb24").shape == (64, 96, 3)


def test_pieces_follow_one_another_without_a_gap(clips, tmp_path):
    path = clips.write_clip(tmp_path / "a.mkv", codec="libx264", frames=100)
    with VideoDecoder(None) as decoder:
        pieces = [decoder.proxy(path, start_s=start, seconds=1) for start in (0, 1, 2, 3)]
        times = [frame.time for piece in pieces for frame in played(piece)[2]]
        np.testing.assert_allclose(times, 0.04 * np.arange(100), atol=1e-3)
        with pytest.raises(DataError) as caught:
            decoder.proxy(path, start_s=4, seconds=1)
    assert caught.value.code == "segment_outside"


@pytest.mark.parametrize(
    ("width", "height", "expected"), [(1280, 720, (360, 640)), (720, 1280, (640, 360)), (34, 50, (50, 34))]
)
def test_a_piece_is_at_most_640_pixels_wide_and_high(clips, tmp_path, width, height, expected):
    path = clips.write_clip(tmp_path / "a.avi", np.full((5, height, width, 3), 99, np.uint8))
    frame = played(make_proxy(path, start_s=0, seconds=1))[2][0]
    assert (frame.height, frame.width) == expected


def test_a_piece_of_a_rotated_video_is_upright(clips, tmp_path):
    rgb = np.zeros((10, 48, 96, 3), np.uint8)
    rgb[:, :, :48] = 200  # bright left half
    path = clips.write_clip(tmp_path / "phone.mp4", rgb)
    data = bytearray(path.read_bytes())
    header = data.index(b"tkhd") + 4
    data[header + 40 : header + 76] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    upright = played(make_proxy(path, start_s=0, seconds=1))[2][0].to_ndarray(format="rgb24")
    assert upright.shape == (96, 48, 3)
    assert upright[:40].mean() > 150 > 50 > upright[56:].mean()


def test_fast_video_loses_frames_and_keeps_its_times(clips, tmp_path):
    path = clips.write_clip(tmp_path / "fast.mp4", codec="libx264", frames=240, rate=120)
    frames = played(make_proxy(path, start_s=0, seconds=2))[2]
    assert 50 <= len(frames) <= 62
    assert frames[-1].time == pytest.approx(2, abs=0.05)


def test_a_file_that_is_no_video_is_refused_by_its_code(tmp_path):
    (tmp_path / "a.avi").write_text("this is a text")
    with pytest.raises(DataError) as caught:
        make_proxy(tmp_path / "a.avi", start_s=0, seconds=1, limits=DecodeLimits(timeout_s=20))
    assert caught.value.code == "video_not_video"


def test_the_length_of_a_piece_is_limited(clips, tmp_path):
    path = clips.write_clip(tmp_path / "slow.mp4", codec="libx264", frames=130, rate=1)
    assert len(played(make_proxy(path, start_s=-5, seconds=1e9))[2]) == 120
