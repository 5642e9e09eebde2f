"""Times of TensorRT's own profiler (``IProfiler``) and the description of its layers (``EngineInspector``).

The profiler is called after each launch with the time of every layer on the GPU, measured by CUDA events. Names and
order are those of the engine, after its fusions. An engine that was built with ``--detailed`` describes each layer,
with its kernel ("tactic"), inputs and outputs.

Not run on hardware yet.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ...base.files import sha256_bytes
from ...base.progress import NoProgress
from ...runtime.backends.machine import MachineFacts
from ...runtime.backends.ranking import rank_backends
from ...runtime.backends.tensorrt.cache import open_cache
from ...runtime.backends.tensorrt.cuda_calls import CudaCalls, import_cuda_runtime
from ...runtime.backends.tensorrt.cuda_streams import Stream
from ...runtime.backends.tensorrt.engine import EngineFile, LoadedEngine, load_engine
from ...runtime.backends.tensorrt.package import import_tensorrt
from ...runtime.backends.tensorrt.profile import Shape, engine_ranges, nearest_profile
from ...runtime.backends.tensorrt.supply import (
    BuildTarget,
    cached_engine,
    local_build_options,
)
from ...runtime.backends.tensorrt.trtexec import trtexec_command
from ...runtime.backends.unavailable import Code, unavailable
from ...runtime.bundle.graph_records import EngineOptions, EngineRecord
from ..bench.inputs import axis_size
from .records import LayerQuestion, LayerTime, LayerTimes, median_run

PROFILER = "TensorRT's profiler"
NAMES_ONLY = "the engine states its layers' names only: flamest-export profile --detailed builds one that says more"
ITEM_BYTES = {"FLOAT": 4, "HALF": 2, "BF16": 2, "INT8": 1, "UINT8": 1, "INT32": 4, "INT64": 8, "BOOL": 1}


def measure_engine(asked: LayerQuestion, facts: MachineFacts) -> LayerTimes:
    """Profile the engine that would run, or with ``asked.detailed`` one that describes its layers (built in minutes).

    Raises the errors of engine.py and builder.py, GPU_MEMORY, PROFILE_RANGE, BACKEND_FAILED.
    """
    trt = import_tensorrt()
    file, size, options = find_engine_file(asked, facts)
    CudaCalls(import_cuda_runtime(), facts.device).use()  # TensorRT loads an engine on the thread's GPU
    loaded = load_engine(trt, file)
    graph = asked.bundle.manifest.graphs[asked.graph]
    shapes = {tensor.name: tuple(axis_size(each, asked.sizes) for each in tensor.shape) for tensor in graph.inputs}
    with ProfiledRun.open(trt, loaded, asked.graph, shapes, number=facts.device) as run:
        run.launch()  # the first launch of a shape does work that later ones do not
        run.profiler.taken.clear()
        for _ in range(asked.runs):
            run.launch()
        described = run.describe(trt)
    detailed = bool(described and isinstance(described[0], dict))
    dump = asked.out / f"engine-{asked.graph}.json"
    dump.write_text(json.dumps({"Layers": described}, indent=1) + "\n")
    return LayerTimes(
        engine_layers(run.profiler.taken, described, asked.runs),
        PROFILER,
        note="" if detailed else NAMES_ONLY,
        memory={"engine": size / 1e6, "scratch": int(loaded.engine.device_memory_size_v2) / 1e6, **run.memory_mb},
        files=(dump.name,),
        trtexec=trtexec_command(Path(graph.file), graph, options),
    )


def find_engine_file(asked: LayerQuestion, facts: MachineFacts) -> tuple[EngineFile, int, EngineOptions]:
    """The engine to profile, its bytes and build options: the bundle's, else the cache's, which is built if need be."""
    manifest, name = asked.bundle.manifest, asked.graph
    candidates = rank_backends(name, manifest.graphs[name], facts, asked.opening.backend_options)
    record = next((each.engine for each in candidates if each.unavailable is None and each.engine is not None), None)
    if record is not None and (not asked.detailed or record.options.detailed):
        entry = manifest.files[record.file]
        return _engine_file(asked, asked.bundle.path / record.file, entry.sha256, record), entry.bytes, record.options
    options = msgspec.structs.replace(local_build_options(manifest, name), detailed=asked.detailed)
    target = BuildTarget(facts, options, open_cache())
    kept = cached_engine(asked.bundle, name, target, NoProgress())
    path = target.cache.path(target.key(manifest, name))
    return _engine_file(asked, path, sha256_bytes(kept.data), kept.record), len(kept.data), kept.record.options


def _engine_file(asked: LayerQuestion, path: Path, sha256: str, record: EngineRecord) -> EngineFile:
    stripped = record.options.strip_weights
    manifest, name = asked.bundle.manifest, asked.graph
    return EngineFile(
        graph=name,
        path=path,
        sha256=sha256,
        onnx=asked.bundle.graph(name) if stripped else None,
        onnx_sha256=manifest.files[manifest.graphs[name].file].sha256 if stripped else "",
        host_code=record.options.version_compatible,
    )


class LayerClock:
    """Milliseconds of every call that TensorRT's profiler reports, by layer."""

    def __init__(self) -> None:
        self.taken: dict[str, list[float]] = {}

    def add(self, layer: str, ms: float) -> None:
        self.taken.setdefault(layer, []).append(ms)


