"""Parts of following a folder: which videos are finished, events that are written once, failures of one video."""

import os

import numpy as np
import pytest
from flamest.agent.follow import loop, output
from flamest.agent.follow.answered import AnsweredVideos, FileContent, Pending
from flamest.agent.follow.new_videos import MOST_TRIES, NewVideos
from flamest.agent.follow.newest_model import NewestModel
from flamest.agent.follow.output import EventOutput
from flamest.agent.follow.work import Networks, answer_video, hash_video, open_networks
from flamest.agent.timeline.events import TimelineEvent
from flamest.agent.timeline.windows import window_plan
from flamest.agent.worker import WorkerCrashed
from flamest.base.errors import DataError, StorageError
from flamest.base.process import Shutdown
from flamest.fedproto.head import HeadSpec, initial_params
from flamest.fedproto.model_file import ModelFile, write_model
from flamest.runtime.backends.options import parse_backend_options
from flamest.runtime.bundle.manifest_reading import read_manifest

FILE = FileContent("a.mp4", "1:2:3", "f" * 64)
LINES = b'{"video": "a.mp4", "label": "run"}\n{"video": "a.mp4", "label": "jump"}\n'


@pytest.fixture
def answered(tmp_path):
    videos = AnsweredVideos(tmp_path / "answered.sqlite")
    yield videos
    videos.close()


# --- which videos are new and finished ---


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def names(videos, clock, seconds=1.0):
    clock.now += seconds
    return [video.name for video in videos.scan()]


def test_a_video_is_finished_when_two_scans_find_it_unchanged(tmp_path, answered):
    clock, folder = Clock(), tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    videos = NewVideos(folder, answered, 0.9, clock)
    half, empty = folder / "deep" / "half.mp4", folder / "empty.mp4"
    half.write_bytes(b"1")
    empty.touch()
    (folder / "being-copied.mp4.part").write_bytes(b"1")
    assert names(videos, clock) == []
    half.write_bytes(b"12")
    assert names(videos, clock) == [], "it grew"
    assert names(videos, clock, 0.1) == [], "too soon"
    assert names(videos, clock) == ["deep/half.mp4"]
    os.replace(folder / "being-copied.mp4.part", folder / "copied.mp4")
    empty.write_bytes(b"1")
    assert names(videos, clock) == ["deep/half.mp4"]
    assert names(videos, clock) == ["copied.mp4", "deep/half.mp4", "empty.mp4"]
    stamp = next(iter(videos.scan())).stamp
    answered.note(FileContent("copied.mp4", stamp, "c" * 64))
    assert names(videos, clock) == ["deep/half.mp4", "empty.mp4"]


def test_a_failure_that_may_pass_is_tried_again_ever_later(tmp_path, answered):
    clock, folder = Clock(), tmp_path / "in"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(b"1")
    videos = NewVideos(folder, answered, 0.9, clock)
    names(videos, clock)
    pauses = []
    for tries in range(4):
        waited = 0
        while not (found := list(videos.scan())):
            clock.now += 1
            waited += 1
        assert found[0].tries == tries
        pauses.append(waited)
        videos.try_later(found[0])
    assert pauses[1:] == sorted(pauses[1:])
    assert pauses[3] >= 2 * pauses[1] > 0


# --- events are written once ---


@pytest.mark.parametrize("cut", [0, 1, 20, len(LINES) - 1, len(LINES)])
def test_a_crash_anywhere_leaves_the_events_once(tmp_path, answered, cut):
    path, before = tmp_path / "events.jsonl", b'{"video": "before.mp4"}\n'
    path.write_bytes(before)
    answered.begin(Pending(FILE, path.stat().st_ino, len(before), LINES))
    with path.open("ab") as file:
        file.write(LINES[:cut])
    answered.close()
    again = AnsweredVideos(tmp_path / "answered.sqlite")
    assert not again.has(FILE.sha256)
    out = EventOutput(path, again)
    for _ in range(2):
        out.recover()
        assert path.read_bytes() == before + LINES
    assert again.has(FILE.sha256)
    assert again.is_known(FILE.name, FILE.stamp)
    again.close()


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path, answered, monkeypatch):
    path, out = tmp_path / "events.jsonl", EventOutput(tmp_path / "events.jsonl", answered)
    real = os.write

    def full(handle, data):
        if len(data) > 30:
            return real(handle, data[:30])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output.os, "write", full)
    with pytest.raises(StorageError) as caught:
        out.write(FILE, LINES)
    assert caught.value.code == "disk_full"
    assert path.read_bytes() == b""
    assert not answered.has(FILE.sha256)
    monkeypatch.setattr(output.os, "write", real)
    out.recover()
    assert path.read_bytes() == LINES
    assert answered.has(FILE.sha256)


def test_events_of_a_rotated_file_go_into_the_new_one(tmp_path, answered):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"")
    answered.begin(Pending(FILE, path.stat().st_ino, 0, LINES))
    os.rename(path, tmp_path / "events.jsonl.1")
    (tmp_path / "keep-the-inode").touch()
    EventOutput(path, answered).recover()
    assert path.read_bytes() == LINES


