"""Storing of a benchmark's figures as a JSON file, with the machine and versions they were measured on."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("numpy", "onnxruntime", "torch", "grpcio", "av", "scikit-learn")


def interleaved_ms(candidates: dict[str, Callable[[], object]], *, repeats: int) -> dict[str, dict[str, float]]:
    """Median and least milliseconds of each candidate; one warm-up each, then one run of each per repeat.

    Interleaved, because the machine is shared: a disturbance slows all candidates.
    """
    for run in candidates.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, run in candidates.items():
            started = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - started) * 1e3)
    return {name: {"median_ms": statistics.median(each), "least_ms": min(each)} for name, each in times.items()}


def machine() -> dict[str, Any]:
    """Processor, cores and versions, without the name of the host."""
    processor = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": versions,
    }


def store_result(name: str, figures: dict[str, Any]) -> Path:
    """Write ``bench/results/NAME.json``."""
    path = RESULTS / f"{name}.json"
    measured = time.strftime("%Y-%m-%d", time.gmtime())
    path.write_text(json.dumps({"measured": measured, "machine": machine(), **figures}, indent=2) + "\n")
    return path
