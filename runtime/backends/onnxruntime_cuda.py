"""ONNX Runtime on an NVIDIA GPU: IO binding, values that stay on the device, and no silent step to the CPU.

Without a driver, or with a CUDA library missing, ONNX Runtime opens a CPU session instead and reports it in its log
only. So no node may go to the CPU (``session.disable_cpu_ep_fallback``), and the opened session's providers are
checked.

Not run on hardware yet.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...base.errors import FlamestError, GraphError
from ..bundle.graph_records import Tensor
from .element_types import BFLOAT16, ONNX_BFLOAT16, ORT_TYPES, ElementType
from .onnxruntime_cpu import limited_run
from .output_shapes import output_shapes
from .session import NO_ROWS, Array, Feed, Rows, Shape, Value, wanted_outputs
from .tensorrt.cuda_calls import SMALLER_BATCH
from .unavailable import Code, unavailable

if TYPE_CHECKING:
    from .tensorrt.session_memory import SessionMemory

CUDA_PROVIDER = "CUDAExecutionProvider"
# Arithmetic on shapes. ONNX Runtime puts it on the CPU on purpose, next to its consumer, and the
# flag above counts that as a fallback: graphs with dynamic axes would never open. Each of these has a CUDA
# kernel for floating-point tensors, so that one on the CPU is arithmetic on a handful of integers.
SHAPE_OPERATORS = frozenset(
    {"Shape", "Size", "Gather", "Concat", "Slice", "Unsqueeze", "Squeeze", "Reshape", "Cast", "Identity"}
    | {"Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "Equal", "Less", "Greater", "Not", "Where", "Range"}
    | {"ConstantOfShape", "Expand", "ReduceProd", "Split"}
)
# Batches have many sizes here. By default ONNX Runtime tries all of cuDNN's algorithms at each new one, and its arena
# grows to the next power of two; it never shrinks.
# https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
PROVIDER_OPTIONS = {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}


class OrtCudaSession:
    """An opened graph (session.py). Any thread may use it; the runs of one session wait for each other.

    Its values and rows are those of the device (tensorrt/cuda_device.py), so they pass to TensorRT and back without a
    copy. ``inputs``, ``outputs``: the graph's tensors.
    """

    computes_on_host = False
    kind = "cuda"  # of the device, in ONNX Runtime's words
    largest_batch: int | None = None

    def __init__(
        self, session: Any, tensors: tuple[tuple[Tensor, ...], tuple[Tensor, ...]], memory: SessionMemory, where: str
    ) -> None:
        self._session: Any = session
        self._tensors = tensors
        self._memory = memory
        self.inputs, self.outputs = (tuple(tensor.name for tensor in side) for side in tensors)
        self._types = {tensor.name: ElementType.of(tensor.dtype) for side in tensors for tensor in side}
        self.where = where

    @classmethod
    def open(
        cls,
        graph: Path,
        *,
        gpu: str,
        device: int = 0,
        tf32: bool = False,
        shown: str = "",
        profile: Path | None = None,
    ) -> OrtCudaSession:
        """Open ``graph`` on GPU number ``device``, called ``gpu`` in ``where``.

        ``shown``: the graph's name in messages, where its path says nothing. ``profile``: as for ``open_session``.
        ``tf32``: float32 matmuls round their inputs to 10 bits of mantissa; off, features of a CPU and a GPU are the
        same to 1e-4. Raises the errors of ORT_MISSING, ORT_NO_CUDA, ORT_CUDA_LIBS, CUDA_BINDINGS, GPU_MEMORY,
        CPU_FALLBACK, BACKEND_FAILED.
        """
        from .tensorrt.cuda_device import CudaDevice
        from .tensorrt.session_memory import SessionMemory

        ort, name = import_onnxruntime_gpu(), shown.rpartition("/")[2] or graph.name
        cuda = CudaDevice.open(number=device)
        stream = cuda.take_stream()
        try:
            options = {"device_id": str(device), "use_tf32": str(int(tf32)), "user_compute_stream": str(stream.handle)}
            session = _open(ort, graph, [(CUDA_PROVIDER, {**PROVIDER_OPTIONS, **options})], name, profile)
            tensors = _tensors(session.get_inputs()), _tensors(session.get_outputs())
            inputs, outputs = ({one.name: ElementType.of(one.dtype) for one in side} for side in tensors)
        except BaseException:
            cuda.give_stream(stream)
            raise
        memory = SessionMemory(cuda, name, inputs, outputs, stream)
        return cls(session, tensors, memory, f"ONNX Runtime {ort.__version__} CUDA on {gpu}")

    def end_profile(self) -> Path:
        """Write the times of all runs since it was opened with ``profile``; return the file, JSON."""
        return Path(self._session.end_profiling())

    def value(self, of: Feed) -> Value:
        return self._memory.value(of, None, f"{self.where}: a value")

    def borrow(self, array: Array) -> Value:
        return self.value(array)

    def rows(self, input_name: str, shape: Shape) -> Rows:
        return self._memory.rows(input_name, shape)

    def run(self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        return {name: value.numpy() for name, value in self.run_values(feeds, outputs).items()}

    def run_values(
        self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None = None, *, into: Mapping[str, Rows] = NO_ROWS
    ) -> dict[str, Value]:
        """See Session. ONNX Runtime computes on the session's stream, after the work that is there, and waits for its
        end: what it frees within a run is free then. Raises GPU_MEMORY."""
        names, memory = wanted_outputs(self, outputs), self._memory
        with memory.lock:
            memory.device.calls.use()
            ready = memory.ready(feeds)
            inputs, results = self._tensors
            shapes = output_shapes(self.where, inputs, results, {name: feed.shape for name, feed in ready.items()})
            sources = memory.bind_inputs(ready)
            targets = memory.bind_outputs({name: shapes[name] for name in names}, into, sources)
            binding = self._session.io_binding()
            for name, source in sources.items():
                binding.bind_input(*self._place(name), list(source.shape), source.block.pointer)
            for name, target in targets.items():
                binding.bind_output(*self._place(name), list(target.shape), target.pointer)
            self._run_bound(binding)
            memory.finish(sources.values(), targets.values())
        return {name: targets[name] for name in names}

    def close(self) -> None:
        """Wait for all work, close the graph and give the memory back. Values stay valid."""
        with self._memory.lock:
            self._memory.close()
            self._session = None

    def _place(self, name: str) -> tuple[str, str, int, Any]:
        dtype = self._types[name]
        element = ONNX_BFLOAT16 if dtype == BFLOAT16 else dtype.bits_dtype.type
        return name, self.kind, self._memory.device.number, element

    def _run_bound(self, binding: Any) -> None:
        """Run; where the GPU is full, free blocks are given back to it, and it runs once more."""
        try:
            self._run_once(binding)
            return
        except FlamestError as error:
            if error.code != Code.GPU_MEMORY:
                raise
        # What the failed run has begun is over, and outputs that it wrote are written again: it changes no input.
        self._memory.stream.synchronize()
        self._memory.device.memory.trim()
        self._run_once(binding)

    def _run_once(self, binding: Any) -> None:
        try:
            with limited_run(self.where) as options:
                self._session.run_with_iobinding(binding, options)
        except GraphError as error:
            if _is_out_of_memory(str(error.__cause__)):
                evidence = f"{self.where}: {error.__cause__}"
                raise unavailable(Code.GPU_MEMORY, evidence, fix=SMALLER_BATCH).error() from error
            raise


def _tensors(values: Sequence[Any]) -> tuple[Tensor, ...]:
    """Tensors of an opened session. Raises PRECISION for a type that no graph of a bundle has."""
    for value in values:
        if value.type not in ORT_TYPES:
            raise unavailable(Code.PRECISION, f"tensor {value.name} is {value.type}").error()
    return tuple(Tensor(value.name, ORT_TYPES[value.type], _axes(value)) for value in values)


def _axes(value: Any) -> tuple[int | str, ...]:
    """An axis without a name is like no other."""
    return tuple(f"{value.name}[{place}]" if size is None else size for place, size in enumerate(value.shape))


def import_onnxruntime_gpu() -> Any:
    """onnxruntime with a CUDA provider and NVIDIA's libraries loaded; raises ORT_MISSING or ORT_NO_CUDA."""
    try:
        import onnxruntime
    except ImportError as error:
        raise unavailable(Code.ORT_MISSING, str(error), fix="pip install 'flamest[agent-gpu]'").error() from error
    if CUDA_PROVIDER not in onnxruntime.get_available_providers():
        found = f"onnxruntime {onnxruntime.__version__} has {', '.join(onnxruntime.get_available_providers())}"
        raise unavailable(Code.ORT_NO_CUDA, found).error()
    if hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints; opening says what is missing
            onnxruntime.preload_dlls()
    return onnxruntime


