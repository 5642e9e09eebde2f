"""A CUDA runtime of Python for tests: memory is bytes by address, a stream runs at once or records.

Not a test. Calls take exactly the arguments of ``cuda.bindings.runtime`` (test_cuda_device.py compares the
signatures with the genuine ones) and return (error, result…) as those do. Reading or writing outside of
what was allocated is an error here, where a GPU might report none.
"""

# ruff: noqa: N801, N802, N803, N815  # names are CUDA's

from __future__ import annotations

import ctypes
import enum
import itertools
from collections.abc import Callable
from typing import Any


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorStreamCaptureInvalidated = 901


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


OK = cudaError_t.cudaSuccess


class FakeCuda:
    """One device. ``limit``: bytes it has; ``fails``: call -> the error it returns."""

    cudaError_t, cudaMemcpyKind, cudaStreamCaptureMode = cudaError_t, cudaMemcpyKind, cudaStreamCaptureMode

    def __init__(self, *, limit: int = 1 << 30) -> None:
        self.limit = limit
        self.fails: dict[str, cudaError_t] = {}
        self.memory: dict[int, bytearray] = {}
        self.calls: list[str] = []
        self.recording: list[Callable[[], None]] | None = None
        self._next = itertools.count(1)

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if not name.startswith("cuda") or isinstance(found, type):
            return found

        def call(*args: Any) -> Any:
            self.calls.append(name)
            if name in self.fails and name == "cudaStreamEndCapture":
                self.recording = None  # whatever it returns, the stream is no longer recording
            return (self.fails[name],) if name in self.fails else found(*args)

        return call

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:
        return (OK,)

    def cudaStreamCreate(self) -> tuple[Any, ...]:
        return OK, 7

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        assert size > 0
        if sum(map(len, self.memory.values())) + size > self.limit:
            return (cudaError_t.cudaErrorMemoryAllocation, None)
        pointer = next(self._next) << 32
        self.memory[pointer] = bytearray(size)
        return OK, pointer

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: Any, stream: int) -> tuple[Any, ...]:
        assert self.recording is None, "a copy of pageable memory cannot be captured"
        if kind == cudaMemcpyKind.cudaMemcpyHostToDevice:
            self.view(dst, count)[:] = ctypes.string_at(src, count)
        else:
            ctypes.memmove(dst, bytes(self.view(src, count)), count)
        return (OK,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        assert self.recording is None, "waiting cannot be captured"
        return (OK,)

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> tuple[Any, ...]:
        self.recording = []
        return (OK,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        recorded, self.recording = self.recording, None
        return OK, recorded

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[Any, ...]:
        return OK, list(graph)

    def cudaGraphDestroy(self, graph: Any) -> tuple[Any, ...]:
        graph.clear()
        return (OK,)

    def cudaGraphExecDestroy(self, graphExec: Any) -> tuple[Any, ...]:
        return (OK,)

    def cudaGraphLaunch(self, graphExec: Any, stream: int) -> tuple[Any, ...]:
        for kernel in graphExec:
            kernel()
        return (OK,)

    def cudaGetErrorString(self, error: Any) -> tuple[Any, ...]:
        return OK, b"what CUDA says"

    def view(self, pointer: int, count: int) -> memoryview:
        """``count`` bytes at ``pointer``, which must lie inside of one allocation."""
        block = self.memory[pointer]
        assert count <= len(block), f"{count} bytes of a block of {len(block)}"
        return memoryview(block)[:count]

    def run(self, kernel: Callable[[], None]) -> None:
        """Work that TensorRT puts on the stream."""
        if self.recording is None:
            kernel()
        else:
            self.recording.append(kernel)
