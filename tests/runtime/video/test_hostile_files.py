"""Damaged and hostile files: each has a named outcome, and the parent lives (docs/guarantees.md)."""

import ctypes
import os
import struct
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from flamest.base.errors import DataError
from flamest.runtime.bundle.manifest import FramePreprocessing, KeyframeRule
from flamest.runtime.video.decoder import DecodeLimits, VideoDecoder

SMALL = FramePreprocessing(size=24, fit="crop", filter="bilinear", mean=(0.45,) * 3, std=(0.225,) * 3)
RULE = KeyframeRule(count=8, candidates=32, preprocessing=SMALL, feature_width=1, space="")
CODES = {f"video_{code}" for code in ("not_video", "no_stream", "unknown_codec", "damaged", "too_large", "timeout")}
IN_OPEN = 0x20


@pytest.fixture(scope="module")
def decoder():
    with VideoDecoder(RULE) as opened:
        yield opened


def outcome(decoder, path):
    """``ok``, or the code of the refusal."""
    try:
        return "ok" if decoder.candidates(path).frames > 0 else "nothing"
    except DataError as error:
        return error.code


@pytest.mark.parametrize("files", [150, pytest.param(10_000, marks=pytest.mark.soak)])
def test_mutated_files_end_in_frames_or_a_code(clips, tmp_path, record_property, files):
    """Bytes changed at random places, every second file cut off too; two decoders at once."""
    whole = [
        clips.write_clip(tmp_path / name, codec=codec).read_bytes()
        for name, codec in (("a.mp4", "libx264"), ("a.avi", "mpeg4"), ("a.mkv", "libvpx-vp9"))
    ]

    def some(worker):
        random, outcomes = np.random.default_rng(worker), Counter()
        with VideoDecoder(RULE, DecodeLimits(timeout_s=20.0)) as decoder:
            for number in range(files // 2):
                data = bytearray(whole[number % 3])
                for position in random.integers(0, len(data), random.integers(1, 30)):
                    data[position] = random.integers(256)
                path = tmp_path / f"{worker}.mp4"
                path.write_bytes(data[: random.integers(100, len(data) + 1)] if number % 2 else data)
                outcomes[outcome(decoder, path)] += 1
        return outcomes

    with ThreadPoolExecutor(2) as pool:
        outcomes = sum(pool.map(some, (1, 2)), Counter())
    assert outcomes.total() == files
    assert outcomes.keys() <= {"ok", "decoder_crashed", *CODES}, outcomes
    assert {"ok", "video_damaged"} <= outcomes.keys(), outcomes
    record_property("outcomes", dict(outcomes))


class Watch:
    """Count of opened files of a folder, by any process (inotify)."""

    def __init__(self, folder):
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK)
        assert self._fd >= 0
        assert self._libc.inotify_add_watch(self._fd, os.fsencode(folder), IN_OPEN) >= 0

    def opened(self):
        try:
            return len(os.read(self._fd, 1 << 16)) > 0
        except BlockingIOError:
            return False

    def close(self):
        os.close(self._fd)


ATTACKS = {
    "ffconcat": "ffconcat version 1.0\nfile '{secret}'\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{secret}\n#EXT-X-ENDLIST\n",
    "dash": '<?xml version="1.0"?><MPD type="static" mediaPresentationDuration="PT5S"><Period><AdaptationSet '
    'mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>{secret}</BaseURL></Representation>'
    "</AdaptationSet></Period></MPD>",
    "vobsub": "# VobSub index file, v7 (do not modify this line!)\nsize: 720x480\nid: en, index: 0\n"
    "timestamp: 00:00:01:000, filepos: 000000000\n",
    "subtitles": "1\n00:00:01,000 --> 00:00:02,000\n<img src='{secret}'>\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
    "playlist": "[playlist]\nFile1={secret}\nNumberOfEntries=1\n",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_file_that_names_another_opens_nothing_else(decoder, clips, tmp_path, attack):
    """The folder of the named file, and the file's own, are watched."""
    secret = clips.write_clip(tmp_path / "secret" / "other.avi")
    folder = tmp_path / "clips"
    folder.mkdir()
    path = folder / f"{attack}.mp4"
    path.write_text(ATTACKS[attack].format(secret=secret))
    (folder / f"{attack}.sub").symlink_to(secret)  # where a subtitle index looks
    watch = Watch(secret.parent)
    try:
        assert outcome(decoder, path) == "video_not_video"
        assert not watch.opened()
        secret.read_bytes()
        assert watch.opened()  # it would have been seen
    finally:
        watch.close()


def test_a_header_of_a_hundred_hours_is_not_trusted(decoder, clips, tmp_path):
    path = clips.write_clip(tmp_path / "long.avi", frames=40)
    data = bytearray(path.read_bytes())
    frames = struct.pack("<I", 100 * 3600 * 25)
    main, stream = data.index(b"avih") + 8, data.index(b"strh") + 8
    data[main + 16 : main + 20] = data[stream + 32 : stream + 36] = frames
    path.write_bytes(data)
    candidates = decoder.candidates(path)
    assert candidates.frames == 40
    assert any("only 40 of 9000000" in warning for warning in candidates.warnings)


@pytest.mark.parametrize("streams", [5_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
def test_a_file_of_very_many_streams_ends_in_a_code(clips, tmp_path, streams):
    data = clips.write_clip(tmp_path / "one.avi").read_bytes()
    header = data.index(b"LIST", 16)
    end = header + 8 + struct.unpack("<I", data[header + 4 : header + 8])[0]
    assert data[header + 8 : header + 12] == b"strl"
    short = b"strl" + data[data.index(b"strh") :][: 8 + 56] + data[data.index(b"strf") :][: 8 + 40]
    many = b"LIST" + struct.pack("<I", len(short)) + short
    (tmp_path / "many.avi").write_bytes(data[:header] + many * streams + data[end:])
    with VideoDecoder(RULE, DecodeLimits(timeout_s=30.0)) as decoder:
        assert outcome(decoder, tmp_path / "many.avi") in {"ok", *CODES}
        assert decoder.candidates(tmp_path / "one.avi").frames == 40
        assert decoder.peak_kb < 2 << 20


def test_a_growing_file_ends_in_frames_or_a_code(decoder, clips, tmp_path):
    """``extract`` checks the file again afterwards, and takes none that changed."""
    data = clips.write_clip(tmp_path / "whole.avi", frames=120, noise=60).read_bytes()
    path, stop = tmp_path / "growing.avi", threading.Event()
    path.write_bytes(data[: len(data) // 3])

    def grow():
        with path.open("ab") as file:
            for start in range(len(data) // 3, len(data), 4096):
                file.write(data[start : start + 4096])
                file.flush()
                if stop.wait(0.002):
                    return

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        assert {outcome(decoder, path) for _ in range(10)} <= {"ok", *CODES}
    finally:
        stop.set()
        thread.join()


def test_a_file_deleted_while_it_is_read_is_read_to_its_end(decoder, clips, tmp_path):
    path = clips.write_clip(tmp_path / "gone.avi")
    candidates = decoder.candidates(path)
    path.unlink()
    assert len(decoder.keyframes(candidates, np.arange(8)).rgb) == 8
    assert outcome(decoder, path) == "video_unreadable"


def test_a_pipe_never_blocks_the_reader(decoder, tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    began = time.monotonic()
    assert outcome(decoder, tmp_path / "pipe.mp4") == "video_not_a_file"
    assert time.monotonic() - began < 5
