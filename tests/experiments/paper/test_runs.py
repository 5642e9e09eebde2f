"""Runs of jobs: keys, stored results, processes, interruption and failures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import pytest
from flamest.agent.extraction.store import FeatureStore
from flamest.base.errors import DataError, Interrupted, UsageError
from flamest.base.process import Shutdown
from flamest.experiments.paper import pool
from flamest.experiments.paper.features import FeatureSource, open_features
from flamest.experiments.paper.inputs import OTHER, ExperimentInputs, Settings
from flamest.experiments.paper.jobs import PartitionRule, RunFailure, RunFolder, RunResult, job_key
from flamest.experiments.paper.pool import WorkerConfig, run_jobs
from flamest.experiments.paper.splits import SplitRule, split_data
from flamest.fedproto.records import Strategy, TrainSettings

QUICK = TrainSettings(epochs=1, batch_size=64, learning_rate=0.01)


def test_another_job_or_other_data_has_another_key(inputs: ExperimentInputs) -> None:
    job, digest = inputs.job(), inputs.data.digest("blip+slow")
    others = [
        msgspec.structs.replace(job, seed=1),
        msgspec.structs.replace(job, split=SplitRule("groups", seed=1)),
        msgspec.structs.replace(job, partition=PartitionRule("dirichlet", beta=0.5)),
        msgspec.structs.replace(job, strategy=Strategy(server_momentum=0.5)),
        msgspec.structs.replace(job, train=TrainSettings(epochs=2)),
    ]
    keys = {job_key(other, digest) for other in others} | {job_key(job, "another digest")}
    assert len(keys) == 6
    assert job_key(job, digest) not in keys
    assert job_key(job, digest) == job_key(inputs.job(), digest)


def test_a_finished_run_is_not_run_again(
    inputs: ExperimentInputs, worker: WorkerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_jobs([inputs.job()], inputs.data, worker)
    monkeypatch.setattr(pool, "run_job", lambda *_, **__: pytest.fail("ran again"))
    again = run_jobs([inputs.job()], inputs.data, worker)
    assert first == again
    [file] = worker.runs.glob("*.json")
    file.write_bytes(file.read_bytes()[:-40])  # a truncated file is no result
    with pytest.raises(pytest.fail.Exception):
        run_jobs([inputs.job()], inputs.data, worker)


def test_the_number_of_processes_does_not_change_a_model(
    inputs: ExperimentInputs, worker: WorkerConfig, tmp_path: Path
) -> None:
    jobs = [inputs.job(seed=seed) for seed in range(2)]
    one = run_jobs(jobs, inputs.data, worker)
    two = run_jobs(jobs, inputs.data, WorkerConfig(worker.source, tmp_path / "other", processes=2))
    assert [one[job].model_sha256 for job in jobs] == [two[job].model_sha256 for job in jobs]
    assert one[jobs[0]].model_sha256 != one[jobs[1]].model_sha256


def test_stopping_keeps_finished_runs_and_the_next_call_resumes(
    inputs: ExperimentInputs, worker: WorkerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, stop, ran = [inputs.job(seed=seed) for seed in range(3)], Shutdown(), []
    run_job = pool.run_job

    def run_and_stop(job, *rest, **named):
        ran.append(job)
        stop.request()
        return run_job(job, *rest, **named)

    monkeypatch.setattr(pool, "run_job", run_and_stop)
    with pytest.raises(Interrupted, match="2 of 3 trainings left"):
        run_jobs(jobs, inputs.data, worker, stop=stop)
    assert len(run_jobs(jobs, inputs.data, worker)) == 3
    assert ran == jobs


def official(worker: WorkerConfig, videos: Path) -> WorkerConfig:
    return dataclasses.replace(worker, dataset="ucf101", videos=videos)


def write_split_files(inputs: ExperimentInputs, videos: Path, *, test_group: str) -> None:
    files = videos / "ucfTrainTestlist"
    files.mkdir(parents=True, exist_ok=True)
    sides: dict[str, list[str]] = {"train": [], "test": []}
    for note in inputs.data.clips:
        sides["test" if f"/{test_group}_" in note.path else "train"].append(note.path)
    for side, paths in sides.items():
        (files / f"{side}list01.txt").write_text("\n".join(paths) + "\n")


@pytest.fixture
def flat(tmp_path: Path, inputs: ExperimentInputs) -> ExperimentInputs:
    """The same features with distinct file names, like UCF101's."""
    from flamest.agent.extraction.store import FeatureRow
    from flamest.runtime.clip_records import Clip

    with FeatureStore.open(tmp_path / "flat.sqlite") as store:
        x = inputs.data.x("slow")
        names = [f"{note.path.replace('/', '_')}" for note in inputs.data.clips]
        names = [f"{note.label}/{note.group}_{name}" for note, name in zip(inputs.data.clips, names, strict=True)]
        store.add_rows(
            (name, FeatureRow(Clip(Path(name), note.sha256, note.label, note.group), x[row], 0, "f", "fp32"))
            for row, (name, note) in enumerate(zip(names, inputs.data.clips, strict=True))
        )
    data = open_features(FeatureSource(store=tmp_path / "flat.sqlite"))
    return ExperimentInputs(data, Settings("ucf101", OTHER, 1, 1, QUICK, SplitRule("official-1")))


