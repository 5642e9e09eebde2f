"""One NVIDIA GPU through ``cuda.bindings``: streams, memory, copies, captured graphs.

Sessions have a stream each, so that one computes while the other's values are copied. What orders the streams is in
cuda_memory.py. Two more streams copy: arrays go up and results come down while the sessions compute, through
page-locked buffers of the host.

Every public method may be called from any thread: CUDA's current GPU is a setting of the thread, so each begins by
setting it. Locks are taken in this order, and a later one never waits for an earlier one: a session's, that of a
copying stream, ``memory.rare``, those of the lists, that of a stream's marks.

Not run on hardware yet. Calls and their results are those of the CUDA runtime API
(https://docs.nvidia.com/cuda/cuda-runtime-api/).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from ....base.errors import FlamestError
from ..element_types import ElementType
from ..session import Array, Shape
from .cuda_calls import CudaCalls, import_cuda_runtime
from .cuda_memory import Block, DeviceMemory, PinnedMemory
from .cuda_streams import Mark, Stream, host_wait


class HeldBlock:
    """A block in use. It is given back when the last value that lies in it is garbage-collected."""

    def __init__(self, device: CudaDevice, block: Block) -> None:
        self.device, self.block = device, block
        weakref.finalize(self, device.memory.give_back, block)


class DeviceValue:
    """An array at the beginning of a block on a device (session.Value). Its content does not change."""

    def __init__(self, held: HeldBlock, shape: Shape, dtype: ElementType) -> None:
        self.held = held
        self.shape = shape
        self.dtype = dtype
        self.nbytes = dtype.size_of(shape)
        self.device = held.device
        self.pointer = held.block.pointer

    def numpy(self) -> Array:
        """On the host; waits until it is computed. bfloat16 becomes float32, exactly."""
        return self.dtype.values_of(self.bits())

    def wait(self) -> None:
        """Wait until it is computed."""
        self.device.calls.use()
        host_wait(self.device.calls, self.held.block.accesses.written)

    def bits(self) -> Array:
        """The same as it is on the device: bfloat16 as uint16."""
        return self.device.download(self)


class CudaDevice:
    """GPU ``number``. ``open`` gives one per process and GPU: values of one device pass between its sessions, of
    whatever runtime, without a copy.

    Methods raise the errors of NO_DRIVER_OR_GPU, GPU_MEMORY and BACKEND_FAILED.
    """

    def __init__(self, runtime: Any, *, number: int = 0) -> None:
        self.number = number
        self.calls = CudaCalls(runtime, number)
        self.calls.use()
        self.memory = DeviceMemory(self.calls)
        self.pinned = PinnedMemory(self.calls, self.memory.rare)
        self._up, self._down = Stream(self.calls), Stream(self.calls)
        self._up_lock, self._down_lock = threading.Lock(), threading.Lock()
        self._idle_streams: list[Stream] = []

    @classmethod
    def open(cls, *, number: int = 0) -> CudaDevice:
        """GPU ``number`` of this process, opened when it is asked for first. Raises the error of CUDA_BINDINGS too."""
        with _OPENING:
            if number not in _OPENED:
                _OPENED[number] = cls(import_cuda_runtime(), number=number)
            return _OPENED[number]

    def take_stream(self) -> Stream:
        """A stream for one session. It is never destroyed: blocks may keep its marks."""
        self.calls.use()
        try:
            return self._idle_streams.pop()
        except IndexError:
            return Stream(self.calls)

    def give_stream(self, stream: Stream) -> None:
        """Give a session's stream to the next session."""
        self._idle_streams.append(stream)

    def upload(self, block: Block, bits: Array, stream: Stream | None = None) -> None:
        """Copy a C-contiguous array to the beginning of ``block``: on ``stream``, which the caller holds, or on the
        device's own, while the sessions compute. The array may be changed afterwards."""
        self.calls.use()
        if not bits.nbytes:
            return
        with self.pinned.buffer(bits.nbytes) as pinned:
            pinned.buffer.fill(bits)
            if stream is not None:
                pinned.mark = self._copy_up(block, pinned.buffer.pointer, bits.nbytes, stream)
                return
            with self._up_lock:
                pinned.mark = self._copy_up(block, pinned.buffer.pointer, bits.nbytes, self._up)

    def _copy_up(self, block: Block, source: int, size: int, stream: Stream) -> Mark:
        self.memory.order(stream, writes=[block])
        kind = self.calls.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.calls("cudaMemcpyAsync", block.pointer, source, size, kind, stream.handle)
        mark = stream.mark() if stream is self._up else stream.open_mark()
        self.memory.used(mark, writes=[block])
        return mark

    def download(self, value: DeviceValue) -> Array:
        """Bits of a value on the host; waits until they are computed, and for nothing that was started later."""
        bits = np.empty(value.shape, value.dtype.bits_dtype)
        if not bits.nbytes:
            return bits
        self.calls.use()
        block = value.held.block
        with self.pinned.buffer(bits.nbytes) as pinned:
            with self._down_lock:
                self.memory.order(self._down, reads=[block])
                kind = self.calls.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
                self.calls(
                    "cudaMemcpyAsync", pinned.buffer.pointer, block.pointer, bits.nbytes, kind, self._down.handle
                )
                pinned.mark = self._down.mark()
                self.memory.used(pinned.mark, reads=[block])
            host_wait(self.calls, pinned.mark)
            pinned.buffer.read(bits)
        return bits

    def capture(self, stream: Stream, enqueue: Callable[[], None]) -> Any | None:
        """Record the work that ``enqueue`` puts on the stream without running it; None when it cannot be captured.

        A failed capture leaves nothing behind: the stream is out of capture mode, the half graph destroyed, the error
        cleared (as NVIDIA's trtexec does after its captures).
        """
        runtime = self.calls.runtime
        # Other threads may go on meanwhile, on other streams.
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        with self.memory.rare, stream.lock:
            graph, whole = None, False
            try:
                self.calls("cudaStreamBeginCapture", stream.handle, mode)
            except FlamestError:
                return None
            try:
                enqueue()
                whole = True
            except Exception:  # whatever it was: the stream has to leave capture mode
                whole = False
            finally:
                graph = self.calls.quietly("cudaStreamEndCapture", stream.handle)
            try:
                return self.calls("cudaGraphInstantiate", graph, 0) if whole and graph is not None else None
            except FlamestError:
                return None
            finally:
                if graph is not None:
                    self.calls.quietly("cudaGraphDestroy", graph)
                runtime.cudaGetLastError()

    def launch(self, captured: Any, stream: Stream) -> None:
        """Run a captured graph."""
        self.calls("cudaGraphLaunch", captured, stream.handle)


_OPENING = threading.Lock()
_OPENED: dict[int, CudaDevice] = {}