@contextlib.contextmanager
def _quiet(ort: Any) -> Iterator[None]:
    """Keep ONNX Runtime from logging pages to stderr: problems are reported once, as BackendUnavailable."""
    ort.set_default_logger_severity(4)  # fatal
    try:
        yield
    finally:
        ort.set_default_logger_severity(2)  # warning, the default


def _open(ort: Any, graph: Path, providers: list[Any], name: str, profile: Path | None) -> Any:
    with _quiet(ort):
        try:
            session = _strict(ort, graph, providers, profile)
        except Exception as error:  # onnxruntime's own exception types share no public base
            if "assigned to the default CPU EP" not in str(error):
                raise _opening_error(name, error) from error
            session = _with_shapes_on_cpu(ort, graph, providers, name, profile)
    _check_providers(session, name)
    return session


def _options(ort: Any, profile: Path | None, **entries: str) -> Any:
    options = ort.SessionOptions()
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    options.log_severity_level = 4  # fatal: see _quiet
    for key, value in entries.items():
        options.add_session_config_entry(f"session.{key}", value)
    return options


def _strict(ort: Any, graph: Path, providers: list[Any], profile: Path | None) -> Any:
    """A session with every node on the GPU, or an exception."""
    return ort.InferenceSession(str(graph), _options(ort, profile, disable_cpu_ep_fallback="1"), providers=providers)


