"""Many jobs: those that are not on disk yet are run, in processes, and each is on disk when it ends.

The first Ctrl-C lets the runs in hand end and then stops, the second stops at once; a finished run
is never lost, and the same command goes on from there.
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

from ...base.errors import DataError, FlamestError
from ...base.process import Shutdown
from ...base.progress import progress_bar
from .features import ExperimentData, FeatureSource, open_features
from .jobs import LASTING, Job, Results, RunFailure, RunFolder, RunResult, job_key, unique
from .splits import SplitRule, split_data
from .training import run_job


class Stopped(FlamestError):
    """The person asked to stop before all runs were done."""

    code = "stopped"


@dataclass(frozen=True)
class WorkerConfig:
    """What a process needs to run jobs."""

    source: FeatureSource
    runs: Path  # OUT/runs
    dataset: str = ""
    videos: Path | None = None  # of the official split files
    processes: int = 1


def run_jobs(
    jobs: Sequence[Job], data: ExperimentData, place: WorkerConfig, *, stop: Shutdown | None = None
) -> Results:
    """Every job's result, from disk or by running it.

    A run that cannot be (LASTING) has a RunFailure, any other error ends the command. The splits are made
    before the first run, so that theirs come first. Raises Stopped when ``stop`` was asked for before all
    were done, DataError and UsageError as split_data does.
    """
    stop = stop or Shutdown()
    folder = RunFolder(place.runs)
    keys = _keys(unique(jobs), data, place)
    found = {job: folder.find(key) for job, key in keys.items()}
    missing = [job for job, result in found.items() if result is None]
    if missing:
        title = f"running {len(missing)} of {len(keys)} trainings"
        with progress_bar(title, len(missing), unit="trainings") as progress:
            together = [job for job in missing if not job.timed]
            if place.processes > 1 and len(together) > 1:
                _in_processes({job: keys[job] for job in together}, place, stop, progress.advance)
                missing = [job for job in missing if job.timed]
            for job in missing:
                if stop.requested:
                    break
                _run_and_keep(job, keys[job], data, place)
                progress.advance()
    results = {job: result or folder.find(keys[job]) for job, result in found.items()}
    left = sum(1 for result in results.values() if result is None)
    if left:
        raise Stopped(f"stopped with {left} of {len(keys)} trainings to do", fix="run the same command to go on")
    return {job: result for job, result in results.items() if result is not None}


def _keys(jobs: Sequence[Job], data: ExperimentData, place: WorkerConfig) -> dict[Job, str]:
    rows: dict[SplitRule, str] = {}
    for rule in dict.fromkeys(job.split for job in jobs):
        split = split_data(data, rule, dataset=place.dataset, videos=place.videos)
        rows[rule] = split.digest if rule.official else ""
    return {job: job_key(job, data.digest(job.extractor), rows[job.split]) for job in jobs}


def _run_and_keep(job: Job, key: str, data: ExperimentData, place: WorkerConfig) -> None:
    result: RunResult | RunFailure
    try:
        result = run_job(job, data, dataset=place.dataset, videos=place.videos)
    except DataError as error:
        if error.code not in LASTING:
            raise
        result = RunFailure(error.code, error.message)
    RunFolder(place.runs).keep(key, data.digest(job.extractor), job, result)


def _in_processes(jobs: Mapping[Job, str], place: WorkerConfig, stop: Shutdown, advance: Callable[[], None]) -> None:
    # Spawned, not forked: ONNX Runtime's threads do not survive a fork.
    pool = ProcessPoolExecutor(
        min(place.processes, len(jobs)), multiprocessing.get_context("spawn"), _ignore_interrupts
    )
    waiting = list(jobs.items())[::-1]
    running: set[Future[None]] = set()
    try:
        while running or (waiting and not stop.requested):
            while waiting and len(running) < place.processes and not stop.requested:
                running.add(pool.submit(_work, *waiting.pop(), place))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
                advance()
    except BrokenProcessPool as error:
        raise FlamestError(
            "a process that ran trainings was killed, perhaps for memory", fix="use --jobs 1, and run the command again"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ignore_interrupts() -> None:
    """Ctrl-C reaches all processes of a terminal: the parent decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@functools.lru_cache(maxsize=1)
def _opened(source: FeatureSource) -> ExperimentData:
    return open_features(source)


def _work(job: Job, key: str, place: WorkerConfig) -> None:
    _run_and_keep(job, key, _opened(place.source), place)
