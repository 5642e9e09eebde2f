"""One NVIDIA GPU through ``cuda.bindings``: a stream, reused blocks of memory, captured graphs.

All work goes to one stream in order. So a block that is given back may be taken again at once: its pending reads come
before the next write.

Not run on hardware yet. Calls and their results are those of the CUDA runtime API
(https://docs.nvidia.com/cuda/cuda-runtime-api/); each returns (error, result…).
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..session import Array
from ..unavailable import Code, unavailable

Shape = tuple[int, ...]
NO_DRIVER = ("cudaErrorInsufficientDriver", "cudaErrorNoDevice", "cudaErrorInitializationError")
NO_MEMORY = ("cudaErrorMemoryAllocation",)


class CudaFailed(Exception):
    """A call of the CUDA runtime returned an error."""

    def __init__(self, call: str, name: str, text: str) -> None:
        super().__init__(f"{call}: {name}: {text}")
        self.name = name


@dataclass(frozen=True)
class Block:
    """Memory on the device; ``kind`` names the list of free blocks that it returns to."""

    pointer: int
    size: int  # bytes
    kind: Hashable


class DeviceValue:
    """An array on the device. Its block is given back when the value is garbage-collected."""

    def __init__(self, device: CudaDevice, block: Block, shape: Shape, dtype: npt.DTypeLike) -> None:
        self.device = device
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.pointer = block.pointer
        weakref.finalize(self, device.give_back, block)

    def numpy(self) -> Array:
        return self.device.download(self.pointer, self.shape, self.dtype)


class CudaDevice:
    """GPU ``number``. Open one per process and share it: values of one device pass between its sessions.

    A caller holds ``lock`` while its work on the stream belongs together: work of a second thread between the calls
    of a run would be recorded with it, and repeated with every replay. Methods raise the errors of NO_DRIVER_OR_GPU,
    GPU_MEMORY and BACKEND_FAILED.
    """

    def __init__(self, runtime: Any, *, number: int = 0) -> None:
        self._runtime = runtime
        self._free: dict[Hashable, list[Block]] = {}
        self._sent: list[Array] = []  # sources of copies that may not have finished
        self.lock = threading.RLock()
        self._call("cudaSetDevice", number)
        self.stream = int(self._call("cudaStreamCreate"))

    @classmethod
    def open(cls, *, number: int = 0) -> CudaDevice:
        return cls(import_cuda_runtime(), number=number)

    def take(self, kind: Hashable, size: int) -> Block:
        """A block of at least ``size`` bytes: one of this ``kind`` that was given back, or a new one.

        All blocks of a kind have one size, so there are as many as are held at one time.
        """
        free = self._free.setdefault(kind, [])
        if free:
            return free.pop()
        return Block(int(self._call("cudaMalloc", max(size, 1))), size, kind)

    def give_back(self, block: Block) -> None:
        self._free.setdefault(block.kind, []).append(block)

    def value(self, array: Array) -> DeviceValue:
        """A copy of ``array``."""
        with self.lock:
            block = self.take(("bytes", array.nbytes), array.nbytes)
            self.upload(block.pointer, array)
        return DeviceValue(self, block, array.shape, array.dtype)

    def upload(self, pointer: int, array: Array) -> None:
        """Copy a C-contiguous ``array`` to the device."""
        if array.nbytes:
            kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
            self._call("cudaMemcpyAsync", pointer, array.ctypes.data, array.nbytes, kind, self.stream)
            self._sent.append(array)

    def download(self, pointer: int, shape: Shape, dtype: np.dtype[Any]) -> Array:
        """Copy to the host, after all earlier work on the stream."""
        array = np.empty(shape, dtype)
        with self.lock:
            if array.nbytes:
                kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
                self._call("cudaMemcpyAsync", array.ctypes.data, pointer, array.nbytes, kind, self.stream)
            self.wait()
        return array

    def wait(self) -> None:
        self._call("cudaStreamSynchronize", self.stream)
        self._sent.clear()

    def capture(self, enqueue: Callable[[], None]) -> Any | None:
        """Record the work that ``enqueue`` puts on the stream without running it; None when it cannot be captured."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self.stream, mode)
        failed = False
        try:
            enqueue()
        except Exception:  # whatever it was: the stream has to leave capture mode first
            failed = True
        try:
            graph = self._call("cudaStreamEndCapture", self.stream)
            if failed:
                return None
            captured = self._call("cudaGraphInstantiate", graph, 0)
            self._call("cudaGraphDestroy", graph)
        except _REFUSED:
            return None
        return captured

    def launch(self, captured: Any) -> None:
        self._call("cudaGraphLaunch", captured, self.stream)

    def forget(self, captured: Any) -> None:
        self._call("cudaGraphExecDestroy", captured)

    def _call(self, name: str, *arguments: Any) -> Any:
        """The call's one result, or None."""
        error, *results = getattr(self._runtime, name)(*arguments)
        if error != self._runtime.cudaError_t.cudaSuccess:
            text = self._runtime.cudaGetErrorString(error)[1].decode(errors="replace")
            raise _device_error(CudaFailed(name, error.name, text))
        return results[0] if results else None


_REFUSED = tuple({type(unavailable(code, "").error()) for code in (Code.NO_DRIVER_OR_GPU, Code.BACKEND_FAILED)})


def _device_error(failed: CudaFailed) -> Exception:
    if failed.name in NO_DRIVER:
        code = Code.NO_DRIVER_OR_GPU
    elif failed.name in NO_MEMORY:
        code = Code.GPU_MEMORY
    else:
        code = Code.BACKEND_FAILED
    return unavailable(code, str(failed)).error()


def size_of(shape: Shape, dtype: npt.DTypeLike) -> int:
    """Bytes of an array."""
    return math.prod(shape) * np.dtype(dtype).itemsize


def import_cuda_runtime() -> Any:
    """The module ``cuda.bindings.runtime``; raises the error of CUDA_BINDINGS."""
    try:
        from cuda.bindings import runtime
    except (ImportError, RuntimeError) as error:  # RuntimeError: a library of CUDA's is not found
        raise unavailable(Code.CUDA_BINDINGS, f"{type(error).__name__}: {error}").error() from error
    return runtime
