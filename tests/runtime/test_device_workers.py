"""Several devices by a worker process each: the same embeddings, and no clip lost with a worker."""

import os
import signal
from pathlib import Path

import pytest
from flamest.base.errors import SettingsError, UsageError
from flamest.base.files import Stopped, sha256_file
from flamest.runtime import device_workers
from flamest.runtime.backends.options import DEFAULT_OPTIONS
from flamest.runtime.clip_records import Clip
from flamest.runtime.device_workers import DeviceWorkers
from flamest.runtime.devices import Device, check_devices, parse_devices
from flamest.runtime.extractor import open_extractor
from flamest.runtime.pipeline_options import PipelineOptions
from flamest.runtime.video.decoder import DecodeLimits
from flamest.runtime.worker_messages import WorkerSetup

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
    assert workers.pipeline["cpu"].readers == 1


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
    workers = opened(2)
    with pytest.raises(SettingsError, match="no worker process is left"):
        list(workers.extract_all([poison]))
    assert len(workers.crashes) == 2 * device_workers.MOST_STARTS


def test_a_bundle_that_cannot_be_opened_is_the_workers_error(opened, toy_bundle, tmp_path):
    with pytest.raises(SettingsError) as caught:
        opened(2, bundle=tmp_path / "none")
    assert caught.value.fix
    with pytest.raises(SettingsError, match="the worker sees no GPU") as caught:
        opened(1, needs_gpu=True)
    assert caught.value.code == "no_device"


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


@pytest.mark.parametrize(("words", "gpus"), [("cuda:2", GPUS), ("all", []), ("cuda:0", [])])
def test_a_missing_gpu_is_an_error_that_lists_those_there(words, gpus):
    with pytest.raises(SettingsError, match=r"found: (cuda:0 \(NVIDIA H200\), cuda:1|no driver)") as caught:
        parse_devices(words, gpus, problem="no driver")
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
