"""Facts about this machine: GPU, driver, installed runtimes.

Nothing that could crash this process or take a second is loaded into it: the driver and TensorRT are asked in child
processes (machine_probe.py). The driver comes first, because TensorRT's Runtime constructs without a driver and ends
its process when it deserialises an engine.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from ...base.child_process import ChildEnded, ask_child
from .unavailable import BackendUnavailable, Code, unavailable

DRIVER_LIBRARY = "libcuda.so.1"
PROBE = Path(__file__).with_name("machine_probe.py")
# What a child may take to answer. Usually 20 ms and a second; a busy machine, or gigabytes of libraries that are read
# from a cold disk, must not be treated as a machine without a GPU.
DRIVER_S, TENSORRT_S = 30.0, 120.0

# Packages by display name, each with the distributions that bring it.
DISTRIBUTIONS = {
    "tensorrt": (
        "tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu13-bindings", "tensorrt-cu12-bindings",
    ),
    "onnxruntime": ("onnxruntime",),
    "onnxruntime-gpu": ("onnxruntime-gpu",),
    "openvino": ("openvino",),
    "cuda-bindings": ("cuda-bindings",),
}  # fmt: skip


@dataclass(frozen=True)
class Gpu:
    """The first NVIDIA GPU, the one that is used."""

    name: str
    compute_capability: str  # "9.0"
    memory_mb: int  # in all, free or not


class DriverAnswer(msgspec.Struct, frozen=True):
    """Answer of ``machine_probe.py driver``."""

    cuda: str = ""
    gpus: tuple[Gpu, ...] = ()
    problem: str = ""
    missing: bool = False  # there is no driver library


class TensorRtAnswer(msgspec.Struct, frozen=True):
    """Answer of ``machine_probe.py tensorrt``."""

    version: str = ""
    builds: bool = False
    problem: str = ""
    missing: bool = False  # the package is not installed


@dataclass(frozen=True)
class MachineFacts:
    """The facts that backends are ranked by. ``versions``: what is installed, under the names of DISTRIBUTIONS."""

    gpu: Gpu | None = None
    cuda: str = ""  # the newest CUDA that the driver knows: "13.0"; empty without one
    driver: str = ""  # the kernel module's version: "580.95.05"; empty when it is not known
    driver_problem: str = ""  # why there is no GPU to use, in the driver's words
    driver_missing: bool = False  # there is no driver at all: nvidia-smi is missing too
    versions: dict[str, str] = field(default_factory=dict)
    tensorrt_problem: str = ""  # why the installed tensorrt cannot be imported
    tensorrt_builds: bool = False  # it can build engines: lean and dispatch runtimes cannot
    ort_has_cuda: bool = False  # ONNX Runtime's CUDA provider is among its files
    bf16: bool = False  # the processor computes bf16


def no_gpu_reason(facts: MachineFacts) -> BackendUnavailable:
    """The reason why no GPU can be used; its fix differs without a driver and with one."""
    fix = "install the NVIDIA driver (in a container: start it with --gpus all)" if facts.driver_missing else ""
    return unavailable(Code.NO_DRIVER_OR_GPU, facts.driver_problem, fix=fix)


def gather_facts(*, driver_library: str = DRIVER_LIBRARY) -> MachineFacts:
    """Ask this machine: at most two child processes, 0.1 s where there is neither a driver nor TensorRT."""
    driver = ask_driver(driver_library)
    problem = driver.problem
    if not driver.gpus and not problem:
        problem = "the driver sees no GPU (CUDA_VISIBLE_DEVICES hides them all?)"
    versions = {
        name: version for name, brought_by in DISTRIBUTIONS.items() if (version := _version_of(brought_by)) is not None
    }
    tensorrt = _ask_tensorrt() if "tensorrt" in versions or _is_there("tensorrt") else TensorRtAnswer()
    if tensorrt.version:
        versions["tensorrt"] = tensorrt.version
    elif tensorrt.missing:
        versions.pop("tensorrt", None)
    return MachineFacts(
        gpu=driver.gpus[0] if driver.gpus else None,
        cuda=driver.cuda,
        driver=_kernel_module(),
        driver_problem=problem,
        driver_missing=driver.missing,
        versions=versions,
        tensorrt_problem=tensorrt.problem,
        tensorrt_builds=tensorrt.builds,
        ort_has_cuda=_has_cuda_provider(),
        bf16=_processor_has_bf16(),
    )


def ask_driver(library: str = DRIVER_LIBRARY) -> DriverAnswer:
    """Return the driver's answer; a child that crashed or hung is a problem like any other."""
    try:
        answer: DriverAnswer = ask_child(
            PROBE, None, DriverAnswer, timeout_s=DRIVER_S, arguments=("driver", library), isolated=True
        )
    except ChildEnded as ended:
        return DriverAnswer(problem=f"asking the driver ended with {ended}")
    return answer


def _ask_tensorrt() -> TensorRtAnswer:
    try:
        answer: TensorRtAnswer = ask_child(PROBE, None, TensorRtAnswer, timeout_s=TENSORRT_S, arguments=("tensorrt",))
    except ChildEnded as ended:
        return TensorRtAnswer(problem=f"importing tensorrt ended with {ended}")
    return answer


def _version_of(distributions: Sequence[str]) -> str | None:
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _is_there(package: str) -> bool:
    """True when a top-level package can be found; it is not imported. (A system's TensorRT has no distribution.)"""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _has_cuda_provider() -> bool:
    """Look for the file: ``get_available_providers`` needs the import, and lists CUDA whether or not it works."""
    try:
        spec = importlib.util.find_spec("onnxruntime")
    except (ImportError, ValueError):
        return False
    folders = spec.submodule_search_locations if spec is not None else None
    return any(Path(folder, "capi", "libonnxruntime_providers_cuda.so").is_file() for folder in folders or ())


def _kernel_module() -> str:
    try:
        return Path("/sys/module/nvidia/version").read_text().strip()
    except OSError:
        return ""


def _processor_has_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", " bf16"))
