"""Several devices by a worker process each: the same embeddings, and no clip lost with a worker."""

import os
import shutil
import signal
from collections import deque
from pathlib import Path

import pytest
from flamest.base.child_process import ChildEnded
from flamest.base.errors import DataError, SettingsError, UsageError
from flamest.base.files import Stopped, sha256_file
from flamest.runtime import device_workers
from flamest.runtime.backends.options import DEFAULT_OPTIONS
from flamest.runtime.clip_records import Clip
from flamest.runtime.device_workers import DeviceWorkers
from flamest.runtime.devices import Device, check_devices, parse_devices
from flamest.runtime.extractor import open_extractor
from flamest.runtime.pipeline_options import PipelineOptions
from flamest.runtime.video.decoder import DecodeLimits
from flamest.runtime.worker_messages import ClipFailed, WorkerOpened, WorkerSetup

CRASHING = Path(__file__).with_name("crashing_worker.py")


@pytest.fixture(scope="module")
def many(clips, tmp_path_factory):
    """Twelve clips, the fourth of them broken."""
    folder = tmp_path_factory.mktemp("many")
    paths = [clips.write_clip(folder / f"{seed}.avi", frames=12 + seed, seed=seed, noise=20) for seed in range(12)]
    paths[3].write_text("no video")
    return [Clip(path, sha256_file(path), f"class {index}") for index, path in enumerate(paths)]


@pytest.fixture
def poison(clips, tmp_path):
    path = clips.write_clip(tmp_path / "poison.avi", frames=14, seed=99)
    return Clip(path, sha256_file(path))


@pytest.fixture(scope="module")
def alone(toy_bundle, many):
    with open_extractor(toy_bundle, threads=1) as extractor:
        return {done.clip: bytes_of(done) for done in extractor.extract_all(many)}


def setups(toy_bundle, workers=2, **changes):
    fields = {
        "bundle": toy_bundle,
        "needs_gpu": False,
        "threads": 1,
        "pipeline": PipelineOptions(readers=1),
        "limits": DecodeLimits(),
        "trusted": (),
        "backend_options": DEFAULT_OPTIONS,
    }
    return [(Device(), WorkerSetup(**(fields | changes)))] * workers


def bytes_of(done):
    features = done.features
    if features is None:
        return done.error.code
    return features.vlm.tobytes(), features.cnn.tobytes(), features.caption, features.keyframe_times_s


@pytest.fixture
def opened(toy_bundle):
    workers = []

    def open_workers(count=2, **changes):
        workers.append(DeviceWorkers.open(setups(toy_bundle, count, **changes)))
        return workers[-1]

    yield open_workers
    for each in workers:
        each.close()


def test_embeddings_do_not_depend_on_the_number_of_workers(opened, many, alone):
    workers = opened(3)
    assert {done.clip: bytes_of(done) for done in workers.extract_all(many)} == alone
    assert not workers.crashes
    assert set(workers.placements) == {"keyframes", "vision", "text", "cnn"}
    assert list(workers.pipeline) == ["cpu", "cpu (2)", "cpu (3)"]
    assert workers.pipeline["cpu (3)"].readers == 1


def test_a_worker_that_is_killed_in_the_middle_costs_no_clip(opened, many, alone):
    workers, found = opened(4), {}
    for done in workers.extract_all(many):
        found[done.clip] = bytes_of(done)
        if len(found) == 3:
            victim = max(workers._workers, key=lambda worker: len(worker.held))
            held = len(victim.held)
            os.kill(victim.process.pid, signal.SIGKILL)
    assert found == alone
    (crash,) = workers.crashes
    assert crash.device == "cpu"
    assert "SIGKILL" in crash.reason
    assert 0 < crash.clips <= held


def test_a_clip_that_ends_two_workers_has_failed_and_no_other(opened, many, alone, poison, monkeypatch):
    monkeypatch.setattr(device_workers, "PROGRAM", CRASHING)
    workers = opened(2)
    found = {done.clip: done for done in workers.extract_all([*many[:5], poison, *many[5:]])}
    error = found.pop(poison).error
    assert error.code == "worker_crashed"
    assert "2 worker processes ended while they had it" in error.message
    assert {clip: bytes_of(done) for clip, done in found.items()} == alone
    assert len(workers.crashes) == 2


def test_one_worker_alone_is_started_again(opened, many, alone, monkeypatch, poison):
    monkeypatch.setattr(device_workers, "PROGRAM", CRASHING)
    workers = opened(1)
    found = {done.clip: bytes_of(done) for done in workers.extract_all([poison, *many])}
    assert found.pop(poison) == "worker_crashed"
    assert found == alone


