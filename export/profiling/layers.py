"""The layers of one graph on one backend, measured by the profiler of its runtime; part of the child process."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...runtime.backends.opening import machine_facts
from ...runtime.backends.ranking import rank_backends
from ...runtime.backends.session import Session
from ..bench.inputs import usual_feeds
from .arithmetic import graph_gflop
from .matmul_peak import CPU_SIDE, GPU_SIDE, matmul_gflops
from .onnxruntime_layers import read_trace
from .openvino_layers import PROFILER, add_run, layers_of
from .records import LayerQuestion, LayerTimes, by_layer

if TYPE_CHECKING:
    from ...runtime.backends.machine import MachineFacts


def measure_layers(asked: LayerQuestion) -> LayerTimes:
    """The layers of ``asked.runs`` runs after one that is not counted.

    Raises what opening the graph raises; the error of the candidate's reason where the backend cannot run it here.
    """
    _require(asked)
    measure = {
        "onnxruntime": _onnxruntime,
        "onnxruntime-cuda": _onnxruntime_cuda,
        "openvino": _openvino,
        "tensorrt": _tensorrt,
    }[asked.backend]
    found = measure(asked)
    graph = asked.bundle.manifest.graphs[asked.graph]
    memory = {"file": asked.bundle.manifest.files[graph.file].bytes / 1e6, **found.memory}
    with asked.bundle.private_graph(asked.graph) as path:
        gflop = graph_gflop(path, asked.sizes)
    # ONNX Runtime's own count where shapes cannot be inferred: it has operators that ONNX does not know.
    return replace(found, memory=memory, gflop=found.gflop if gflop is None else gflop)


def _require(asked: LayerQuestion) -> None:
    """Raise the first candidate's reason where the backend cannot run the graph on this machine."""
    graph = asked.bundle.manifest.graphs[asked.graph]
    candidates = rank_backends(asked.graph, graph, _facts(asked), asked.opening.backend_options)
    reasons = [candidate.unavailable for candidate in candidates]
    if reasons and None not in reasons and reasons[0] is not None:
        raise reasons[0].error()


def _facts(asked: LayerQuestion) -> MachineFacts:
    return machine_facts() if asked.opening.facts is None else asked.opening.facts


def _onnxruntime(asked: LayerQuestion) -> LayerTimes:
    from ...runtime.backends.onnxruntime_cpu import open_session

    with asked.bundle.private_graph(asked.graph) as path:
        session = open_session(path, threads=asked.opening.threads, shown=asked.graph, profile=_trace(asked))
    return _traced(asked, session, on_gpu=False)


def _onnxruntime_cuda(asked: LayerQuestion) -> LayerTimes:
    from ...runtime.backends.onnxruntime_cuda import OrtCudaSession

    gpu = _facts(asked).gpu
    with asked.bundle.private_graph(asked.graph) as path:
        session = OrtCudaSession.open(path, gpu=gpu.name if gpu else "GPU", shown=asked.graph, profile=_trace(asked))
    return _traced(asked, session, on_gpu=True)


def _trace(asked: LayerQuestion) -> Path:
    """Beginning of the name of ONNX Runtime's trace, which adds the time of day."""
    return asked.out / f"trace-{asked.backend}-{asked.graph}"


def _traced(asked: LayerQuestion, session: Any, *, on_gpu: bool) -> LayerTimes:
    """ONNX Runtime's profiler counts all runs alike, the first included."""
    _run(asked, session)
    trace = session.end_profile()
    return replace(read_trace(trace, runs=asked.runs + 1, on_gpu=on_gpu), files=(trace.name,))


def _run(asked: LayerQuestion, session: Session) -> None:
    feeds = usual_feeds(asked.bundle.manifest.graphs[asked.graph], asked.sizes, session)
    for _ in range(asked.runs + 1):
        session.run(feeds)


def _openvino(asked: LayerQuestion) -> LayerTimes:
    from ...runtime.backends.openvino_cpu import OpenVinoSession

    threads = asked.opening.threads
    with asked.bundle.private_graph(asked.graph) as path:
        session = OpenVinoSession.open(
            path,
            computed="bf16" if asked.computed == "bf16" else "f32",
            threads=threads,
            shown=asked.graph,
            profile=True,
        )
    feeds = usual_feeds(asked.bundle.manifest.graphs[asked.graph], asked.sizes, session)
    session.run(feeds)
    found: dict[tuple[str, str, str], list[float]] = {}
    for _ in range(asked.runs):
        session.run(feeds)
        add_run(found, session.layer_times())
    layers = layers_of(found, asked.runs)
    dump = asked.out / f"layers-{asked.backend}-{asked.graph}.json"
    dump.write_text(json.dumps(by_layer(layers), indent=1) + "\n")
    return LayerTimes(layers, PROFILER, files=(dump.name,))


def _tensorrt(asked: LayerQuestion) -> LayerTimes:
    from .tensorrt_layers import measure_engine

    return measure_engine(asked, _facts(asked))


def measure_peak(backend: str, precision: str, threads: int | None) -> float | None:
    """10^9 operations a second of large matmuls on the backend; None where it cannot be measured.

    For TensorRT those of ONNX Runtime CUDA: both call NVIDIA's libraries for it.
    """
    side = GPU_SIDE if backend in ("tensorrt", "onnxruntime-cuda") else CPU_SIDE

    def open_file(path: Path) -> Session:
        if backend == "onnxruntime":
            from ...runtime.backends.onnxruntime_cpu import open_session

            return open_session(path, threads=threads)
        if backend == "openvino":
            from ...runtime.backends.openvino_cpu import OpenVinoSession

            return OpenVinoSession.open(path, computed="bf16" if precision == "bf16" else "f32", threads=threads)
        from ...runtime.backends.onnxruntime_cuda import OrtCudaSession

        return OrtCudaSession.open(path, gpu="GPU")

    # OpenVINO computes a float32 graph in bf16 when it is asked to.
    inner = "fp32" if backend == "openvino" and precision == "bf16" else precision
    return matmul_gflops(open_file, inner, side=side)
