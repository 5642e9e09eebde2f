"""Feeding of a GPU, simulated: does the output reach the slower of device and readers, and with how many cores?

The Extractor is the real one: its threads, queues, batches and copies. Device and decoders only take their time
(simulated_gpu.py). What the machine that runs this does per clip is measured as processor time; decoding and preparing
are added as they were measured (docs/benchmarks/speed.md).

    python -m bench.gpu_feed
"""

from __future__ import annotations

import json
import os
import resource
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from flamest.base.child_process import ChildProcess
from flamest.runtime import device_workers
from flamest.runtime.backends.options import DEFAULT_OPTIONS
from flamest.runtime.clip_records import Clip
from flamest.runtime.device_workers import DeviceWorkers
from flamest.runtime.devices import Device
from flamest.runtime.extractor import PipelineOptions
from flamest.runtime.video.decoder import DecodeLimits
from flamest.runtime.worker_messages import WorkerSetup

from .record import store_result
from .simulated_gpu import Rates, simulated_extractor

RATES = ((100.0, True), (300.0, True), (1200.0, False))  # clips per second; from files, or with prepared frames
MARGIN = 1.5  # by which the faster side is faster
SECONDS = 12.0  # of one measurement, without the first clips, which fill the pipeline
WORKERS, CRASH_RATE, CRASH_CLIPS = 4, 100.0, 2400  # a worker is a process with a simulated GPU of its own
READING_MS = 74.0  # processor time of a decoder process and its preparing: a 7 s H.264 clip of 320 × 240 (FACTS)


def measure() -> dict[str, Any]:
    """Output and processor time at each rate, with the device and with the readers as the slower side."""
    found = []
    for rate, keyframes in RATES:
        for slower, rates in (
            ("device", Rates(rate, MARGIN * rate, keyframes)),
            ("readers", Rates(MARGIN * rate, rate, keyframes)),
        ):
            case = {"clips_per_second": rate, "keyframes_on_the_device": keyframes, "slower": slower}
            found.append({**case, **_measure(rates, rate)})
    return {
        "load": os.getloadavg()[0],
        "seconds": SECONDS,
        "reading_ms": READING_MS,
        "rates": found,
        "one_of_four_workers_killed": _crash(),
    }


def _measure(rates: Rates, rate: float) -> dict[str, float]:
    # A reader takes 80 ms for a clip here; its time is spent in another process.
    readers = max(2, round(0.08 * rates.readers))
    with simulated_extractor(rates, PipelineOptions(readers=readers)) as extractor:
        warm_up = 2 * extractor.most_in_work
        clips = int(warm_up + rate * SECONDS)
        began = used = 0.0
        for number, _ in enumerate(extractor.extract_all(Clip(Path("clip"), "0" * 64) for _ in range(clips)), 1):
            if number == warm_up:
                began, used = time.perf_counter(), _cpu_s()
        seconds, cpu = time.perf_counter() - began, _cpu_s() - used
        sizes = extractor.sizes
    output = (clips - warm_up) / seconds
    own_ms = 1e3 * cpu / (clips - warm_up)
    return {
        "output": output,
        "share": output / rate,
        "own_ms_per_clip": own_ms,
        "own_cores": own_ms * rate / 1e3,
        "reading_cores": READING_MS * rate / 1e3,
        "readers": sizes.readers,
        "batch": sizes.batch,
        "captions": sizes.captions,
    }


def _crash() -> dict[str, Any]:
    """Four workers, of which one is killed when a third of the clips is done: which clips come back, and how fast."""
    each, clips = CRASH_RATE / WORKERS, [Clip(Path(f"{number}"), "0" * 64) for number in range(CRASH_CLIPS)]
    with mock.patch.object(device_workers, "ChildProcess", partial(_simulated_worker, each)):
        workers = DeviceWorkers.open([(Device(), _SETUP)] * WORKERS)
        with closing(workers):
            found: list[str] = []
            began = time.perf_counter()
            for done in workers.extract_all(clips):
                found.append(str(done.clip.path))
                if len(found) == CRASH_CLIPS // 3:
                    workers.processes[0].interrupt()
            seconds = time.perf_counter() - began
            crashes = [vars(crash) for crash in workers.crashes]
    return {
        "workers": WORKERS,
        "clips": CRASH_CLIPS,
        "lost": len(clips) - len(set(found)),
        "twice": len(found) - len(set(found)),
        "crashes": crashes,
        "clips_per_second": len(found) / seconds,
        "rate_of_the_workers": CRASH_RATE,
    }


def _simulated_worker(rate: float, _program: str, *, environment: dict[str, str]) -> ChildProcess:
    readers = max(2, round(0.08 * 1.5 * rate))
    paths = filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")])  # bench is not installed
    found = {**environment, "PYTHONPATH": os.pathsep.join(paths)}
    return ChildProcess("bench.simulated_worker", str(rate), str(readers), environment=found)


_SETUP = WorkerSetup(Path("simulated"), False, 1, PipelineOptions(), DecodeLimits(), (), DEFAULT_OPTIONS)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    figures = measure()
    print(json.dumps(figures, indent=2))
    print(f"stored in {store_result('gpu_feed', figures)}")
