"""Slow as convolutions of single frames, the form that is exported, and as three-dimensional ones, in TensorRT.

Not run on hardware yet.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from ...base.files import sha256_file
from ...base.progress import NoProgress
from ...runtime.backends.tensorrt.build_process import build_engine_in_child
from ...runtime.backends.tensorrt.builder import EngineRequest
from ...runtime.bundle.graph_records import EngineOptions
from ..bench.inputs import usual_sizes
from ..graphs.export import write_graph
from ..graphs.spec import GraphSpec, cnn_spec
from ..networks.slow_i3d import pooled_module
from ..weights.loading import open_video
from ..weights.source import parse_source
from .engine_trials import opened_engine, time_session

BATCHES = (1, 8)
REPEATS = 30


def compare_forms(weights: str) -> dict[str, Any]:
    """Milliseconds of both forms in fp32 with TF32 at each of ``BATCHES``, and the seconds of their builds."""
    video = open_video(parse_source("slow", weights))
    flat = cnn_spec(video.network, video.net, video.form, video.preprocessing)
    deep = dataclasses.replace(flat, module=pooled_module(video.net))
    return {"frame_by_frame": _measure(flat), "three_dimensional": _measure(deep)}


def _measure(spec: GraphSpec) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="flamest-convolutions-") as folder:
        graph = write_graph(spec, Path(folder))
        path = Path(folder, graph.file)
        request = EngineRequest(graph.file, path, sha256_file(path), graph, EngineOptions(tf32=True))
        built = build_engine_in_child(request, NoProgress())
        if built.unproved is not None:
            raise built.unproved
    with opened_engine(built.data, "cnn") as session:
        batches = {
            str(batch): time_session(session, graph, usual_sizes(graph, batch, frames=1), REPEATS) for batch in BATCHES
        }
    return {"build_seconds": built.seconds, "batches": batches}
