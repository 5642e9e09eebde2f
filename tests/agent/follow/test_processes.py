"""``predict --follow`` as a process: files as they come, models as they change, kill -9, SIGTERM."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from flamest.fedproto.head import HeadSpec, initial_params
from flamest.fedproto.model_file import ModelFile, write_model
from flamest.runtime.bundle.manifest_reading import read_manifest

WITHIN_S = 60.0


def put_model(path, bundle, seed):
    head = HeadSpec(inputs=9, outputs=3, hidden=(8,))
    building = path.with_suffix(".part")
    model = ModelFile(head, initial_params(head, seed), ("run", "jump", "wave"), read_manifest(bundle).fingerprint)
    write_model(building, model)
    os.replace(building, path)


class Follower:
    """The command on a folder of its own; ``start`` it again after its end."""

    def __init__(self, folder, bundle):
        self.videos, self.out, self.model = folder / "in", folder / "events.jsonl", folder / "model.safetensors"
        self.videos.mkdir()
        self._bundle = bundle
        self.process = None

    def start(self):
        words = ["predict", "--follow", self.videos, "--bundle", self._bundle, "--model", self.model, "--threads", "1"]
        words += ["--out", self.out, "--every", "0.3", "--window", "1"]
        command = [sys.executable, "-m", "flamest.agent", *map(str, words)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def events(self):
        """Whole lines so far, by the video's name."""
        found = {}
        for line in self.out.read_text().splitlines() if self.out.exists() else ():
            event = json.loads(line)
            found.setdefault(Path(event["video"]).name, []).append(event)
        return found

    def await_events(self, *names):
        until = time.monotonic() + WITHIN_S
        while not set(names) <= set(self.events()):
            assert self.process.poll() is None, self.process.stderr.read()
            assert time.monotonic() < until, f"events of {sorted(self.events())}, expected {names}"
            time.sleep(0.1)
        return self.events()

    def end(self, number):
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=WITHIN_S)
        return self.process.returncode, errors


@pytest.fixture
def follower(toy_bundle, tmp_path):
    made = Follower(tmp_path, toy_bundle)
    put_model(made.model, toy_bundle, 1)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.communicate()


def test_files_are_answered_as_they_come_and_models_as_they_change(follower, clips, toy_bundle, tmp_path):
    whole = clips.write_clip(tmp_path / "whole.mp4", frames=60, noise=20)
    other = clips.write_clip(tmp_path / "other.mp4", frames=60, seed=2)
    content = whole.read_bytes()
    (follower.videos / "half.mp4").write_bytes(content[: len(content) // 2])
    follower.start()
    (follower.videos / "bad.mp4").write_text("no video")
    with (follower.videos / "half.mp4").open("ab") as file:
        file.write(content[len(content) // 2 :])
    first = follower.await_events("half.mp4", "bad.mp4")
    assert first["half.mp4"][0]["start"] == 0.0
    assert first["half.mp4"][-1]["end"] == pytest.approx(2.4)
    assert [event["reason"].split(":")[0] for event in first["bad.mp4"]] == ["video_not_video"]
    assert {event["unknown"] for event in first["half.mp4"]} == {False}

    follower.model.write_bytes(b"broken")
    os.rename(follower.videos / "half.mp4", follower.videos / "renamed.mp4")
    (follower.videos / "deep").mkdir()
    os.replace(other, follower.videos / "deep" / "other.mp4")
    second = follower.await_events("other.mp4")
    assert second["other.mp4"][0]["model"] == first["half.mp4"][0]["model"], "the one before stays in use"

    put_model(follower.model, toy_bundle, 2)
    clips.write_clip(tmp_path / "last.mp4", frames=60, seed=3)
    shutil.move(tmp_path / "last.mp4", follower.videos / "last.mp4")
    third = follower.await_events("last.mp4")
    assert third["last.mp4"][0]["model"] != second["other.mp4"][0]["model"]
    assert sorted(third) == ["bad.mp4", "half.mp4", "last.mp4", "other.mp4"], "the renamed one is not answered again"
    code, errors = follower.end(signal.SIGTERM)
    assert code == 0, errors
    assert "event=model_refused code=" in errors
    assert "videos=4" in errors


def test_kill_9_and_a_restart_neither_repeat_nor_lose_events(follower, clips):
    names = [f"{number}.mp4" for number in range(6)]
    for number, name in enumerate(names):
        clips.write_clip(follower.videos / name, frames=60, seed=number)
    follower.start()
    follower.await_events("0.mp4")
    follower.end(signal.SIGKILL)
    follower.start()
    follower.await_events("2.mp4")
    follower.end(signal.SIGKILL)
    follower.start()
    found = follower.await_events(*names)
    assert follower.end(signal.SIGTERM)[0] == 0
    for events in found.values():
        starts = [event["start"] for event in events]
        assert starts == sorted(set(starts)), "each once, in order"
        assert events[-1]["end"] == pytest.approx(2.4)
    before = follower.out.read_bytes()
    follower.start()
    clips.write_clip(follower.videos / "new.mp4", frames=30, seed=77)
    follower.await_events("new.mp4")
    assert follower.out.read_bytes().startswith(before)
    assert follower.end(signal.SIGINT)[0] == 0


def test_options_that_do_not_belong_together_are_refused(toy_bundle, tmp_path):
    model = tmp_path / "model.safetensors"
    put_model(model, toy_bundle, 1)
    given = ["predict", "--bundle", toy_bundle, "--model", model]
    for words in (
        ["--follow", tmp_path, "clip.mp4"],
        ["--follow", tmp_path, "--csv"],
        ["--out", "events.jsonl", "clip.mp4"],
        ["--follow", tmp_path],  # nothing says where to remember what was answered
        [],
    ):
        command = [sys.executable, "-m", "flamest.agent", *map(str, [*given, *words])]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 2, done.stderr
        assert "fix:" in done.stderr