# --- the newest model ---


def write_toy_model(path, bundle, seed, fingerprint=""):
    head = HeadSpec(inputs=9, outputs=3, hidden=(8,))
    fingerprint = fingerprint or read_manifest(bundle).fingerprint
    building = path.with_suffix(".part")
    write_model(building, ModelFile(head, initial_params(head, seed), ("run", "jump", "wave"), fingerprint))
    os.replace(building, path)
    return path


def test_a_model_that_cannot_be_used_leaves_the_one_before_in_use(toy_bundle, tmp_path):
    path = tmp_path / "model.safetensors"
    newest = NewestModel(path, read_manifest(toy_bundle), toy_bundle)
    newest.refresh()
    assert newest.model is None
    write_toy_model(path, toy_bundle, 1)
    newest.refresh()
    first, sha256 = newest.model, newest.sha256
    path.write_bytes(b"half a model")
    newest.refresh()
    write_toy_model(path, toy_bundle, 2, fingerprint="e" * 64)
    newest.refresh()
    path.unlink()
    newest.refresh()
    assert (newest.model, newest.sha256) == (first, sha256)
    write_toy_model(path, toy_bundle, 2)
    newest.refresh()
    assert newest.sha256 != sha256
    assert not np.array_equal(*(next(iter(each.params.values())) for each in (first, newest.model)))


# --- the loop, with a worker that fails as it is told ---


class FakeWorker:
    """Answers calls of follow/work.py; ``failures``: errors of the next answers."""

    def __init__(self, failures=()):
        self.failures, self.answered = list(failures), 0

    def call(self, function, *arguments):
        if function is hash_video:
            return arguments[0].name.ljust(64, "0")
        if function is open_networks:
            return None
        assert function is answer_video
        if self.failures and (error := self.failures.pop(0)) is not None:
            raise error
        self.answered += 1
        return [TimelineEvent(0.0, 2.0, "run", 0.9, windows=1)]

    def rest(self):
        pass


@pytest.fixture
def follower(toy_bundle, tmp_path, answered):
    folder = tmp_path / "in"
    folder.mkdir()
    networks = Networks(toy_bundle, window_plan(), parse_backend_options(()), 1, (), folder)
    model = write_toy_model(tmp_path / "model.safetensors", toy_bundle, 1)
    request = loop.FollowRequest(
        folder, networks, model, tmp_path / "answered.sqlite", tmp_path / "events.jsonl", 3, None, 0.01
    )
    newest = NewestModel(model, read_manifest(toy_bundle), toy_bundle)
    shutdown = Shutdown()
    made = loop._Follower(request, shutdown, FakeWorker(), answered, newest)
    made._new = NewVideos(folder, answered, 0.0, Clock())
    rounds = iter(range(12))

    def wait(seconds):
        made._new._now.now += 1000.0
        if next(rounds, None) is None:
            shutdown.request()

    shutdown.wait = wait
    return made


def test_one_bad_video_never_stops_the_rest(follower, tmp_path):
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / "in" / name).write_bytes(name.encode())
    follower._worker.failures = [DataError("is no video", code="video_not_video")]
    assert follower.serve() == {"videos": 3, "events": 3, "failed": 1}
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert ['"reason": "video_not_video: is no video"' in line for line in lines] == [True, False, False]


@pytest.mark.parametrize("crashes", [1, MOST_TRIES - 1, MOST_TRIES])
def test_crashes_are_tried_again_a_few_times(follower, tmp_path, crashes):
    (tmp_path / "in" / "a.mp4").write_bytes(b"a")
    follower._worker.failures = [WorkerCrashed("the worker process ended with status -11")] * crashes
    counts = follower.serve()
    assert (counts["videos"], counts["failed"]) == (1, int(crashes == MOST_TRIES))
    assert ("worker_crashed" in (tmp_path / "events.jsonl").read_text()) == (crashes == MOST_TRIES)


def test_a_full_disk_or_a_missing_folder_is_waited_for(follower, tmp_path, monkeypatch):
    (tmp_path / "in" / "a.mp4").write_bytes(b"a")
    problems = [StorageError("cannot append", code="disk_full")] * 3
    real = EventOutput._append

    def append(self, path, file, data):
        if problems:
            raise problems.pop()
        real(self, path, file, data)

    monkeypatch.setattr(EventOutput, "_append", append)
    (tmp_path / "in").rename(tmp_path / "away")
    waits, wait = [], follower._shutdown.wait

    def bring_back(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            (tmp_path / "away").rename(tmp_path / "in")
        wait(seconds)

    follower._shutdown.wait = bring_back
    assert follower.serve()["videos"] == 1
    assert (tmp_path / "events.jsonl").read_text().count("\n") == 1


def test_a_copy_and_a_renamed_video_are_not_answered_again(follower, tmp_path):
    folder = tmp_path / "in"
    (folder / "a.mp4").write_bytes(b"a")
    (folder / "copies").mkdir()
    (folder / "copies" / "a.mp4").write_bytes(b"a")  # the fake worker's hash is of the name
    assert follower.serve()["videos"] == 1
    assert follower._worker.answered == 1
