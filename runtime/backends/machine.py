"""What this machine has, found out without loading into this process what could crash it or take a second.

The driver is asked first, by a child process and ctypes: TensorRT's own Runtime constructs happily where
there is no driver, and ends the process when it is given a plan.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import driver_probe
from .child import Ended, run_child
from .unavailable import BackendUnavailable, Code, unavailable

DRIVER_LIBRARY = "libcuda.so.1"
# What a child may take to answer. Usually 20 ms and a second; a busy machine, or gigabytes of libraries that are read
# from a cold disk, must not be taken for a machine without a GPU.
DRIVER_S, TENSORRT_S = 30.0, 120.0

# Packages by the name under which they are spoken of, each with the distributions that bring it.
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


@dataclass(frozen=True)
class MachineFacts:
    """What the ladder decides by. ``versions`` holds what is installed, under the names of DISTRIBUTIONS."""

    gpu: Gpu | None = None
    cuda: str = ""  # the newest CUDA that the driver knows: "13.0"; empty without one
    driver: str = ""  # the kernel module's version: "580.95.05"; empty when it is not known
    driver_problem: str = ""  # why there is no GPU to use, in the driver's words
    driver_missing: bool = False  # there is no driver at all: nvidia-smi is missing too
    versions: dict[str, str] = field(default_factory=dict)
    tensorrt_problem: str = ""  # why the installed tensorrt cannot be imported
    tensorrt_builds: bool = False  # whether it can build plans: lean and dispatch runtimes cannot
    ort_has_cuda: bool = False  # whether ONNX Runtime's CUDA provider is among its files
    bf16: bool = False  # whether the processor computes bf16


def no_gpu(facts: MachineFacts) -> BackendUnavailable:
    """Why there is no GPU to use, with the way out: another one without a driver than with one."""
    fix = "install the NVIDIA driver (in a container: start it with --gpus all)" if facts.driver_missing else ""
    return unavailable(Code.NO_DRIVER_OR_GPU, facts.driver_problem, fix=fix)


def gather_facts(*, driver_library: str = DRIVER_LIBRARY) -> MachineFacts:
    """Ask this machine. At most two children; a tenth of a second where neither driver nor TensorRT is."""
    said = ask_driver(driver_library)
    gpus = [Gpu(**gpu) for gpu in said.get("gpus", ())]
    problem = said.get("problem", "" if gpus else "the driver sees no GPU (CUDA_VISIBLE_DEVICES hides them all?)")
    versions = {
        name: version for name, brought_by in DISTRIBUTIONS.items() if (version := _version_of(brought_by)) is not None
    }
    tensorrt = _ask_tensorrt() if "tensorrt" in versions or _is_there("tensorrt") else {}
    if tensorrt.get("version"):
        versions["tensorrt"] = tensorrt["version"]
    elif tensorrt.get("missing"):
        versions.pop("tensorrt", None)
    return MachineFacts(
        gpu=gpus[0] if gpus else None,
        cuda=said.get("cuda", ""),
        driver=_kernel_module(),
        driver_problem=problem,
        driver_missing=bool(said.get("missing", False)),
        versions=versions,
        tensorrt_problem=tensorrt.get("problem", ""),
        tensorrt_builds=bool(tensorrt.get("builds", False)),
        ort_has_cuda=_has_cuda_provider(),
        bf16=_processor_has_bf16(),
    )


def ask_driver(library: str = DRIVER_LIBRARY) -> dict[str, Any]:
    """What ``driver_probe.py`` says; a child that crashed or hung is a problem like any other."""
    return _answer(run_child([str(driver_probe.__file__), library], timeout_s=DRIVER_S, bare=True), "asking the driver")


_IMPORT_TENSORRT = """
import json
try:
    import tensorrt
    said = {"version": tensorrt.__version__, "builds": hasattr(tensorrt, "Builder")}
except ModuleNotFoundError as error:
    missing = (error.name or "").partition(".")[0] == "tensorrt"
    said = {"missing": True, "problem": str(error)} if missing else {"problem": str(error)}
except Exception as error:
    said = {"problem": f"{type(error).__name__}: {error}"}
print(json.dumps(said), flush=True)
import os
os._exit(0)
"""


def _ask_tensorrt() -> dict[str, Any]:
    """Import it in a child: its libraries may be missing, and they are gigabytes."""
    return _answer(run_child(["-c", _IMPORT_TENSORRT], timeout_s=TENSORRT_S), "importing tensorrt")


def _answer(ended: Ended, doing: str) -> dict[str, Any]:
    if ended.problem:
        return {"problem": f"{doing} ended with {ended.problem}"}
    lines = ended.out.strip().splitlines()
    try:
        said = json.loads(lines[-1])
    except (IndexError, ValueError):
        return {"problem": f"{doing} gave no answer"}
    return said if isinstance(said, dict) else {"problem": f"{doing} gave no answer"}


def _version_of(distributions: Sequence[str]) -> str | None:
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _is_there(package: str) -> bool:
    """Whether a top-level package can be found; it is not imported. (A system's TensorRT has no distribution.)"""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _has_cuda_provider() -> bool:
    """Not by ``get_available_providers``: that needs the import, and lists CUDA whether or not it works."""
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