def test_workers_that_all_end_without_a_result_are_an_error(opened, poison, monkeypatch):
    monkeypatch.setattr(device_workers, "PROGRAM", CRASHING)
    monkeypatch.setattr(device_workers, "MOST_ATTEMPTS", 9)
    monkeypatch.setattr(device_workers, "MOST_RESTARTS", 1)
    workers = opened(2)
    with pytest.raises(SettingsError, match="no worker process is left"):
        list(workers.extract_all([poison]))
    assert len(workers.crashes) == 2 * (1 + device_workers.MOST_RESTARTS)


def test_a_worker_that_sees_no_gpu_is_an_error(opened):
    with pytest.raises(SettingsError, match="the worker sees no GPU") as caught:
        opened(1, needs_gpu=True)
    assert caught.value.code == "no_device"


# --- who gets which clip: workers without a process ---


class FakeProcess:
    """Finishes its clips in the order in which they came; ends at those of ``ends``, once it holds ``ends_with``."""

    def __init__(self, ends=(), ends_with=1, opens=True):
        self.ends, self.ends_with, self.channel = ends, ends_with, self
        self.answers = [WorkerOpened((), 1, 1, 1, 2)] if opens else []
        self.got, self.together = deque(), []  # numbers; those that it held at once

    def send(self, message):
        self.got.append(message.number)
        self.together.append(tuple(self.got))

    @property
    def ready(self):
        least = self.ends_with if self.got and self.got[0] in self.ends else 1
        return bool(self.answers) or len(self.got) >= least

    def receive(self, kind, **_):
        if self.answers:
            return self.answers.pop(0), b""
        if self.got[0] in self.ends:
            raise ChildEnded("signal SIGKILL")
        return ClipFailed(self.got.popleft(), "fine", "as expected", "none"), b""

    def close(self, **_):
        pass

    kill = close


@pytest.fixture
def fake(monkeypatch):
    """Open workers of these processes; those started later are ``later``'s, an error is raised. All processes."""

    def open_fake(first, later=()):
        coming, started = iter([*first, *later]), []

        def start(name, device, setup):
            process = next(coming)
            if isinstance(process, Exception):
                raise process
            started.append(process)
            return device_workers._Worker(name, device, setup, process)

        monkeypatch.setattr(device_workers, "_start", start)
        monkeypatch.setattr(
            device_workers, "ready_channels", lambda channels, _: [channel for channel in channels if channel.ready]
        )
        return DeviceWorkers.open([(Device(), None)] * len(first)), started

    return open_fake


def outcomes(workers, count=40):
    found = {}
    for done in workers.extract_all(Clip(Path(f"{number}.mp4"), str(number)) for number in range(count)):
        number = int(done.clip.sha256)
        assert number not in found
        found[number] = done.error.code
    return found


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("ends", [{0}, {3}, {0, 4}, {5, 11, 12, 39}])
def test_clips_next_to_one_that_ends_workers_never_fail(fake, workers, ends):
    opened, processes = fake([FakeProcess(ends) for _ in range(workers)], [FakeProcess(ends) for _ in range(99)])
    found = outcomes(opened)
    assert {number for number, code in found.items() if code == "worker_crashed"} == ends
    assert set(found) == set(range(40))
    tried = set()
    for process in processes:
        for together in process.together:
            again = [number for number in together if number in tried]
            assert not again or len(together) == 1, "a suspect ran next to another clip"
        if process.got:
            tried |= set(process.got)


def test_all_workers_take_suspects_once_new_clips_are_gone(fake):
    opened, processes = fake([FakeProcess({0}, ends_with=10), *(FakeProcess() for _ in range(3))], [FakeProcess()])
    assert len(outcomes(opened)) == 40
    suspects = set(processes[0].got)
    took = [[together for together in process.together if suspects & {*together}] for process in processes[1:]]
    assert all(took), "a worker took none"
    assert {len(together) for each in took for together in each} == {1}
    assert [crash.clips for crash in opened.crashes] == [10]


def test_a_restart_that_fails_does_not_end_the_others(fake):
    no_memory = SettingsError("no memory", fix="free some", code="worker_crashed")
    opened, _ = fake([FakeProcess({0, 1}), FakeProcess()], [no_memory])
    assert set(outcomes(opened)) == set(range(40))
    assert [crash.reason for crash in opened.crashes] == ["signal SIGKILL", "no memory"]