def _with_shapes_on_cpu(ort: Any, graph: Path, providers: list[Any], name: str, profile: Path | None) -> Any:
    """A session with only arithmetic on shapes on the CPU; raises CPU_FALLBACK with any other operators there."""
    options = _options(ort, profile, record_ep_graph_assignment_info="1")
    try:
        session = ort.InferenceSession(str(graph), options, providers=providers)
    except Exception as error:
        raise _opening_error(name, error) from error
    if not hasattr(session, "get_provider_graph_assignment_info"):
        found = f"{name}: some nodes are on the CPU, and onnxruntime {ort.__version__} does not say which"
        raise unavailable(Code.CPU_FALLBACK, found, fix="pip install --upgrade 'flamest[agent-gpu]'").error()
    _check_providers(session, name)
    strays = cpu_operators(session.get_provider_graph_assignment_info())
    if strays:
        found = ", ".join(f"{count} {operator}" for operator, count in sorted(strays.items()))
        raise unavailable(Code.CPU_FALLBACK, f"{name}: ONNX Runtime put {found} on the CPU").error()
    return session


def cpu_operators(assignment: Sequence[Any]) -> Counter[str]:
    """Operators that are not on the GPU and are no arithmetic on shapes, of a session's assignment info."""
    return Counter(
        node.op_type
        for part in assignment
        if part.ep_name != CUDA_PROVIDER
        for node in part.get_nodes()
        if node.domain not in ("", "ai.onnx") or node.op_type not in SHAPE_OPERATORS
    )


def _check_providers(session: Any, name: str) -> None:
    """Check the opened session's providers: a session requested for CUDA may be a CPU session."""
    providers = session.get_providers()
    if providers and providers[0] == CUDA_PROVIDER:
        return
    found = f"{name}: {CUDA_PROVIDER} was requested, the opened session has {', '.join(providers) or 'none'}"
    if missing := missing_library():
        code = Code.NO_DRIVER_OR_GPU if "libcuda.so" in missing else Code.ORT_CUDA_LIBS
        raise unavailable(code, f"{found}: {missing}").error()
    raise unavailable(
        Code.CPU_FALLBACK, found, fix="run flamest-agent doctor: it names what CUDA lacks on this machine"
    ).error()


def missing_library() -> str:
    """The loader's error for the CUDA provider's library; empty when it loads, or is not there.

    ONNX Runtime reports this in its log only, and opens the graph on the CPU.
    """
    import onnxruntime

    library = Path(onnxruntime.__file__).with_name("capi") / "libonnxruntime_providers_cuda.so"
    if not library.is_file():
        return ""
    try:
        ctypes.CDLL(str(library), mode=os.RTLD_LAZY | os.RTLD_LOCAL)
    except OSError as error:
        return str(error)
    return ""


def _opening_error(name: str, error: Exception) -> Exception:
    found = str(error)
    if "cannot open shared object file" in found or "Failed to load library" in found:
        code = Code.ORT_CUDA_LIBS
    elif _is_out_of_memory(found):
        code = Code.GPU_MEMORY
    else:
        code = Code.BACKEND_FAILED
    return unavailable(code, f"{name}: {found.strip()}").error()


def _is_out_of_memory(found: str) -> bool:
    return "out of memory" in found or "Failed to allocate memory" in found
