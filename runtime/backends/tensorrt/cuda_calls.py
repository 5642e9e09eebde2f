"""Calls of the CUDA runtime through ``cuda.bindings``: each returns (error, result…), and errors have codes.

The signatures are those of cuda-bindings 12.9 and 13
(https://nvidia.github.io/cuda-python/cuda-bindings/latest/module/runtime.html).
"""

from __future__ import annotations

from typing import Any

from ....base.errors import FlamestError
from ..unavailable import Code, unavailable

NO_DRIVER = ("cudaErrorInsufficientDriver", "cudaErrorNoDevice", "cudaErrorInitializationError")
NO_MEMORY = ("cudaErrorMemoryAllocation",)
SMALLER_BATCH = "use a smaller batch: --batch N, half of what it was; nvidia-smi lists other processes on this GPU"


class CudaCalls:
    """The CUDA runtime for GPU ``number``. The GPU of a call is a setting of the calling thread: ``use`` first."""

    def __init__(self, runtime: Any, number: int) -> None:
        self.runtime = runtime
        self.number = number
        self._functions: dict[str, Any] = {}

    def use(self) -> None:
        """Make this GPU the calling thread's. Raises NO_DRIVER_OR_GPU."""
        self("cudaSetDevice", self.number)

    def __call__(self, name: str, *arguments: Any) -> Any:
        """The call's one result, or None. Raises NO_DRIVER_OR_GPU, GPU_MEMORY or BACKEND_FAILED.

        An error stays the thread's last error until it is read, and whoever asks for it next (TensorRT after its
        launches) would take it for its own: it is read here.
        """
        function = self._functions.get(name)
        if function is None:
            function = self._functions[name] = getattr(self.runtime, name)
        error, *results = function(*arguments)
        if error:  # cudaSuccess is 0
            self.runtime.cudaGetLastError()
            raise self._failed_error(name, error)
        return results[0] if results else None

    def quietly(self, name: str, *arguments: Any) -> Any:
        """The same for cleaning up after a failure: an error is cleared, and None returned."""
        try:
            return self(name, *arguments)
        except FlamestError:
            return None

    def _failed_error(self, call: str, error: Any) -> FlamestError:
        text = self.runtime.cudaGetErrorString(error)[1].decode(errors="replace")
        evidence = f"GPU {self.number}: {call}: {error.name}: {text}"
        if error.name in NO_DRIVER:
            return unavailable(Code.NO_DRIVER_OR_GPU, evidence).error()
        if error.name in NO_MEMORY:
            return unavailable(Code.GPU_MEMORY, evidence, fix=SMALLER_BATCH).error()
        return unavailable(Code.BACKEND_FAILED, evidence).error()


def import_cuda_runtime() -> Any:
    """The module ``cuda.bindings.runtime``; raises the error of CUDA_BINDINGS."""
    try:
        from cuda.bindings import runtime
    except (ImportError, RuntimeError) as error:  # RuntimeError: a library of CUDA's is not found
        raise unavailable(Code.CUDA_BINDINGS, f"{type(error).__name__}: {error}").error() from error
    return runtime


def use_gpu(number: int) -> None:
    """Make GPU ``number`` the calling thread's: TensorRT builds and opens engines on that one. The first one is it
    already, as long as nothing has changed it. Raises the errors of CUDA_BINDINGS and NO_DRIVER_OR_GPU."""
    if number:
        CudaCalls(import_cuda_runtime(), number).use()
