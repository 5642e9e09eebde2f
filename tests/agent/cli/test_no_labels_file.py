"""A labels.csv that is no regular file of the folder: every command that reads it says so at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

COMMANDS = {
    "clips": (),
    "extract": ("--bundle", "miniworld", "--store", "s.sqlite"),
    "import-labels": ("labels.of.a.tool.csv",),
    "export-labels": ("--format", "segments", "--out", "out.csv"),
    "label": ("--no-browser",),
}


def put(path, kind):
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "link out":
        path.symlink_to("/etc/passwd")
    elif kind == "link to nothing":
        path.symlink_to("nothing")
    elif kind == "link to itself":
        path.symlink_to(path.name)
    elif kind == "10 GB":
        with path.open("wb") as file:
            file.truncate(10 << 30)
    else:
        path.mkdir()


KINDS = {
    "pipe": "not_a_file",
    "device": "labels_csv",
    "link out": "labels_csv",
    "link to nothing": "labels_csv",
    "link to itself": "labels_csv",
    "10 GB": "too_large",
    "folder": "not_a_file",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_no_labels_file_is_an_error_at_once(tmp_path, name):
    (tmp_path / "labels.of.a.tool.csv").write_text("video,label,start,end\na.mp4,walk,0,1\n")
    for kind in KINDS:
        videos = tmp_path / kind
        (videos / "walk").mkdir(parents=True)
        (videos / "walk" / "a.mp4").write_bytes(b"video")
        put(videos / "labels.csv", kind)
    running = {
        kind: subprocess.Popen(
            [sys.executable, "-m", "flamest.agent", name, *COMMANDS[name], "--videos", kind, "--json"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        for kind in KINDS
    }
    try:
        for kind, process in running.items():
            out, err = process.communicate(timeout=60)
            assert process.returncode == 65, (kind, out, err)
            error = json.loads(out.splitlines()[-1])["error"]
            assert (kind, error["code"]) == (kind, KINDS[kind])
            assert "labels.csv" in error["message"]
            assert "root:" not in out + err
    finally:
        for process in running.values():
            process.kill()