def make_profiler(trt: Any, clock: LayerClock) -> Any:
    """A ``trt.IProfiler`` that adds to ``clock``. It must live as long as the context that it is set on."""

    class _Profiler(trt.IProfiler):  # type: ignore[misc]  # the class is known at run time only
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)  # pybind11 requires this call

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            clock.add(layer_name, float(ms))

    return _Profiler()


@dataclass
class ProfiledRun:
    """An execution context of its own with a profiler, and zeroed memory for one set of shapes.

    Zeros: the time of a layer does not depend on the values. Inputs without elements get an address of their own.
    """

    context: Any
    cuda: CudaRun
    profiler: LayerClock
    name: str
    loaded: LoadedEngine
    memory_mb: dict[str, float]

    @classmethod
    @contextmanager
    def open(
        cls, trt: Any, loaded: LoadedEngine, name: str, shapes: Mapping[str, Shape], *, number: int = 0
    ) -> Iterator[ProfiledRun]:
        """On GPU ``number``, which is the thread's when the engine was loaded.

        Raises PROFILE_RANGE for shapes that no optimisation profile has, GPU_MEMORY, BACKEND_FAILED.
        """
        engine, clock = loaded.engine, LayerClock()
        context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise unavailable(Code.GPU_MEMORY, f"graph '{name}': no execution context: {loaded.log.errors}").error()
        reporter = make_profiler(trt, clock)  # kept by this frame, as long as the context is used
        context.profiler = reporter
        with CudaRun.open(number) as cuda:
            scratch = int(engine.device_memory_size_v2)
            context.set_device_memory(cuda.zeros(scratch), scratch)
            index = nearest_profile(engine_ranges(engine, list(shapes)), shapes)
            if index is None or not context.set_optimization_profile_async(index, cuda.stream):
                evidence = f"graph '{name}': no optimisation profile of the engine has {dict(shapes)}"
                raise unavailable(Code.PROFILE_RANGE, evidence).error()
            for tensor, shape in shapes.items():
                if not context.set_input_shape(tensor, shape):
                    evidence = f"graph '{name}': TensorRT did not accept {tensor} of shape {list(shape)}"
                    raise unavailable(Code.PROFILE_RANGE, evidence).error()
            inputs = outputs = 0
            for number in range(engine.num_io_tensors):
                tensor = engine.get_tensor_name(number)
                size = math.prod(context.get_tensor_shape(tensor)) * ITEM_BYTES[engine.get_tensor_dtype(tensor).name]
                context.set_tensor_address(tensor, cuda.zeros(size))
                inputs, outputs = (inputs + size, outputs) if tensor in shapes else (inputs, outputs + size)
            yield cls(context, cuda, clock, name, loaded, {"inputs": inputs / 1e6, "outputs": outputs / 1e6})

    def launch(self) -> None:
        if not self.context.execute_async_v3(self.cuda.stream):
            reason = self.loaded.log.errors or "nothing was logged"
            raise unavailable(Code.BACKEND_FAILED, f"graph '{self.name}': TensorRT did not launch: {reason}").error()
        self.cuda.wait()

    def describe(self, trt: Any) -> list[Any]:
        """The engine's layers from its inspector: mappings, or names alone where it was built without details."""
        inspector = self.loaded.engine.create_engine_inspector()
        inspector.execution_context = self.context
        return parse_layers(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def parse_layers(text: str) -> list[Any]:
    """``Layers`` of the inspector's JSON; empty when it is none."""
    try:
        found = json.loads(text)
    except ValueError:
        return []
    layers = found.get("Layers", []) if isinstance(found, dict) else []
    return layers if isinstance(layers, list) else []


def engine_layers(taken: Mapping[str, Sequence[float]], described: list[Any], runs: int) -> tuple[LayerTime, ...]:
    """The profiler's layers, with type and kernel where the inspector has them."""
    about = {each["Name"]: each for each in described if isinstance(each, dict) and "Name" in each}
    return tuple(
        LayerTime(
            name,
            str(about.get(name, {}).get("LayerType", "layer")),
            median_run(times, runs, first=False),
            str(about.get(name, {}).get("TacticName", "")),
            len(times) / runs,
        )
        for name, times in taken.items()
    )


class CudaRun:
    """A stream and zeroed memory, freed at the end. Its calls raise as ``CudaCalls`` does."""

    def __init__(self, calls: CudaCalls) -> None:
        self._calls = calls
        calls.use()
        self._stream = Stream(calls)
        self._taken: list[int] = []

    @classmethod
    @contextmanager
    def open(cls, number: int = 0) -> Iterator[CudaRun]:
        """On GPU ``number``."""
        run = cls(CudaCalls(import_cuda_runtime(), number))
        try:
            yield run
        finally:
            run.close()

    @property
    def stream(self) -> int:
        """Handle of the stream."""
        return self._stream.handle

    def zeros(self, size: int) -> int:
        """Address of ``size`` zeroed bytes; at least one is taken, so that no two tensors share an address."""
        pointer = int(self._calls("cudaMalloc", max(size, 1)))
        self._taken.append(pointer)
        if size:
            self._calls("cudaMemsetAsync", pointer, 0, size, self.stream)
        return pointer

    def wait(self) -> None:
        self._calls("cudaStreamSynchronize", self.stream)

    def close(self) -> None:
        self._calls.quietly("cudaStreamSynchronize", self.stream)
        for pointer in self._taken:
            self._calls.quietly("cudaFree", pointer)
        self._taken.clear()
