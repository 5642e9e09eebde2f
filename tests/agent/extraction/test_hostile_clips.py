"""Clip files and labels.csv that cost time or memory: named, within seconds, and a signal ends the hashing."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from flamest.agent.extraction.clips import scan_clips
from flamest.agent.extraction.extract import extract_folder
from flamest.agent.extraction.labels_table import MAX_NAME
from flamest.agent.extraction.report import ExtractRequest
from flamest.base.errors import DataError, FlamestError
from flamest.runtime.video.decoder import DecodeLimits

SPARSE = 60_000_000_000  # bytes


def sparse(path, size=SPARSE):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.truncate(path, size)
    return path


def report_of(bundle, videos, store, **limits):
    report = extract_folder(ExtractRequest(bundle, videos, store, threads=1, limits=DecodeLimits(**limits)))
    return report, {failed.clip: failed.code for failed in report.failed}


def test_a_clip_over_the_limit_is_named_before_it_is_hashed(toy_bundle, clips, tmp_path):
    videos = tmp_path / "videos"
    sparse(videos / "wave" / "huge.mp4")
    clips.write_clip(videos / "wave" / "a.avi", frames=12)
    began = time.monotonic()
    report, codes = report_of(toy_bundle, videos, tmp_path / "s.sqlite")
    assert time.monotonic() - began < 20
    assert codes == {"wave/huge.mp4": "file_too_large"}
    assert report.extracted == 1
    assert "--max-clip-gb" in report.failed[0].reason


def test_the_limit_of_a_clip_is_a_setting_and_holds_again(toy_bundle, clips, tmp_path):
    videos = tmp_path / "videos"
    clip = clips.write_clip(videos / "wave" / "a.avi", frames=12)
    size = clip.stat().st_size
    for limit, expected in ((size - 1, {"wave/a.avi": "file_too_large"}), (size, {}), (size - 1, None)):
        _, codes = report_of(toy_bundle, videos, tmp_path / "s.sqlite", largest_file=limit)
        assert codes == (expected if expected is not None else {"wave/a.avi": "file_too_large"})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_hashing_within_two_seconds(toy_bundle, tmp_path, number):
    sparse(tmp_path / "videos" / "wave" / "huge.mp4", 9_000_000_000_000)
    words = ["--bundle", toy_bundle, "--videos", tmp_path / "videos", "--store", tmp_path / "s.sqlite"]
    command = [sys.executable, "-m", "flamest.agent", "extract", *words, "--max-clip-gb", "10000", "--json"]
    extraction = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not (tmp_path / "s.sqlite").exists() or not _is_hashing(extraction.pid):
        assert time.monotonic() < until
        assert extraction.poll() is None
        time.sleep(0.05)
    extraction.send_signal(number)
    began = time.monotonic()
    out, errors = extraction.communicate(timeout=30)
    assert time.monotonic() - began < 2
    assert extraction.returncode == 128 + number, errors
    assert json.loads(out.splitlines()[-1])["stopped"]


def _is_hashing(pid):
    names = []
    for handle in os.listdir(f"/proc/{pid}/fd"):
        try:
            names.append(os.readlink(f"/proc/{pid}/fd/{handle}"))
        except OSError:
            continue
    return any(name.endswith("huge.mp4") for name in names)


def test_a_growing_clip_ends_at_the_limit(toy_bundle, tmp_path):
    path = tmp_path / "videos" / "wave" / "grows.mp4"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(1000))
    stop = threading.Event()

    def grow():
        with path.open("ab") as file:
            while not stop.is_set() and file.tell() < 400_000_000:
                file.write(bytes(1 << 20))
                file.flush()

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        _, codes = report_of(toy_bundle, tmp_path / "videos", tmp_path / "s.sqlite", largest_file=5_000_000)
    finally:
        stop.set()
        thread.join()
    assert codes["wave/grows.mp4"] in {"file_too_large", "video_not_video", "video_changed"}


def test_special_files_among_the_clips_are_named_and_never_opened(toy_bundle, clips, tmp_path, monkeypatch):
    videos = tmp_path / "videos"
    clips.write_clip(videos / "wave" / "a.avi", frames=12)
    os.mkfifo(videos / "wave" / "fifo.mp4")
    (videos / "wave" / "loop.mp4").symlink_to(videos / "wave" / "loop.mp4")
    (videos / "wave" / "zero.mp4").symlink_to("/dev/zero")
    monkeypatch.chdir(videos / "wave")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.mp4")
        _, codes = report_of(toy_bundle, videos, tmp_path / "s.sqlite")
    assert codes == {
        "wave/fifo.mp4": "video_not_a_file",
        "wave/loop.mp4": "unreadable",
        "wave/socket.mp4": "video_not_a_file",
        "wave/zero.mp4": "outside_folder",
    }


def test_a_clip_replaced_by_a_pipe_after_the_scan_is_named(toy_bundle, clips, tmp_path):
    from flamest.agent.extraction.extract import clips_to_extract, extract_clips

    videos = tmp_path / "videos"
    clip = clips.write_clip(videos / "wave" / "a.avi", frames=12)
    found = clips_to_extract(videos)
    clip.unlink()
    os.mkfifo(clip)
    request = ExtractRequest(toy_bundle, videos, tmp_path / "s.sqlite", threads=1)
    report = extract_clips(request, found, on_clip=lambda: None, stop=lambda: False)
    assert [failed.code for failed in report.failed] == ["video_not_a_file"]


HEADER = b"path,label,group\n"
TABLES = {
    "invalid UTF-8": HEADER + b"a.avi,\xff\xfe,g\n",
    "UTF-16": HEADER.decode().encode("utf-16"),
    "quote without an end": HEADER + b'a.avi,"' + b"l\n" * 200_000,
    "long header": b"path,label" + b",group" * 10_000,
    "empty": b"",
    "binary": bytes(range(256)) * 10,
}


ROWS = {
    "zero byte in a path": b"a\0.avi,l,g\n",
    "zero byte in a label": b"a.avi,l\0l,g\n",
    "control character": b"a.avi,\x1b[2J,g\n",
    "line break in a label": b'a.avi,"a\nb",g\n',
    "text after a quote": b'a.avi,"a"b,g\n',
    "long label": b"a.avi," + b"l" * (MAX_NAME + 1) + b",g\n",
    "long group": b"a.avi,l," + b"g" * (MAX_NAME + 1) + b"\n",
    "long line": b"a.avi," + b"l" * 40_000 + b",g\n",
    "ten million columns": b"," * 10_000_000 + b"\n",
    "out of the folder": b"../a.avi,l,g\n",
    "out of the folder, backwards": b"..\\a.avi,l,g\n",
}


@pytest.mark.parametrize("row", ROWS)
def test_a_hostile_row_is_reported_and_the_next_one_read(tmp_path, row):
    (tmp_path / "b.avi").touch()
    (tmp_path / "labels.csv").write_bytes(HEADER + ROWS[row] + b"b.avi,l,g\n")
    began = time.monotonic()
    folder = scan_clips(tmp_path)
    assert time.monotonic() - began < 10
    assert [clip.name for clip in folder.clips] == ["b.avi"]
    (problem,) = folder.problems
    assert problem.name == "labels.csv, line 2"
    assert len(problem.reason) < 3000


@pytest.mark.parametrize("table", TABLES)
def test_a_hostile_table_is_refused_by_name(tmp_path, table):
    (tmp_path / "labels.csv").write_bytes(TABLES[table])
    began = time.monotonic()
    with pytest.raises(DataError) as caught:
        scan_clips(tmp_path)
    assert caught.value.code == "labels_csv"
    assert len(caught.value.message) < 1000
    assert time.monotonic() - began < 10


def test_more_rows_than_a_folder_may_list_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("flamest.agent.extraction.labels_table.MAX_LISTED", 100)
    (tmp_path / "labels.csv").write_bytes(HEADER + b"".join(b"%d.avi,l,g\n" % number for number in range(101)))
    with pytest.raises(DataError, match="more than 100"):
        scan_clips(tmp_path)


@pytest.mark.parametrize("kind", ["fifo", "folder", "sparse", "loop", "link out", "device"])
def test_a_table_that_is_no_file_is_never_taken_for_none(tmp_path, kind):
    folder = tmp_path / "videos"
    folder.mkdir()
    table = folder / "labels.csv"
    secret = tmp_path / "secret"
    secret.write_text("hunter2,x\n")
    {
        "fifo": lambda: os.mkfifo(table),
        "folder": table.mkdir,
        "sparse": lambda: sparse(table),
        "loop": lambda: table.symlink_to(table),
        "link out": lambda: table.symlink_to(secret),
        "device": lambda: table.symlink_to("/dev/zero"),
    }[kind]()
    with pytest.raises(FlamestError) as caught:
        scan_clips(folder)
    assert caught.value.exit_code in (65, 74)
    assert "hunter2" not in caught.value.message
