"""Every backend of this machine on the same graphs and clips, interleaved, each in a process of its own.

Interleaved runs let a disturbance of the machine affect all backends alike. The reference for the others' results is
ONNX Runtime's CPU provider, which every machine has.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...base.errors import DataError, FlamestError
from ...base.progress import Progress
from ...runtime.backends.options import BACKENDS
from ...runtime.bundle.opening import open_bundle
from ...runtime.bundle.signature import TrustedKeys
from ...runtime.clip_records import graph_of
from ...runtime.pipeline_options import check_batch
from ...runtime.similarity import cosine, row_cosines
from .child import bench_job
from .inputs import pick_clips, render_clips
from .process import BenchProcess

REFERENCE = "onnxruntime"  # that the others are compared with
FULL_BATCHES = 2  # that go through the pipeline at least
TOO_LARGE = ("GPU_MEMORY", "PROFILE_RANGE")  # errors of a batch, after which smaller ones run as before
COMPARED_BATCH = 16  # the largest that the reference computes too: on a CPU it takes long
OUTPUTS = ("caption", "token_ids", "vlm", "cnn", "keyframe_times_s")  # of a clip, compared between two backends


@dataclass(frozen=True)
class BenchRequest:
    """A measurement to make. ``backends``: names of runtime/backends/options.py, or BACKEND:bf16."""

    bundle: Path
    backends: tuple[str, ...] = BACKENDS
    repeats: int = 20  # runs of each graph
    clips: int = 8
    videos: Path | None = None  # None: clips are rendered
    threads: int | None = None
    trusted: TrustedKeys = ()
    vectors: bool = False  # the figures hold each clip's caption and vectors too
    batches: tuple[int, ...] = ()  # clips in one run of a graph; none: the batch of each backend's pipeline


@dataclass
class _Measured:
    """Results of one backend so far."""

    where: dict[str, str] = field(default_factory=dict)  # by graph
    precision: str = ""
    pipeline: dict[str, Any] = field(default_factory=dict)  # its batch, readers and clips a second
    graphs: dict[str, dict[str, Any]] = field(default_factory=dict)
    clips: list[dict[str, Any]] = field(default_factory=list)
    memory: dict[str, float | None] = field(default_factory=dict)


class BenchRun:
    """The backends that are still measured, and the reasons why others are not."""

    def __init__(self, request: BenchRequest, stack: contextlib.ExitStack) -> None:
        self.refused: dict[str, FlamestError] = {}
        self.processes: dict[str, BenchProcess] = {}
        self.measured: dict[str, _Measured] = {}
        for name in _in_order(request.backends):
            job = bench_job(name, request.bundle, request.threads, request.trusted)
            try:
                self.processes[name] = stack.enter_context(BenchProcess(job))
                self.measured[name] = _Measured()
            except FlamestError as error:
                self.refused[name] = error

    def ask_all(self, question: str, *arguments: Any) -> dict[str, Any]:
        """The answers by backend; one that refuses is left out from then on."""
        return self.ask(list(self.processes), question, *arguments)

    def ask(self, names: Sequence[str], question: str, *arguments: Any) -> dict[str, Any]:
        """The answers of these backends, as far as they are still measured; one that refuses no longer is."""
        answers = {}
        for name in names:
            if name not in self.processes:
                continue
            try:
                answers[name] = self.processes[name].ask(question, *arguments)
            except FlamestError as error:
                self.drop(name, error)
        return answers

    def batches(self, name: str, asked: Sequence[int]) -> tuple[int, ...]:
        """Batches to measure on a backend: those that are asked for, or that of its pipeline."""
        return tuple(asked) or (int(self.measured[name].pipeline["batch"]),)

    def drop(self, name: str, error: FlamestError) -> None:
        self.refused[name] = error
        self.processes.pop(name).close()


def run_bench(request: BenchRequest, progress: Progress) -> dict[str, Any]:
    """Measure; the figures as one mapping (docs/guides/checks.md says what they mean).

    ``progress`` counts the graphs of the bundle, and the clips. A backend that does not run here is
    listed under ``refused`` with the reason. Raises DataError as ``open_bundle`` does, ``no_clips``, or
    ``nothing_measured`` when every backend was refused.
    """
    manifest = open_bundle(request.bundle, request.trusted).manifest
    if request.batches:
        check_batch(max(request.batches), (manifest.graphs[name] for name in manifest.needed_graphs))
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flamest-bench-")))
        if request.videos is None:
            clips = render_clips(scratch, request.clips)
        else:
            clips = pick_clips(request.videos, request.clips)
        run = BenchRun(request, stack)
        _measure_clips(run, clips, progress)
        for graph in manifest.needed_graphs:
            progress.describe(f"graph '{graph}'")
            measure_graph(run, graph, request, scratch)
            progress.advance()
        reference = run.measured[REFERENCE].clips if REFERENCE in run.processes else []
        results = {name: _summary(run.measured[name], reference) for name in run.processes}
        if request.vectors:
            for name, result in results.items():
                result["vectors"] = [{part: run[part] for part in OUTPUTS} for run in run.measured[name].clips]
    require_measured(results, run.refused)
    return {
        "clips": len(clips),
        "rendered": request.videos is None,
        "repeats": request.repeats,
        "threads": request.threads,
        "precision": manifest.precision,
        "backends": results,
        "refused": {
            name: {"code": error.code, "message": error.message, "fix": error.fix}
            for name, error in run.refused.items()
        },
    }


def require_measured(found: Mapping[str, Any], refused: Mapping[str, FlamestError]) -> None:
    """Raise DataError (``nothing_measured``) with every backend's reason when ``found`` is empty."""
    if found:
        return
    reasons = "\n".join(f"  {name}: {error.message}" for name, error in refused.items())
    fixes = "; or: ".join(dict.fromkeys(error.fix for error in refused.values() if error.fix))
    raise DataError(
        f"nothing was measured: no backend ran this bundle here\n{reasons}",
        fix=fixes or "name another backend with --backend; flamest-export doctor lists those of this machine",
        code="nothing_measured",
    )


