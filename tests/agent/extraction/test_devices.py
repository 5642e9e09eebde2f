"""Extraction on several devices: the store is that of one process, and a worker that ends is reported."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flamest.agent.cli.main import app
from flamest.agent.extraction.chosen_devices import share_of, without_gpu, worker_setups
from flamest.agent.extraction.extract import extract_folder
from flamest.agent.extraction.report import ExtractRequest
from flamest.agent.extraction.store import FeatureStore
from flamest.agent.settings import load_agent_settings
from flamest.base.errors import DataError, SettingsError
from flamest.runtime import device_workers
from flamest.runtime.backends.machine import Gpu, MachineFacts
from flamest.runtime.backends.options import BackendOptions
from flamest.runtime.extractor import Extractor
from flamest.runtime.pipeline_options import PipelineOptions
from typer.testing import CliRunner

CRASHING = Path(__file__).parents[2] / "runtime" / "crashing_worker.py"


@pytest.fixture(scope="module")
def videos(clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for number in range(6):
        clips.write_clip(folder / f"class{number % 2}" / f"{number}.avi", frames=12 + number, seed=number, noise=10)
    return folder


def stored(path):
    with FeatureStore.open(path, read_only=True) as store:
        return store.read()


def test_two_workers_fill_the_store_as_one_process_does(toy_bundle, videos, tmp_path):
    one = ExtractRequest(toy_bundle, videos, tmp_path / "one.sqlite", threads=1)
    two = ExtractRequest(toy_bundle, videos, tmp_path / "two.sqlite", threads=2, device="cpu,cpu")
    reports = [extract_folder(request) for request in (one, two)]
    assert [report.extracted for report in reports] == [6, 6]
    assert [list(report.pipeline) for report in reports] == [["cpu"], ["cpu", "cpu (2)"]]
    assert reports[1].placements
    assert reports[1].peak_mb > 0
    alone, shared = (stored(request.store) for request in (one, two))
    assert (shared.clips, shared.labels, shared.captions) == (alone.clips, alone.labels, alone.captions)
    np.testing.assert_array_equal(shared.x, alone.x)


def test_outcomes_that_are_there_together_are_stored_in_one_transaction(toy_bundle, videos, tmp_path, monkeypatch):
    groups, add_rows, extract_all = [], FeatureStore.add_rows, Extractor.extract_all

    def together(self, clips, *, stop):
        found = list(extract_all(self, clips, stop=stop))
        for number, done in enumerate(found, 1):
            yield replace(done, more=number not in (4, len(found)))

    def counted(self, rows):
        rows = list(rows)
        groups.append(len(rows))
        add_rows(self, rows)

    monkeypatch.setattr(Extractor, "extract_all", together)
    monkeypatch.setattr(FeatureStore, "add_rows", counted)
    report = extract_folder(ExtractRequest(toy_bundle, videos, tmp_path / "s.sqlite", threads=1))
    assert (report.extracted, groups) == (6, [4, 2])
    assert len(stored(tmp_path / "s.sqlite").clips) == 6


def test_a_worker_that_ends_is_reported_and_its_clip_fails(toy_bundle, videos, clips, tmp_path, monkeypatch):
    monkeypatch.setattr(device_workers, "PROGRAM", CRASHING)
    own = tmp_path / "own"
    clips.write_clip(own / "class0" / "poison.avi", frames=14)
    for path in videos.rglob("*.avi"):
        (own / path.parent.name).mkdir(exist_ok=True)
        (own / path.parent.name / path.name).hardlink_to(path)
    report = extract_folder(ExtractRequest(toy_bundle, own, tmp_path / "s.sqlite", threads=2, device="cpu,cpu"))
    assert report.extracted == 6
    (failed,) = report.failed
    assert failed.clip == "class0/poison.avi"
    assert failed.reason.startswith("worker_crashed: 2 worker processes ended while they had it")
    assert [crash.device for crash in report.crashes] == ["cpu", "cpu"]
    again = extract_folder(ExtractRequest(toy_bundle, own, tmp_path / "s.sqlite", threads=1))
    assert (again.extracted, again.failed) == (1, ())  # it was not the file's fault: the next run tries it


def test_the_command_takes_devices_and_sizes_and_reports_them(toy_bundle, videos, tmp_path):
    arguments = ["--bundle", toy_bundle, "--videos", videos, "--store", tmp_path / "s.sqlite"]
    options = ["--device", "cpu", "--readers", "2", "--batch", "3", "--json"]
    done = CliRunner().invoke(app, ["extract", *map(str, arguments), *options])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["pipeline"] == {"cpu": {"readers": 2, "batch": 3, "captions": 4}}
    assert report["crashes"] == []
    shown = CliRunner().invoke(app, ["extract", *map(str, arguments[:-1]), str(tmp_path / "t.sqlite")])
    assert "cpu: " in shown.output
    assert "1 clip in one run, 4 captions at once" in shown.output


@pytest.mark.parametrize(("device", "code", "status"), [("gpu", "usage", 2), ("cuda:7", "no_device", 78)])
def test_a_device_that_cannot_be_used_is_an_error(toy_bundle, videos, tmp_path, device, code, status):
    arguments = ["--bundle", toy_bundle, "--videos", videos, "--store", tmp_path / "s.sqlite", "--device", device]
    done = CliRunner().invoke(app, ["extract", *map(str, arguments), "--json"])
    assert done.exit_code == status
    error = json.loads(done.stdout.splitlines()[-1])["error"]
    assert error["code"] == code
    assert "--device" in error["message"]
    assert error["fix"]


def test_workers_share_cores_readers_and_memory(toy_bundle, videos, tmp_path, monkeypatch):
    gpus = (Gpu("A", "9.0", 80_000), Gpu("B", "9.0", 80_000))
    facts = MachineFacts(gpu=gpus[0], gpus=gpus)
    monkeypatch.setattr("flamest.agent.extraction.chosen_devices.machine_facts", lambda: facts)
    request = ExtractRequest(
        toy_bundle, videos, tmp_path / "s", threads=12, pipeline=PipelineOptions(readers=9), device="all"
    )
    setups = worker_setups(request)
    assert [str(device) for device, _ in setups] == ["cuda:0", "cuda:1"]
    assert [setup.pipeline.readers for _, setup in setups] == [5, 4]
    for _, setup in setups:
        assert (setup.threads, setup.pipeline.workers, setup.needs_gpu) == (6, 2, True)
    assert share_of(PipelineOptions(), 3) == PipelineOptions(workers=3)
    assert without_gpu(facts).gpu is None
    assert worker_setups(ExtractRequest(toy_bundle, videos, tmp_path / "s", device="cpu")) == []


@pytest.mark.parametrize(
    ("device", "on_gpu"), [("", True), ("cuda:0", True), ("all", True), ("cpu", False), ("cpu, cpu", False)]
)
def test_precision_auto_measures_for_the_devices_that_are_named(
    toy_bundle, videos, tmp_path, monkeypatch, device, on_gpu
):
    facts = MachineFacts(gpu=Gpu("A", "9.0", 80_000), gpus=(Gpu("A", "9.0", 80_000),))
    monkeypatch.setattr("flamest.agent.extraction.chosen_devices.machine_facts", lambda: facts)
    asked = []

    def autotune(request, clips, **_):
        asked.append(request.facts)
        raise DataError("far enough", fix="none")

    monkeypatch.setattr("flamest.agent.extraction.precision_policy.autotune_backends", autotune)
    options = BackendOptions(autotune=True)
    with pytest.raises(DataError, match="far enough"):
        extract_folder(ExtractRequest(toy_bundle, videos, tmp_path / "s", backend_options=options, device=device))
    assert [each is None or each.gpu is not None for each in asked] == [on_gpu]


def test_agent_toml_takes_device_readers_batch_and_captions(tmp_path):
    path = tmp_path / "agent.toml"
    head = 'state = "s"\nstore = "f"\n[coordinator]\naddress = "a:1"\nca = "c"\ncertificate = "d"\nkey = "k"\n[work]\n'
    path.write_text(head + 'device = "cuda:0,cuda:1"\nreaders = 32\nbatch = 16\ncaptions = 64\n')
    work = load_agent_settings(path).work
    assert (work.device, work.pipeline()) == ("cuda:0,cuda:1", PipelineOptions(32, 16, 64))
    assert work.pipeline(batch=8) == PipelineOptions(32, 8, 64)
    path.write_text(head + 'device = "gpu"\nreaders = 0\n')
    with pytest.raises(SettingsError, match=r"work.readers: expected 1 to 1024; work: --device gpu") as caught:
        load_agent_settings(path)
    assert caught.value.fix
