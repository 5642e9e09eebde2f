"""Facts about this machine: GPU, driver, installed runtimes.

Nothing that could crash this process or take a second is loaded into it: the driver and TensorRT are asked in child
processes (machine_probe.py). The driver comes first, because TensorRT's Runtime constructs without a driver and ends
its process when it deserialises an engine.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from ...base.child_process import ChildEnded, ask_child
from ...base.errors import SettingsError
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

# The major version of CUDA that a package's libraries are made for, by distributions that say it with their name.
MADE_FOR = {
    "tensorrt": {
        13: ("tensorrt-cu13", "tensorrt-cu13-libs", "tensorrt-cu13-bindings"),
        12: ("tensorrt-cu12", "tensorrt-cu12-libs", "tensorrt-cu12-bindings"),
    }
}
ORT_GPU_CUDA_13 = (1, 27)  # onnxruntime-gpu went to CUDA 13 with this version
# The oldest Linux driver for each major version of CUDA
# (https://docs.nvidia.com/cuda/cuda-toolkit-release-notes/, "CUDA Toolkit and Minimum Required Driver Version").
OLDEST_DRIVERS = {12: "525", 13: "580"}
_FIT_CUDA_12 = {
    "tensorrt": "pip uninstall -y tensorrt tensorrt-cu13 tensorrt-cu13-bindings tensorrt-cu13-libs && "
    "pip install 'flamest[tensorrt-cu12]'",
    "cuda-bindings": "pip install 'flamest[tensorrt-cu12]'",
    "onnxruntime-gpu": "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'flamest[agent-gpu-cu12]'",
}


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU, in the order of the driver, which CUDA_VISIBLE_DEVICES decides."""

    name: str
    compute_capability: str  # "9.0"
    memory_mb: int  # in all, free or not
    free_mb: int | None = None  # of it; None where the driver's management library is not there to say it


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

    gpu: Gpu | None = None  # the one that is used
    cuda: str = ""  # the newest CUDA that the driver knows: "13.0"; empty without one
    driver: str = ""  # the kernel module's version: "580.95.05"; empty when it is not known
    driver_problem: str = ""  # why there is no GPU to use, in the driver's words
    driver_missing: bool = False  # there is no driver at all: nvidia-smi is missing too
    versions: dict[str, str] = field(default_factory=dict)
    tensorrt_problem: str = ""  # why the installed tensorrt cannot be imported
    tensorrt_builds: bool = False  # it can build engines: lean and dispatch runtimes cannot
    ort_has_cuda: bool = False  # ONNX Runtime's CUDA provider is among its files
    bf16: bool = False  # the processor computes bf16
    gpus: tuple[Gpu, ...] = ()  # all of them; ``gpu`` is number ``device``
    device: int = 0
    cuda_majors: dict[str, int] = field(default_factory=dict)  # by package the CUDA that its libraries are made for


def on_device(facts: MachineFacts, number: int) -> MachineFacts:
    """The same machine, with GPU ``number`` as the one that is used; raises SettingsError for one that is not there."""
    if not 0 <= number < len(facts.gpus):
        found = ", ".join(f"{index} ({gpu.name})" for index, gpu in enumerate(facts.gpus)) or "none"
        raise SettingsError(
            f"GPU {number} is not there, the driver lists {found}",
            fix="give one of these numbers; CUDA_VISIBLE_DEVICES decides which GPUs the driver lists",
            code="no_such_gpu",
        )
    return replace(facts, gpu=facts.gpus[number], device=number)


def old_driver_reasons(facts: MachineFacts, packages: Sequence[str]) -> tuple[BackendUnavailable, ...]:
    """DRIVER_TOO_OLD for each of ``packages`` whose libraries are made for a newer CUDA than the driver supports.

    Within a major version every driver serves (CUDA's minor version compatibility).
    """
    if facts.gpu is None or not facts.cuda.partition(".")[0].isdigit():
        return ()
    supported = int(facts.cuda.partition(".")[0])
    reasons = []
    for package in packages:
        needed = facts.cuda_majors.get(package, 0)
        if needed <= supported:
            continue
        oldest = OLDEST_DRIVERS.get(needed, "a newer one")
        driver = f"driver {facts.driver}" if facts.driver else "the driver"
        evidence = (
            f"{package} {facts.versions.get(package, '')} is made for CUDA {needed}, which needs driver {oldest} or "
            f"newer; {driver} supports CUDA up to {facts.cuda}"
        )
        newer = f"install driver {oldest} or newer"
        fix = f"{_FIT_CUDA_12[package]}; or {newer}" if supported == 12 else newer
        reasons.append(unavailable(Code.DRIVER_TOO_OLD, evidence, fix=fix))
    return tuple(reasons)


def no_gpu_reason(facts: MachineFacts) -> BackendUnavailable:
    """The reason why no GPU can be used; its fix differs without a driver and with one."""
    fix = "install the NVIDIA driver (in a container: start it with --gpus all)" if facts.driver_missing else ""
    return unavailable(Code.NO_DRIVER_OR_GPU, facts.driver_problem, fix=fix)


def gather_facts(*, driver_library: str = DRIVER_LIBRARY) -> MachineFacts:
    """Ask this machine: at most two child processes, 0.1 s where there is neither a driver nor TensorRT.

    The first GPU is the one that is used; ``on_device`` chooses another.
    """
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
        gpus=driver.gpus,
        cuda_majors=_cuda_majors(versions),
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


def _cuda_majors(versions: Mapping[str, str]) -> dict[str, int]:
    """The CUDA that the installed packages are made for, as far as their names and versions say it."""
    majors = {}
    for package, by_major in MADE_FOR.items():
        found = [major for major, names in by_major.items() if _version_of(names) is not None]
        if package in versions and len(found) == 1:  # two at once: which one is imported is not known
            majors[package] = found[0]
    if (first := _leading_number(versions.get("cuda-bindings", ""))) is not None:
        majors["cuda-bindings"] = first
    if "onnxruntime-gpu" in versions:
        parts = versions["onnxruntime-gpu"].split(".")[:2]
        if all(part.isdigit() for part in parts):
            majors["onnxruntime-gpu"] = 13 if tuple(map(int, parts)) >= ORT_GPU_CUDA_13 else 12
    return majors


def _leading_number(text: str) -> int | None:
    first = text.partition(".")[0]
    return int(first) if first.isdigit() else None


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