def _measure_clips(run: BenchRun, clips: Sequence[Path], progress: Progress) -> None:
    """Every clip alone, backends interleaved; then all of them through each backend's pipeline."""
    progress.describe("clips")
    for name, opened in run.ask_all("open_extractor").items():
        run.measured[name].where |= opened["where"]
        run.measured[name].pipeline = {"batch": opened["batch"], "readers": opened["readers"]}
    run.ask_all("run_clip", str(clips[0]))  # the first allocates
    for clip in clips:
        for name, result in run.ask_all("run_clip", str(clip)).items():
            run.measured[name].clips.append(result)
        progress.advance()
    for name in list(run.processes):
        pipeline = run.measured[name].pipeline
        several = _enough(clips, FULL_BATCHES * pipeline["batch"])
        for seconds in run.ask([name], "run_clips", several).values():
            pipeline |= {"clips": len(several), "clips_per_second": len(several) / seconds}
    for name, memory in run.ask_all("close_extractor").items():
        run.measured[name].memory = memory


def _enough(clips: Sequence[Path], least: int) -> list[str]:
    """The clips' paths, again and again until there are ``least``."""
    return [str(clips[index % len(clips)]) for index in range(max(least, len(clips)))]


def _in_order(backends: Sequence[str]) -> list[str]:
    """The reference first, then as they were named."""
    return sorted(dict.fromkeys(backends), key=lambda name: name != REFERENCE)


def measure_graph(run: BenchRun, graph: str, request: BenchRequest, scratch: Path) -> None:
    """One graph at every batch, backends interleaved; results go to ``run.measured``."""
    wanted = {name: run.batches(name, request.batches) for name in run.processes}
    for batch in sorted({each for batches in wanted.values() for each in batches}):
        names = [name for name, batches in wanted.items() if batch in batches]
        names = [name for name in names if name in run.processes]
        too_large = _too_large(run, graph, batch, [name for name in names if graph in run.measured[name].graphs])
        for name, problem in too_large.items():
            run.measured[name].graphs[graph]["batches"][str(batch)] = {"batch": batch, "problem": problem}
        names = [name for name in names if name not in too_large]
        for name, row in _measure_batch(run, graph, batch, names, request.repeats, scratch).items():
            found = run.measured[name].graphs
            found.setdefault(graph, {**row, "batches": {}})["batches"][str(batch)] = row
            if batch == run.measured[name].pipeline["batch"]:
                found[graph] |= row


def _too_large(run: BenchRun, graph: str, batch: int, names: Sequence[str]) -> dict[str, str]:
    """Backends of ``names``, all of which ran a smaller batch, that lack the memory for this one, with the reason."""
    problems = {}
    for name in names:
        try:
            run.processes[name].ask("open_graph", graph, batch)
        except FlamestError as error:
            if error.code in TOO_LARGE:
                problems[name] = error.message
            else:
                run.drop(name, error)
    return problems


