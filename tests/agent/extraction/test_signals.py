"""A signal ends an extraction within seconds, whatever it is reading: a bundle, a clip that never ends, a table."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from flamest.agent.extraction.extract import extract_folder
from flamest.agent.extraction.report import ExtractRequest
from flamest.base.files import Stopped
from flamest.runtime.bundle.opening import open_bundle
from flamest.runtime.clip_records import Clip
from flamest.runtime.video.clip_reader import ClipReader
from flamest.runtime.video.decoder import VideoDecoder
from flamest.runtime.video.read_ahead import FINISH_WITHIN_S, ReadAhead

SOON_S = 8.0


def started(bundle, tmp_path, *words):
    options = ["--bundle", bundle, "--videos", tmp_path / "videos", "--store", tmp_path / "s.sqlite", *words]
    command = [sys.executable, "-m", "flamest.agent", "extract", *map(str, options), "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ends_soon(process, number, *, when):
    """Send the signal once ``when`` is true; the command's report."""
    until = time.monotonic() + 60
    while not when():
        assert time.monotonic() < until
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(number)
    began = time.monotonic()
    out, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < SOON_S
    assert process.returncode == 128 + number, errors
    report = json.loads(out.splitlines()[-1])
    assert report["stopped"]
    assert report["extracted"] == 0
    return report


def opened_files(pid):
    for handle in os.listdir(f"/proc/{pid}/fd"):
        try:
            yield os.readlink(f"/proc/{pid}/fd/{handle}")
        except OSError:
            continue


def decoders(pid):
    """The decoder processes that ``pid`` has started."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child) for child in found if b"decoder_process" in Path(f"/proc/{child}/cmdline").read_bytes()}


@pytest.fixture
def large_bundle(toy_bundle, tmp_path):
    """The bundle with one more file, sparse, whose hashing takes seconds: it is listed with a wrong hash."""
    bundle = shutil.copytree(toy_bundle, tmp_path / "large")
    size = 8 << 30
    (bundle / "zeros.bin").touch()
    os.truncate(bundle / "zeros.bin", size)
    manifest = json.loads((bundle / "bundle.json").read_bytes())
    manifest["files"]["zeros.bin"] = {"sha256": "0" * 64, "bytes": size}
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    return bundle


@pytest.mark.parametrize(("number", "words"), [(signal.SIGTERM, ()), (signal.SIGINT, ("--precision", "auto"))])
def test_a_signal_ends_the_hashing_of_a_bundle(large_bundle, clips, tmp_path, number, words):
    clips.write_clip(tmp_path / "videos" / "wave" / "a.avi", frames=12)
    process = started(large_bundle, tmp_path, *words)
    ends_soon(process, number, when=lambda: any(name.endswith("zeros.bin") for name in opened_files(process.pid)))


@pytest.mark.parametrize(("number", "words"), [(signal.SIGTERM, ()), (signal.SIGINT, ("--precision", "auto"))])
def test_a_signal_ends_the_decoding_of_a_clip(toy_bundle, clips, tmp_path, number, words):
    clips.write_clip(tmp_path / "videos" / "wave" / "a.avi", frames=12)
    process = started(toy_bundle, tmp_path, *words)
    frozen = {}

    def decoder_is_asked():
        """Stop the decoder as it starts: to this process it is one that decodes for ever."""
        for child in decoders(process.pid) - frozen.keys():
            os.kill(child, signal.SIGSTOP)
            frozen[child] = time.monotonic()
        return frozen and time.monotonic() - max(frozen.values()) > 4

    ends_soon(process, number, when=decoder_is_asked)
    for child in frozen:
        assert not os.path.exists(f"/proc/{child}/exe")


def test_a_bundle_is_not_read_on_once_asked_to_stop(toy_bundle):
    asked = iter([False, True])
    with pytest.raises(Stopped):
        open_bundle(toy_bundle, stop=lambda: next(asked))


def test_closing_gives_up_the_clip_that_is_read(toy_bundle, clips, tmp_path):
    clip = Clip(clips.write_clip(tmp_path / "a.avi", frames=12), "0" * 64)
    manifest = open_bundle(toy_bundle).manifest
    video = VideoDecoder(manifest.keyframes)
    video.start()
    os.kill(video.pid, signal.SIGSTOP)  # to this process it never answers
    with closing(ReadAhead([ClipReader(manifest, video, None)])) as ahead:
        ahead.submit(clip)
        began = time.monotonic()
        with pytest.raises(Stopped):
            ahead.next(stop=lambda: True)
        waited = time.monotonic() - began
        began = time.monotonic()
    assert time.monotonic() - began < 2
    assert FINISH_WITHIN_S <= waited < SOON_S
    assert video.pid is None


def test_a_clip_that_is_nearly_read_is_finished_before_the_end(toy_bundle, clips, tmp_path):
    videos = tmp_path / "videos"
    clips.write_clip(videos / "wave" / "a.avi", frames=12)
    clips.write_clip(videos / "wave" / "b.avi", frames=13)
    request = ExtractRequest(toy_bundle, videos, tmp_path / "s.sqlite", threads=1)
    done = []
    report = extract_folder(request, on_clip=lambda: done.append(1), stop=lambda: bool(done))
    assert report.stopped
    assert report.extracted == 1
