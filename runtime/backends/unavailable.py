"""Reasons why a backend does not run a graph: a code, the evidence, and the command that fixes it.

Opening a graph collects the reasons and tries the next candidate; where no other backend may run the graph,
``BackendUnavailable.error`` is raised. docs/reference/error-codes.md shows this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from ...base.errors import DataError, FlamestError, SettingsError


class Code(StrEnum):
    """Stable codes, used in logs, in ``--json`` and in the documentation."""

    # TensorRT
    TRT_MISSING = "TRT_MISSING"
    TRT_LIBS = "TRT_LIBS"
    TRT_NO_BUILDER = "TRT_NO_BUILDER"
    CUDA_BINDINGS = "CUDA_BINDINGS"
    NO_DRIVER_OR_GPU = "NO_DRIVER_OR_GPU"
    DRIVER_TOO_OLD = "DRIVER_TOO_OLD"
    GPU_MEMORY = "GPU_MEMORY"
    PLAN_MISSING = "PLAN_MISSING"
    PLAN_HEADER = "PLAN_HEADER"
    PLAN_VERSION = "PLAN_VERSION"
    PLAN_GPU = "PLAN_GPU"
    PLAN_REJECTED = "PLAN_REJECTED"
    PLAN_BUILD = "PLAN_BUILD"
    PLAN_REFIT = "PLAN_REFIT"
    ENGINE_WRONG = "ENGINE_WRONG"
    PROFILE_RANGE = "PROFILE_RANGE"
    UNTRUSTED = "UNTRUSTED"
    # ONNX Runtime
    ORT_MISSING = "ORT_MISSING"
    ORT_NO_CUDA = "ORT_NO_CUDA"
    ORT_CUDA_LIBS = "ORT_CUDA_LIBS"
    CPU_FALLBACK = "CPU_FALLBACK"
    # OpenVINO
    OPENVINO_MISSING = "OPENVINO_MISSING"
    OPENVINO_REJECTED = "OPENVINO_REJECTED"
    NOT_ASKED = "NOT_ASKED"
    # all
    PRECISION = "PRECISION"
    BACKEND_FAILED = "BACKEND_FAILED"


@dataclass(frozen=True)
class Entry:
    """Meaning and fix of a code, and its error where no other backend may run the graph."""

    meaning: str
    fix: str
    error: type[FlamestError]


_ON_ANOTHER = "leave --require-backend out, so that another backend may run the graph, or add --backend onnxruntime"

# CUDA 13 unless the extra says 12. onnxruntime and onnxruntime-gpu have the same files: only one may be there.
INSTALL_TENSORRT = "pip install 'flamest[tensorrt]'; with a driver for CUDA 12: 'flamest[tensorrt-cu12]'"
INSTALL_ORT_GPU = (
    "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'flamest[agent-gpu]'; "
    "with a driver for CUDA 12: 'flamest[agent-gpu-cu12]'"
)

TABLE = MappingProxyType(
    {
        Code.TRT_MISSING: Entry("the Python package tensorrt is not installed", INSTALL_TENSORRT, SettingsError),
        Code.TRT_LIBS: Entry(
            "tensorrt is installed, and one of its libraries cannot be loaded",
            "pip install --force-reinstall 'flamest[tensorrt]', or add the folder of the missing library to "
            "LD_LIBRARY_PATH",
            SettingsError,
        ),
        Code.TRT_NO_BUILDER: Entry(
            "the installed TensorRT runs engines and cannot build any (lean or dispatch runtime)",
            INSTALL_TENSORRT,
            SettingsError,
        ),
        Code.CUDA_BINDINGS: Entry(
            "the Python package cuda-bindings, which holds the memory of a GPU, is not installed or does not load",
            INSTALL_TENSORRT,
            SettingsError,
        ),
        Code.NO_DRIVER_OR_GPU: Entry(
            "there is no NVIDIA driver, or it finds no GPU",
            "nvidia-smi lists the driver's GPUs; in a container: start it with --gpus all",
            SettingsError,
        ),
        Code.DRIVER_TOO_OLD: Entry(
            "an installed package needs a newer CUDA than the NVIDIA driver supports",
            "pip install 'flamest[tensorrt-cu12]' or 'flamest[agent-gpu-cu12]' with a driver for CUDA 12; or install a "
            "newer driver",
            SettingsError,
        ),
        Code.GPU_MEMORY: Entry(
            "the GPU has not enough free memory",
            "run with a smaller --batch; nvidia-smi lists the processes that hold memory; without a GPU: "
            "--backend onnxruntime",
            SettingsError,
        ),
        Code.PLAN_MISSING: Entry(
            "the bundle holds no TensorRT engine of this graph",
            "flamest-export engines DIR, on this machine",
            DataError,
        ),
        Code.PLAN_HEADER: Entry(
            "the file does not begin as a TensorRT engine does",
            "copy the bundle again from its source, or export it again",
            DataError,
        ),
        Code.PLAN_VERSION: Entry(
            "the engine was built by another version of TensorRT than this machine has",
            "flamest-export engines DIR builds one for this machine's TensorRT; see also --version-compatible",
            DataError,
        ),
        Code.PLAN_GPU: Entry(
            "the engine was built for another GPU",
            "flamest-export engines DIR builds one for this GPU; see also --hardware-compat",
            DataError,
        ),
        Code.PLAN_REJECTED: Entry(
            "TensorRT did not load the engine: it returned nothing, raised, crashed, or took too long",
            "flamest-export engines DIR --again builds it again; the evidence quotes TensorRT",
            DataError,
        ),
        Code.PLAN_BUILD: Entry(
            "TensorRT could not build an engine from the ONNX graph",
            "flamest-export check DIR names operators that TensorRT's parser does not know; or run with "
            "--backend onnxruntime",
            DataError,
        ),
        Code.PLAN_REFIT: Entry(
            "an engine without weights could not be refitted with those of its ONNX graph",
            "flamest-export engines DIR, without --strip-weights",
            DataError,
        ),
        Code.ENGINE_WRONG: Entry(
            "the engine does not compute what its ONNX graph computes on the CPU, or that could not be shown",
            "flamest-export engines DIR --again builds it again; if it is wrong again, report it with the evidence and "
            "run with --backend onnxruntime-cuda",
            DataError,
        ),
        Code.PROFILE_RANGE: Entry(
            "an input is smaller or larger than the engine's optimisation profile allows",
            "give sizes within the profile (flamest-export inspect DIR shows it), or run with --backend onnxruntime",
            DataError,
        ),
        Code.UNTRUSTED: Entry(
            "a hash or a signature does not match: the file was not opened",
            "copy the bundle again from its source, or ask its signer; do not edit its files",
            DataError,
        ),
        Code.ORT_MISSING: Entry(
            "the Python package onnxruntime is not installed", "pip install 'flamest[agent]'", SettingsError
        ),
        Code.ORT_NO_CUDA: Entry(
            "the installed ONNX Runtime has no CUDA provider",
            INSTALL_ORT_GPU,
            SettingsError,
        ),
        Code.ORT_CUDA_LIBS: Entry(
            "ONNX Runtime's CUDA provider does not load: CUDA or cuDNN libraries are missing",
            "pip install 'flamest[agent-gpu]'; with a driver for CUDA 12: 'flamest[agent-gpu-cu12]'",
            SettingsError,
        ),
        Code.CPU_FALLBACK: Entry(
            "a session for the GPU would have run on the CPU, wholly or in part",
            "run with --backend onnxruntime to use the CPU",
            SettingsError,
        ),
        Code.OPENVINO_MISSING: Entry(
            "the Python package openvino is not installed", "pip install 'flamest[openvino]'", SettingsError
        ),
        Code.OPENVINO_REJECTED: Entry(
            "OpenVINO could not read or compile the graph", "run with --backend onnxruntime", DataError
        ),
        Code.NOT_ASKED: Entry(
            "the backend is used only when it is requested by name", "add --backend NAME", SettingsError
        ),
        Code.PRECISION: Entry(
            "the backend cannot compute in the requested precision",
            "flamest-export --precision fp32 --backend onnx --out DIR makes a bundle that every backend runs",
            DataError,
        ),
        Code.BACKEND_FAILED: Entry("the backend failed in a way that has no code of its own", _ON_ANOTHER, DataError),
    }
)


@dataclass(frozen=True)
class BackendUnavailable:
    """One backend, one graph, one reason."""

    code: Code
    evidence: str  # versions, names, the runtime's message
    fix: str  # the command that fixes it

    def __str__(self) -> str:
        return f"{self.code}: {self.evidence}"

    def error(self) -> FlamestError:
        """The same as an error, with this code and the exit code of TABLE."""
        return TABLE[self.code].error(f"{self.code}: {self.evidence}", fix=self.fix, code=self.code.value)

    @classmethod
    def of(cls, error: FlamestError) -> BackendUnavailable:
        """The reason that ``error()`` raised; BACKEND_FAILED for errors without one of these codes."""
        if error.code in Code.__members__:
            code = Code(error.code)
            return cls(code, error.message.removeprefix(f"{code}: "), error.fix)
        evidence = f"{error.code}: {error.message}"
        return cls(Code.BACKEND_FAILED, evidence, error.fix or TABLE[Code.BACKEND_FAILED].fix)


def unavailable(code: Code, evidence: str, *, fix: str = "") -> BackendUnavailable:
    """A reason with the table's fix, unless this case has a better one."""
    return BackendUnavailable(code, evidence or TABLE[code].meaning, fix or TABLE[code].fix)