def _measure_batch(
    run: BenchRun, graph: str, batch: int, names: Sequence[str], repeats: int, scratch: Path
) -> dict[str, dict[str, Any]]:
    opened = run.ask(names, "open_graph", graph, batch)
    taken: dict[str, list[float]] = {name: [] for name in opened}
    for _ in range(repeats):
        for name, milliseconds in run.ask(list(opened), "run_graph").items():
            taken[name].append(milliseconds)
    outputs = {name: scratch / f"{graph}-{batch}-{name.replace(':', '-')}.npz" for name in opened}
    memory = {name: answer for name in opened for answer in run.ask([name], "close_graph", str(outputs[name])).values()}
    got = {name: _arrays(outputs[name]) for name in memory}
    expected = got.get(REFERENCE)
    if expected is None and got and batch <= COMPARED_BATCH and run.ask([REFERENCE], "open_graph", graph, batch):
        file = scratch / f"{graph}-{batch}-expected.npz"
        run.ask([REFERENCE], "close_graph", str(file))
        expected = _arrays(file) if file.is_file() else None
    return {
        name: {
            **quantiles(taken[name]),
            "min_ms": min(taken[name]),
            "runs": repeats,
            "batch": batch,
            "sizes": opened[name]["sizes"],
            "where": opened[name]["where"],
            "precision": opened[name]["precision"],
            "peak_mb": memory[name]["peak_mb"],
            "gpu_mb": memory[name]["gpu_mb"],
            "beside_reference": difference(got[name], expected) if expected and name != REFERENCE else None,
        }
        for name in memory
    }


def _arrays(file: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays of an .npz file, which is removed."""
    with np.load(file) as loaded:
        arrays = {key: loaded[key] for key in loaded.files}
    file.unlink()
    return arrays


def quantiles(milliseconds: Sequence[float]) -> dict[str, float]:
    p50, p95 = np.percentile(milliseconds, (50, 95))
    return {"p50_ms": float(p50), "p95_ms": float(p95)}


def difference(got: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, float]:
    """Largest error of any output relative to its largest value, and the smallest cosine of an output's rows."""
    largest, smallest = 0.0, 1.0
    for name, want in expected.items():
        if want.dtype.kind != "f" or not want.size or got[name].shape != want.shape:
            continue
        have, want = got[name].astype(np.float64), want.astype(np.float64)
        largest = max(largest, float(np.abs(have - want).max() / (np.abs(want).max() or 1.0)))
        smallest = min(smallest, float(row_cosines(have, want).min()))
    return {"max_rel": largest, "min_cosine": smallest}


def _summary(measured: _Measured, reference: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    runs = measured.clips
    times = [run["ms"] for run in runs]
    graphs = measured.graphs
    return {
        "where": measured.where,
        "precision": runs[0]["precision"],
        "graphs": graphs,
        "stages": {
            stage: {
                **quantiles([run["stages_ms"][stage] for run in runs]),
                "peak_mb": _stage_memory(stage, measured),
            }
            for stage in runs[0]["stages_ms"]
        },
        "clip": quantiles(times),
        "clips_per_second": 1000 / statistics.fmean(times),
        "pipeline": measured.pipeline,
        "peak_mb": measured.memory["process_peak_mb"],
        "decoder_peak_mb": measured.memory["decoder_peak_mb"],
        "gpu_mb": measured.memory["gpu_mb"],
        "beside_reference": compare_clips(runs, reference) if reference and runs is not reference else None,
    }


def _stage_memory(stage: str, measured: _Measured) -> float:
    """MB: the decoder process's, or that of the graph that the stage runs; frames are prepared outside the graphs."""
    if stage == "decode":
        return measured.memory["decoder_peak_mb"] or 0.0
    graph = graph_of(stage, measured.graphs)
    return 0.0 if graph is None else float(measured.graphs[graph]["peak_mb"])


def compare_clips(runs: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Clip by clip against the reference: captions token by token, vectors by cosine, times of keyframes."""
    pairs = list(zip(runs, reference, strict=True))
    chosen = [(a["keyframe_times_s"], b["keyframe_times_s"]) for a, b in pairs if "keyframe_times_s" in a]
    return {
        **({"keyframes_equal": sum(ours == theirs for ours, theirs in chosen)} if chosen else {}),
        "captions_equal": sum(a["token_ids"] == b["token_ids"] and a["caption"] == b["caption"] for a, b in pairs),
        "captions": len(pairs),
        "min_cosine": {
            part: min(cosine(a[part], b[part]) for a, b in pairs) for part in ("vlm", "cnn") if pairs[0][0][part]
        },
    }