def test_results_before_an_error_come_first(fake, monkeypatch):
    opened, _ = fake([FakeProcess(), FakeProcess({1})])
    monkeypatch.setattr(opened, "_replace", lambda *_: (_ for _ in ()).throw(OSError("broken")))
    coming = opened.extract_all([Clip(Path("0.mp4"), "0"), Clip(Path("1.mp4"), "1")])
    assert next(coming).error.code == "fine"
    with pytest.raises(OSError, match="broken"):
        next(coming)


def test_a_restarted_worker_that_never_opens_is_given_up(fake, monkeypatch):
    monkeypatch.setattr(device_workers, "OPENING_S", 0.05)
    opened, _ = fake([FakeProcess({0})], [FakeProcess(opens=False)])
    with pytest.raises(SettingsError, match="no worker process is left"):
        outcomes(opened)
    assert "did not open its networks within" in opened.crashes[-1].reason


def test_a_worker_is_started_again_as_often_as_documented(fake):
    everything = set(range(40))
    opened, processes = fake([FakeProcess(everything)], [FakeProcess(everything) for _ in range(9)])
    with pytest.raises(SettingsError, match="no worker process is left"):
        outcomes(opened)
    assert len(processes) == 1 + 5


def test_a_damaged_bundle_is_the_same_error_with_workers_as_without(toy_bundle, opened, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(toy_bundle, copy)
    (copy / "cnn.onnx").write_bytes(b"damaged")
    with pytest.raises(DataError) as alone:
        open_extractor(copy)
    with pytest.raises(DataError) as caught:
        opened(1, bundle=copy)
    assert (caught.value.code, caught.value.message) == (alone.value.code, alone.value.message)
    assert caught.value.exit_code == 65


def test_workers_that_are_asked_to_stop_end_within_seconds(opened, many, toy_bundle):
    workers = opened(2)
    for worker in workers._workers:
        os.kill(worker.process.pid, signal.SIGSTOP)
    with pytest.raises(Stopped):
        list(workers.extract_all(many, stop=lambda: True))
    with pytest.raises(Stopped):
        DeviceWorkers.open(setups(toy_bundle), stop=lambda: True)


# --- names of devices ---

GPUS = ["NVIDIA H200", "NVIDIA H200"]


@pytest.mark.parametrize(
    ("words", "devices"),
    [
        ("cuda:1", (Device(1),)),
        (" cuda:0 , cuda:1", (Device(0), Device(1))),
        ("all", (Device(0), Device(1))),
        ("cpu,cpu", (Device(), Device())),
    ],
)
def test_devices_are_named_one_by_one_or_all_gpus(words, devices):
    check_devices(words)
    assert parse_devices(words, GPUS) == devices


@pytest.mark.parametrize("words", ["", "gpu", "cuda", "cuda:-1", "cuda:0,,cuda:1", "cuda:0,cuda:0", "cpu,all"])
def test_other_words_for_devices_are_refused(words):
    with pytest.raises(UsageError, match="--device") as caught:
        check_devices(words)
    assert caught.value.fix


@pytest.mark.parametrize(("words", "fix"), [("cuda:0,cuda:0", "cuda:0;"), ("cuda:1,cpu,cuda:1", "cuda:1,cpu;")])
def test_a_gpu_named_twice_is_named_once_in_the_fix(words, fix):
    with pytest.raises(UsageError, match="each GPU once") as caught:
        check_devices(words)
    assert caught.value.fix.startswith(f"--device {fix}")


def test_a_comma_without_a_device_is_named():
    with pytest.raises(UsageError, match="a device is missing beside a comma"):
        check_devices(",")


@pytest.mark.parametrize("words", ["all", "cuda:0", "cpu,cuda:0"])
def test_without_any_gpu_the_reason_is_given_and_no_choice_offered(words):
    with pytest.raises(SettingsError, match="no GPU can be used here: no driver") as caught:
        parse_devices(words, [], problem="no driver")
    assert caught.value.code == "no_device"
    assert "name one" not in caught.value.fix


def test_a_missing_gpu_is_an_error_that_lists_those_there():
    with pytest.raises(SettingsError, match=r"found: cuda:0 \(NVIDIA H200\), cuda:1") as caught:
        parse_devices("cuda:2", GPUS)
    assert caught.value.code == "no_device"


@pytest.mark.parametrize(
    ("device", "visible", "seen"),
    [(Device(1), None, "1"), (Device(1), "", "1"), (Device(1), "4, GPU-3c5e", "GPU-3c5e"), (Device(), "0", "")],
)
def test_a_worker_sees_the_gpu_that_it_is_for_alone(device, visible, seen, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert device.environment() == {"CUDA_VISIBLE_DEVICES": seen}
