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
from typing import Any, cast

import numpy as np

from .onnxruntime_cpu import limited_run
from .session import Array, Feed, Value, on_host, wanted_outputs
from .unavailable import Code, unavailable

CUDA_PROVIDER = "CUDAExecutionProvider"
# Arithmetic on shapes. ONNX Runtime puts it on the CPU on purpose, next to its consumer, and the
# flag above counts that as a fallback: graphs with dynamic axes would never open. Each of these has a CUDA
# kernel for floating-point tensors, so that one on the CPU is arithmetic on a handful of integers.
SHAPE_OPERATORS = frozenset(
    {"Shape", "Size", "Gather", "Concat", "Slice", "Unsqueeze", "Squeeze", "Reshape", "Cast", "Identity"}
    | {"Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "Equal", "Less", "Greater", "Not", "Where", "Range"}
    | {"ConstantOfShape", "Expand", "ReduceProd", "Split"}
)


class OrtCudaSession:
    """An opened graph (session.py). Its values are OrtValues on the device. One thread at a time."""

    computes_on_host = False
    kind = "cuda"  # of the device, in ONNX Runtime's words

    def __init__(self, session: Any, device: int, where: str) -> None:
        self._session = session
        self._device = device
        self.inputs: tuple[str, ...] = tuple(value.name for value in session.get_inputs())
        self.outputs: tuple[str, ...] = tuple(value.name for value in session.get_outputs())
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
        ``tf32``: float32 matmuls round their inputs to 10 bits of mantissa; off, because features of a
        CPU and a GPU are then the same to 1e-4. Raises the errors of ORT_MISSING, ORT_NO_CUDA,
        ORT_CUDA_LIBS, GPU_MEMORY, CPU_FALLBACK, BACKEND_FAILED.
        """
        ort, name = import_onnxruntime_gpu(), shown.rpartition("/")[2] or graph.name
        providers = [(CUDA_PROVIDER, {"device_id": str(device), "use_tf32": str(int(tf32))})]
        with _quiet(ort):
            try:
                session = _strict(ort, graph, providers, profile)
            except Exception as error:  # onnxruntime's own exception types share no public base
                if "assigned to the default CPU EP" not in str(error):
                    raise _opening_error(name, error) from error
                session = _with_shapes_on_cpu(ort, graph, providers, name, profile)
        _check_providers(session, name)
        return cls(session, device, f"ONNX Runtime {ort.__version__} CUDA on {gpu}")

    def end_profile(self) -> Path:
        """Write the times of all runs since it was opened with ``profile``; return the file, JSON."""
        return Path(self._session.end_profiling())

    def value(self, of: Feed) -> Value:
        import onnxruntime

        if isinstance(of, onnxruntime.OrtValue) and of.device_name() == self.kind:
            return cast(Value, of)
        array = np.asarray(on_host(of), order="C")
        # A value of its own on the device, not a view of NumPy's memory.
        return cast(Value, onnxruntime.OrtValue.ortvalue_from_numpy(array, self.kind, self._device))

    def borrow(self, array: Array) -> Value:
        return self.value(array)

    def run(self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        return {name: value.numpy() for name, value in self.run_values(feeds, outputs).items()}

    def run_values(self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None = None) -> dict[str, Value]:
        """Results are allocated on the device by ONNX Runtime: a step's ``present`` is the next one's ``past``."""
        names = wanted_outputs(self, outputs)
        values = {name: self.value(feed) for name, feed in feeds.items()}  # they live until the run has ended
        binding = self._session.io_binding()
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for name in names:
            binding.bind_output(name, self.kind, self._device)
        with limited_run(self.where) as options:
            self._session.run_with_iobinding(binding, options)
        return dict(zip(names, binding.get_outputs(), strict=True))


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
    elif "out of memory" in found or "Failed to allocate memory" in found:
        code = Code.GPU_MEMORY
    else:
        code = Code.BACKEND_FAILED
    return unavailable(code, f"{name}: {found.strip()}").error()
