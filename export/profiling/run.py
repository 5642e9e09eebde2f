"""A profile of a bundle: every asked backend, each in a process of its own, stage by stage and layer by layer."""

from __future__ import annotations

import contextlib
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...base.errors import FlamestError
from ...base.files import write_atomic
from ...base.progress import Progress
from ...runtime.backends.options import BACKENDS
from ...runtime.bundle.opening import open_bundle
from ...runtime.bundle.signature import TrustedKeys
from ..bench.child import bench_job
from ..bench.comparison import require_measured
from ..bench.inputs import render_clips
from ..bench.process import BenchProcess

STAGE_CLIPS = 3  # rendered clips whose stages are timed


@dataclass(frozen=True)
class ProfileRequest:
    """``backends``: names of runtime/backends/options.py, or BACKEND:bf16. ``out``: None keeps no dumps."""

    bundle: Path
    backends: tuple[str, ...] = BACKENDS
    graphs: tuple[str, ...] = ()  # none: all that the extractor runs
    batch: int | None = None  # None: that of the pipeline
    runs: int = 10
    threads: int | None = None
    detailed: bool = False
    out: Path | None = None
    trusted: TrustedKeys = ()


def run_profile(request: ProfileRequest, progress: Progress) -> dict[str, Any]:
    """Measure; by backend the stages and the graphs with their layers (docs/guides/checks.md says what they mean).

    ``progress`` counts the graphs, for each backend. A backend that does not run here is listed under ``refused``
    with the reason. Raises DataError ``nothing_measured`` when none did, and as ``open_bundle`` does.
    """
    manifest = open_bundle(request.bundle, request.trusted).manifest
    graphs = request.graphs or manifest.needed_graphs
    found: dict[str, Any] = {}
    refused: dict[str, FlamestError] = {}
    with contextlib.ExitStack() as stack:
        folder = request.out
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flamest-profile-")))
        else:
            folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flamest-clips-")))
        clips = render_clips(scratch, STAGE_CLIPS)
        for backend in dict.fromkeys(request.backends):
            progress.describe(backend)
            try:
                found[backend] = _profile_backend(request, backend, graphs, clips, folder, progress)
            except FlamestError as error:
                refused[backend] = error
                progress.advance(len(graphs))
    figures = {
        "backends": found,
        "refused": {
            name: {"code": error.code, "message": error.message, "fix": error.fix} for name, error in refused.items()
        },
    }
    require_measured(found, refused)
    if request.out is not None:
        write_atomic(request.out / "profile.json", (json.dumps(figures, indent=1) + "\n").encode())
    return figures


def _profile_backend(
    request: ProfileRequest,
    name: str,
    graphs: Sequence[str],
    clips: Sequence[Path],
    folder: Path,
    progress: Progress,
) -> dict[str, Any]:
    job = bench_job(name, request.bundle, request.threads, request.trusted)
    with BenchProcess(job) as process:
        opened = process.ask("open_extractor")
        process.ask("run_clip", str(clips[0]))  # the first allocates
        runs = [process.ask("run_clip", str(clip)) for clip in clips]
        process.ask("close_extractor")
        batch = request.batch or opened["batch"]
        measured = {}
        for graph in graphs:
            progress.describe(f"{name}, graph '{graph}'")
            measured[graph] = process.ask("profile_graph", graph, batch, request.runs, str(folder), request.detailed)
            progress.advance()
        peaks = {
            precision: process.ask("measure_peak", precision)
            for precision in sorted({row["precision"] for row in measured.values()})
        }
    for row in measured.values():
        peak = peaks[row["precision"]]
        row["peak_gflops"] = peak
        row["of_peak"] = row["gflops"] / peak if peak and row["gflops"] else None
    return {
        "batch": batch,
        "stages": stage_rows(runs),
        "graphs": measured,
        "matmul_gflops": peaks,
    }


def stage_rows(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Median milliseconds of each stage for one clip alone, and its share."""
    stages = {stage: statistics.median(run["stages_ms"][stage] for run in runs) for stage in runs[0]["stages_ms"]}
    total = sum(stages.values()) or 1.0
    return {stage: {"ms": ms, "share": ms / total} for stage, ms in stages.items()}
