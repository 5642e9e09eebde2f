"""Facts about TensorRT that are tested with engines of a bundle: profiles, CUDA graphs, TF32.

Not run on hardware yet.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ...base.errors import FlamestError
from ...runtime.backends.onnxruntime_cpu import open_session
from ...runtime.backends.session import Feed
from ...runtime.bundle.graph_records import AxisRange, EngineOptions
from ...runtime.bundle.opening import Bundle, open_bundle
from ..bench.comparison import difference
from ..bench.inputs import usual_feeds, usual_sizes
from .engine_trials import build_for_trial, opened_engine, time_session

ROUNDED = ("vision", "clip", "cnn", "cnn2")  # graphs whose matmuls TF32 speeds up most
KEPT_COSINE = 0.9999


@dataclass(frozen=True)
class TrialSizes:
    """Size of a trial's engines and the number of runs; a dry run's are small."""

    rows: int = 16  # of a full caption step
    repeats: int = 50
    max_batch: int | None = None  # of an engine, in clips; None: by the GPU's memory


ON_A_GPU = TrialSizes()


def compare_profiles(folder: Path, trial: TrialSizes = ON_A_GPU) -> dict[str, Any]:
    """A caption step of a full batch on an engine with a profile for each use, and on one tuned for one clip.

    Returns milliseconds, and seconds of the builds.
    """
    bundle = open_bundle(folder)
    graph = bundle.manifest.graphs["text"]
    sizes = _sizes(bundle, "text", trial.rows)
    batch = graph.axes["batch"]
    single = msgspec.structs.replace(
        graph, uses=(), axes={**graph.axes, "batch": AxisRange(batch.smallest, 1, batch.largest)}
    )
    found: dict[str, Any] = {"batch": sizes["batch"], "uses": [use.name for use in graph.uses]}
    options = EngineOptions(max_batch=trial.max_batch)
    for what, record in (("each_use", graph), ("one_clip", single)):
        with tempfile.TemporaryDirectory(prefix="flamest-trial-") as cache:
            data, seconds = build_for_trial(bundle, "text", options, Path(cache), graph=record)
        with opened_engine(data, "text") as session:
            found[what] = {**time_session(session, record, sizes, trial.repeats), "build_seconds": seconds}
    return found


def compare_cuda_graphs(folder: Path, trial: TrialSizes = ON_A_GPU) -> dict[str, Any]:
    """A caption step with CUDA graphs and without, for one clip and for a full batch; milliseconds."""
    bundle = open_bundle(folder)
    graph = bundle.manifest.graphs["text"]
    with tempfile.TemporaryDirectory(prefix="flamest-trial-") as cache:
        data, _ = build_for_trial(bundle, "text", EngineOptions(max_batch=trial.max_batch), Path(cache))
    found: dict[str, Any] = {}
    for batch in (1, trial.rows):
        sizes = _sizes(bundle, "text", batch)
        for what, on in (("without", False), ("with", True)):
            with opened_engine(data, "text", cuda_graphs=on) as session:
                found.setdefault(str(sizes["batch"]), {})[what] = time_session(session, graph, sizes, trial.repeats)
    return found


def compare_tf32(folder: Path, trial: TrialSizes = ON_A_GPU) -> dict[str, Any]:
    """Engines of the fp32 graphs with TF32 and without: milliseconds for a clip, difference to ONNX Runtime CPU."""
    bundle = open_bundle(folder)
    found: dict[str, Any] = {"limit": KEPT_COSINE}
    for name in (name for name in ROUNDED if name in bundle.manifest.needed_graphs):
        graph, sizes = bundle.manifest.graphs[name], _sizes(bundle, name, 1)
        with bundle.private_graph(name) as path:
            reference = open_session(path)
        feeds: dict[str, Feed] = usual_feeds(graph, sizes, reference)
        expected = reference.run(feeds)
        del reference
        for tf32 in (False, True):
            row: dict[str, Any] = {}
            options = EngineOptions(tf32=tf32, max_batch=trial.max_batch)
            try:
                with tempfile.TemporaryDirectory(prefix="flamest-trial-") as cache:
                    data, _ = build_for_trial(bundle, name, options, Path(cache))
                with opened_engine(data, name) as session:
                    timed = time_session(session, graph, sizes, trial.repeats)
                    row = {**timed, **difference(session.run(feeds), expected)}
            except FlamestError as error:
                row = {"problem": error.message}
            found.setdefault(name, {})["tf32" if tf32 else "fp32"] = row
    return found


def _sizes(bundle: Bundle, name: str, batch: int) -> dict[str, int]:
    manifest = bundle.manifest
    return usual_sizes(manifest.graphs[name], batch, frames=manifest.keyframes.candidates)
