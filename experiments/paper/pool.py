"""Run many jobs in processes: those without a file are run, and each result is written as soon as it ends.

The first Ctrl-C lets the current runs finish, the second stops at once. A finished run is never lost, and
the same command resumes from there.
"""

from __future__ import annotations

import functools
import multiprocessing
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from ...base.errors import DataError, FlamestError, interruption
from ...base.process import Shutdown
from ...base.progress import progress_bar
from .features import ExperimentData, FeatureSource, open_features
from .jobs import LASTING, Job, Results, RunFailure, RunFolder, RunResult, job_key, unique
from .splits import SplitRule, split_data
from .training import run_job


@dataclass(frozen=True)
class WorkerConfig:
    """Everything that a process needs to run jobs."""

    source: FeatureSource
    runs: Path  # OUT/runs
    dataset: str = ""
    videos: Path | None = None  # of the official split files
    processes: int = 1


def run_jobs(
    jobs: Sequence[Job], data: ExperimentData, worker: WorkerConfig, *, stop: Shutdown | None = None
) -> Results:
    """Every job's result, from disk or by running it.

    A run that always fails (LASTING) has a RunFailure; any other error ends the command. The splits are
    made before the first run, so that their errors come first. Raises Interrupted when ``stop`` was requested
    before all were done, DataError and UsageError as split_data does.
    """
    stop = stop or Shutdown()
    folder = RunFolder(worker.runs)
    keys = _keys(unique(jobs), data, worker)
    found = {job: folder.find(key) for job, key in keys.items()}
    missing = [job for job, result in found.items() if result is None]
    if missing:
        title = f"running {len(missing)} of {len(keys)} trainings"
        with progress_bar(title, len(missing), unit="trainings") as progress:
            parallel = [job for job in missing if not job.timed]
            if worker.processes > 1 and len(parallel) > 1:
                _run_in_processes({job: keys[job] for job in parallel}, worker, stop, progress.advance)
                missing = [job for job in missing if job.timed]
            for job in missing:
                if stop.requested:
                    break
                _run_and_store(job, keys[job], data, worker)
                progress.advance()
    results = {job: result or folder.find(keys[job]) for job, result in found.items()}
    left = sum(1 for result in results.values() if result is None)
    if left:
        raise interruption(
            stop.signal,
            f"stopped with {left} of {len(keys)} trainings left",
            fix="run the same command again to resume",
        )
    return {job: result for job, result in results.items() if result is not None}


def _keys(jobs: Sequence[Job], data: ExperimentData, worker: WorkerConfig) -> dict[Job, str]:
    rows: dict[SplitRule, str] = {}
    for rule in dict.fromkeys(job.split for job in jobs):
        split = split_data(data, rule, dataset=worker.dataset, videos=worker.videos)
        rows[rule] = split.digest if rule.official else ""
    return {job: job_key(job, data.digest(job.extractor), rows[job.split]) for job in jobs}


def _run_and_store(job: Job, key: str, data: ExperimentData, worker: WorkerConfig) -> None:
    result: RunResult | RunFailure
    try:
        result = run_job(job, data, dataset=worker.dataset, videos=worker.videos)
    except DataError as error:
        if error.code not in LASTING:
            raise
        result = RunFailure(error.code, error.message)
    RunFolder(worker.runs).store(key, data.digest(job.extractor), job, result)


def _run_in_processes(
    jobs: Mapping[Job, str], worker: WorkerConfig, stop: Shutdown, advance: Callable[[], None]
) -> None:
    # Spawned, not forked: ONNX Runtime's threads do not survive a fork.
    pool = ProcessPoolExecutor(
        min(worker.processes, len(jobs)), multiprocessing.get_context("spawn"), _ignore_interrupts
    )
    waiting = list(jobs.items())[::-1]
    running: set[Future[None]] = set()
    try:
        while running or (waiting and not stop.requested):
            while waiting and len(running) < worker.processes and not stop.requested:
                running.add(pool.submit(_run_in_worker, *waiting.pop(), worker))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
                advance()
    except BrokenProcessPool as error:
        raise FlamestError(
            "a training process was killed, perhaps for lack of memory", fix="run the command again with --jobs 1"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ignore_interrupts() -> None:
    """Leave Ctrl-C, which reaches all processes of a terminal, to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@functools.lru_cache(maxsize=1)
def _open_cached(source: FeatureSource) -> ExperimentData:
    return open_features(source)


def _run_in_worker(job: Job, key: str, worker: WorkerConfig) -> None:
    _run_and_store(job, key, _open_cached(worker.source), worker)
