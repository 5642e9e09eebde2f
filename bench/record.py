"""A measurement as a JSON file: the figures, and the machine and versions they hold for."""

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


def interleaved_ms(contestants: dict[str, Callable[[], object]], *, repeats: int) -> dict[str, dict[str, float]]:
    """Run every contestant once per repeat, in turn, after one warm-up each: median and least ms.

    Turns, because the machine is shared: what slows one of them slows its neighbours too.
    """
    for run in contestants.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, run in contestants.items():
            started = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - started) * 1e3)
    return {name: {"median_ms": statistics.median(each), "least_ms": min(each)} for name, each in times.items()}


def machine() -> dict[str, Any]:
    """Processor, cores and versions; nothing that names the host."""
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


def keep(name: str, figures: dict[str, Any]) -> Path:
    """Write ``bench/results/NAME.json``."""
    path = RESULTS / f"{name}.json"
    measured = time.strftime("%Y-%m-%d", time.gmtime())
    path.write_text(json.dumps({"measured": measured, "machine": machine(), **figures}, indent=2) + "\n")
    return path
