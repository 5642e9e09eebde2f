"""Hostile files asked for segments: absurd times and indices end in frames or a code, within memory and time."""

import struct
from collections import Counter

import numpy as np
import pytest
from flamest.base.errors import DataError
from flamest.runtime.bundle.manifest import FramePreprocessing, KeyframeRule
from flamest.runtime.clip_records import Segment
from flamest.runtime.video import packet_index
from flamest.runtime.video.decoder import DecodeLimits, VideoDecoder
from flamest.runtime.video.open_video import OpenVideo

SMALL = FramePreprocessing(size=24, fit="crop", filter="bilinear", mean=(0.45,) * 3, std=(0.225,) * 3)
RULE = KeyframeRule(count=8, candidates=32, preprocessing=SMALL, feature_width=1, space="")
CODES = {f"video_{code}" for code in ("not_video", "no_stream", "unknown_codec", "damaged", "too_large", "timeout")}
CODES |= {"segment_outside", "segment_empty", "decoder_crashed"}
SEGMENTS = (Segment(0, 500_000), Segment(900_000, 1_500_000), Segment(1, 2**60), Segment(2**59, 2**60))


def outcomes(decoder, path):
    """Of all requests that know segments: ``ok`` or a code."""
    found = []
    for request in (
        decoder.frame_times,
        *(lambda path, each=each: decoder.candidates(path, each) for each in SEGMENTS),
        lambda path: decoder.proxy(path, start_s=0.5, seconds=1),
    ):
        try:
            request(path)
            found.append("ok")
        except DataError as error:
            found.append(error.code)
    return found


def changed(data, box, offset, value):
    """An MP4 with 32 bits of a box replaced, ``offset`` bytes after its name."""
    made = bytearray(data)
    place = made.index(box) + 4 + offset
    made[place : place + 4] = struct.pack(">I", value)
    return bytes(made)


@pytest.mark.parametrize("value", [0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_absurd_times_end_in_frames_or_a_code(clips, tmp_path, value):
    whole = clips.write_clip(tmp_path / "whole.mp4", codec="libx264", frames=60).read_bytes()
    path, seen = tmp_path / "absurd.mp4", Counter()
    with VideoDecoder(RULE, DecodeLimits(timeout_s=30.0)) as decoder:
        for box, offset in (
            (b"stts", 8),  # how many frames have the next length
            (b"stts", 12),  # ticks that a frame is shown
            (b"ctts", 12),  # ticks between decoding and showing
            (b"mdhd", 12),  # ticks per second
            (b"elst", 12),  # where the first frame is
            (b"stss", 8),  # a key frame
            (b"stsz", 8),  # frames in all
            (b"stsz", 4),  # bytes of every frame
        ):
            if box in whole:
                path.write_bytes(changed(whole, box, offset, value))
                seen.update(outcomes(decoder, path))
        assert decoder.candidates(tmp_path / "whole.mp4", SEGMENTS[1]).frames == 15
        assert decoder.peak_kb < 2 << 20
    assert seen.keys() <= {"ok", *CODES}, seen


@pytest.mark.parametrize("files", [12, pytest.param(3_000, marks=pytest.mark.soak)])
def test_mutated_files_end_in_frames_or_a_code(clips, tmp_path, files):
    """Bytes changed at random places, most of them in what describes the frames."""
    whole = [
        clips.write_clip(tmp_path / name, codec=codec, frames=60).read_bytes()
        for name, codec in (("a.mp4", "libx264"), ("a.avi", "mpeg4"), ("a.mkv", "libvpx-vp9"), ("a.ts", "mpeg2video"))
    ]
    random, seen = np.random.default_rng(0), Counter()
    with VideoDecoder(RULE, DecodeLimits(timeout_s=20.0)) as decoder:
        for number in range(files):
            data = bytearray(whole[number % 4])
            described = data.find(b"moov") if number % 4 == 0 else 0
            until = len(data) if number % 3 == 0 else min(len(data), described + 900)
            for place in random.integers(max(described, 0), until, random.integers(1, 12)):
                data[place] = random.integers(256)
            path = tmp_path / f"{number % 5}.mp4"
            path.write_bytes(data)
            seen.update(outcomes(decoder, path))
    assert seen.keys() <= {"ok", *CODES}, seen
    assert seen["ok"] > files


def test_an_index_of_absurd_size_is_refused(clips, tmp_path, monkeypatch):
    path = clips.write_clip(tmp_path / "a.avi", frames=60)
    monkeypatch.setattr(packet_index, "MOST_FRAMES", 50)
    with path.open("rb") as file, pytest.raises(DataError, match="more than 50 frames") as caught:
        OpenVideo(file.fileno(), 1 << 22)
    assert caught.value.code == "video_too_large"