def test_missing_split_files_end_the_command_and_store_nothing(flat: ExperimentInputs, worker: WorkerConfig) -> None:
    videos = worker.runs.parent / "videos"
    videos.mkdir()
    job, with_files = flat.job(), official(worker, videos)
    with pytest.raises(DataError, match="official split files of UCF101 are missing"):
        run_jobs([job], flat.data, with_files)
    write_split_files(flat, videos, test_group="g0")
    [first] = run_jobs([job], flat.data, with_files).values()
    assert isinstance(first, RunResult)
    write_split_files(flat, videos, test_group="g1")  # other files are another split, and another run
    [second] = run_jobs([job], flat.data, with_files).values()
    assert isinstance(second, RunResult)
    assert first.model_sha256 != second.model_sha256


def test_only_lasting_failures_are_read_from_a_file(inputs: ExperimentInputs, worker: WorkerConfig) -> None:
    job, digest = inputs.job(), inputs.data.digest("blip+slow")
    folder = RunFolder(worker.runs)
    for code, lasts in (("no_split_files", False), ("diverged", True)):
        folder.store(job_key(job, digest), digest, job, RunFailure(code, "reason"))
        assert (folder.find(job_key(job, digest)) is not None) is lasts


def test_an_error_of_the_machine_ends_the_command(
    inputs: ExperimentInputs, worker: WorkerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise DataError("the store is gone")

    monkeypatch.setattr(pool, "run_job", fail)
    with pytest.raises(DataError, match="the store is gone"):
        run_jobs([inputs.job()], inputs.data, worker)
    assert not list(worker.runs.glob("*.json"))


def test_clips_of_one_group_cannot_be_split_by_groups(make_stores, tmp_path: Path, worker: WorkerConfig) -> None:
    folder = make_stores(tmp_path / "one", groups=1)
    data = open_features(FeatureSource(folder=folder))
    inputs = ExperimentInputs(data, Settings("", OTHER, 1, 1, QUICK, SplitRule()))
    with pytest.raises(DataError, match="4 clips in 1 groups leaves 4 to train on and 0 to test on") as caught:
        run_jobs([inputs.job()], data, worker)
    assert "--split paper" in caught.value.fix


def test_best_is_over_the_rounds_and_last_is_the_final_model(inputs: ExperimentInputs, worker: WorkerConfig) -> None:
    job = inputs.job(rounds=4)
    [result] = run_jobs([job], inputs.data, worker).values()
    assert isinstance(result, RunResult)
    assert len(result.curve) == 4
    assert result.last == result.curve[-1]
    assert result.best == max(result.curve)
    split = split_data(inputs.data, job.split)
    assert result.last == np.mean(np.array(result.predictions) == inputs.data.y[split.test])
    assert not set(np.array(inputs.data.groups)[split.train]) & set(np.array(inputs.data.groups)[split.test])


def test_both_modalities_together_are_better_than_either(inputs: ExperimentInputs, worker: WorkerConfig) -> None:
    train = TrainSettings(epochs=5, batch_size=16, learning_rate=0.003)
    jobs = {name: inputs.job(name, train=train, rounds=5) for name in ("blip", "slow", "blip+slow")}
    results = run_jobs(list(jobs.values()), inputs.data, worker)
    last = {name: results[job].last for name, job in jobs.items()}
    assert last["blip+slow"] > 0.9
    assert max(last["blip"], last["slow"]) < 0.75


def test_an_official_split_without_a_data_set_is_refused(inputs: ExperimentInputs) -> None:
    with pytest.raises(UsageError, match="official-1 needs --dataset"):
        split_data(inputs.data, SplitRule("official-1"))
