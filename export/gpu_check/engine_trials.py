"""Engines that are built for one question only: opened, timed and compared, without a trace in the user's cache.

Not run on hardware yet.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from ...base.files import sha256_bytes, sha256_file
from ...base.progress import NoProgress
from ...runtime.backends.machine import MachineFacts, gather_facts
from ...runtime.backends.session import Session
from ...runtime.backends.tensorrt.build_process import build_engine_in_child
from ...runtime.backends.tensorrt.builder import EngineRequest
from ...runtime.backends.tensorrt.cache import open_cache
from ...runtime.backends.tensorrt.engine import EngineFile, load_engine
from ...runtime.backends.tensorrt.package import import_tensorrt
from ...runtime.backends.tensorrt.supply import BuildTarget, cached_engine
from ...runtime.bundle.graph_records import EngineOptions, Graph
from ...runtime.bundle.opening import Bundle
from ..bench.comparison import quantiles
from ..bench.inputs import smallest_output, usual_feeds, usual_sizes
from ..graphs.export import write_graph
from ..graphs.spec import GraphSpec

WARM_UP = 4  # runs that are not counted: allocation, capture and the first replay of a CUDA graph


def build_for_trial(
    bundle: Bundle, name: str, options: EngineOptions, folder: Path, *, graph: Graph | None = None
) -> tuple[bytes, float]:
    """The engine of graph ``name`` and the seconds of its build, kept in ``folder`` alone; raises as ``cached_engine``.

    ``graph``: its record with other axes or uses, in place of the bundle's.
    """
    if graph is not None:
        graphs = {**bundle.manifest.graphs, name: graph}
        bundle = replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, graphs=graphs))
    facts = gather_facts()
    target = BuildTarget(facts, options, open_cache(folder), _shared_timings(facts))
    kept = cached_engine(bundle, name, target, NoProgress())
    return kept.data, kept.record.build_seconds


def _shared_timings(facts: MachineFacts) -> Path | None:
    """The timing cache of this machine's ordinary builds: trials take less time with it."""
    gpu = facts.gpu
    return None if gpu is None else open_cache().timings(facts.versions["tensorrt"], gpu.name)


@contextlib.contextmanager
def opened_engine(data: bytes, name: str, *, cuda_graphs: bool = True) -> Iterator[Session]:
    """The engine as a session on GPU 0."""
    from ...runtime.backends.tensorrt.cuda_device import CudaDevice
    from ...runtime.backends.tensorrt.runner import TensorRtSession

    trt = import_tensorrt()
    with tempfile.TemporaryDirectory(prefix="flamest-engine-") as folder:
        path = Path(folder, f"{name}.plan")
        path.write_bytes(data)
        loaded = load_engine(trt, EngineFile(name, path, sha256_bytes(data)))
        session = TensorRtSession(trt, loaded, CudaDevice.open(), name=name, where="gpu-check", cuda_graphs=cuda_graphs)
        try:
            yield session
        finally:
            session.close()


def time_spec(spec: GraphSpec, options: EngineOptions, batches: Sequence[int], repeats: int) -> dict[str, Any]:
    """Milliseconds of an exported graph's engine at each batch, and the seconds of its build."""
    with tempfile.TemporaryDirectory(prefix="flamest-trial-") as folder:
        graph = write_graph(spec, Path(folder))
        path = Path(folder, graph.file)
        request = EngineRequest(graph.file, path, sha256_file(path), graph, options)
        built = build_engine_in_child(request, NoProgress())
        if built.unproved is not None:
            raise built.unproved
    with opened_engine(built.data, spec.name) as session:
        timed = {
            str(batch): time_session(session, graph, usual_sizes(graph, batch, frames=1), repeats) for batch in batches
        }
    return {"build_seconds": built.seconds, "batches": timed}


def time_session(session: Session, graph: Graph, sizes: Mapping[str, int], repeats: int) -> dict[str, float]:
    """Quantiles of a run's milliseconds at these sizes, results staying on the GPU but the smallest."""
    feeds = {name: session.value(feed) for name, feed in usual_feeds(graph, sizes, session).items()}
    waited = smallest_output(graph, sizes)
    taken = []
    for number in range(WARM_UP + repeats):
        started = time.perf_counter()
        session.run_values(feeds)[waited].numpy()
        if number >= WARM_UP:
            taken.append(1000 * (time.perf_counter() - started))
    return quantiles(taken)
