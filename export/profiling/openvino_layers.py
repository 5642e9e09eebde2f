"""Times of OpenVINO's own counters (``PERF_COUNT``): every layer of the compiled graph, after its fusions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .records import LayerTime, median_run

PROFILER = "OpenVINO's counters"


def add_run(found: dict[tuple[str, str, str], list[float]], counters: Iterable[Any]) -> None:
    """Add the milliseconds of one run's ``ProfilingInfo`` to ``found``, by name, type and implementation."""
    for each in counters:
        if not str(each.status).endswith("NOT_RUN"):
            key = (each.node_name, each.node_type, each.exec_type)
            found.setdefault(key, []).append(each.real_time.total_seconds() * 1e3)


def layers_of(found: dict[tuple[str, str, str], list[float]], runs: int) -> tuple[LayerTime, ...]:
    """The layers of ``runs`` runs."""
    return tuple(
        LayerTime(name, kind, median_run(taken, runs, first=False), how, len(taken) / runs)
        for (name, kind, how), taken in found.items()
    )
