"""A CUDA runtime of Python for tests: memory, streams, events and captures, and the rules that a GPU does not check.

Not a test. Calls take exactly the arguments of ``cuda.bindings.runtime`` (test_cuda_device.py compares the
signatures with the genuine ones) and return (error, result…) as those do.

Work is put off until something waits for it, so what is read too early is read wrong. Whether two pieces of work are
in order is decided by vector clocks (Lamport): of two that touch the same bytes, one of them writing, one must come
after the other through a stream, an event or the host's waiting. What breaks a rule raises AssertionError and is kept
in ``problems``, for code that catches exceptions:

- reading or writing outside of what is allocated, or what nobody wrote;
- work that is not in order with other work on the same bytes; freeing what work may still use;
- copies from or to memory of the host that is not page-locked;
- a stream, event or address of another GPU than the thread's current one;
- within a capture: events, and work of another thread. (Allocating and waiting invalidate it, as in CUDA.)
"""

# ruff: noqa: N801, N802, N803, N815  # names are CUDA's

from __future__ import annotations

import ctypes
import enum
import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Clock = dict[int, int]  # by stream the number of the newest work that is known to come before
Span = tuple[int, int]  # address, bytes
FORBIDDEN_IN_CAPTURE = (
    "cudaMalloc", "cudaFree", "cudaHostAlloc", "cudaFreeHost", "cudaStreamSynchronize", "cudaEventSynchronize",
    "cudaStreamCreateWithFlags",
)  # fmt: skip


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorInvalidDevice = 101
    cudaErrorLaunchFailure = 719
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901
    cudaErrorStreamCaptureIsolation = 905


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


OK = cudaError_t.cudaSuccess


@dataclass
class Work:
    """Something on a stream: ``run`` reads and writes the spans; a wait has ``after`` = (stream, how much of it)."""

    run: Callable[[], None] = lambda: None
    reads: Sequence[Span] = ()
    writes: Sequence[Span] = ()
    after: tuple[FakeStream, int] | None = None


@dataclass
class Capture:
    thread: int
    works: list[Work] = field(default_factory=list)
    invalid: bool = False


@dataclass(eq=False)
class FakeStream:
    handle: int
    device: int
    works: list[Work] = field(default_factory=list)
    done: int = 0
    clock: Clock = field(default_factory=dict)
    capture: Capture | None = None


@dataclass(eq=False)
class FakeEvent:
    device: int
    stream: FakeStream | None = None
    position: int = 0
    clock: Clock = field(default_factory=dict)


@dataclass(eq=False)
class Memory:
    device: int
    content: Any  # bytes that can be written
    written: Any  # by byte
    accesses: list[tuple[int, int, bool, int, int]] = field(default_factory=list)  # stream, number, writes, from, to


@dataclass(eq=False)
class FakeGraph:
    works: list[Work]


class FakeCuda:
    """``devices`` GPUs. ``limit``: bytes that each has; ``fails``: call -> its error; ``calls``: their names."""

    cudaError_t, cudaMemcpyKind, cudaStreamCaptureMode = cudaError_t, cudaMemcpyKind, cudaStreamCaptureMode
    cudaHostAllocDefault, cudaStreamNonBlocking, cudaEventBlockingSync, cudaEventDisableTiming = 0, 1, 1, 2

    def __init__(self, *, limit: int = 1 << 30, devices: int = 1) -> None:
        self.limit, self.devices = limit, devices
        self.fails: dict[str, cudaError_t] = {}
        self.calls: list[str] = []
        self.problems: list[str] = []
        self.memory: dict[int, Memory] = {}
        self.graphs: list[FakeGraph] = []  # not destroyed yet, and those that were instantiated:
        self.executables: list[FakeGraph] = []
        self.last_error = OK
        self._pinned: dict[int, Any] = {}
        self._streams: dict[int, FakeStream] = {}
        self._host: Clock = {}
        self._thread = threading.local()
        self._lock = threading.RLock()
        self._next = itertools.count(1)

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if not name.startswith("cuda") or isinstance(found, type) or not callable(found):
            return found

        def call(*args: Any) -> Any:
            with self._lock:
                self.calls.append(name)
                return self._answer(name, found, args)

        return call

    def _answer(self, name: str, found: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        if name in FORBIDDEN_IN_CAPTURE and (captures := self._captures()):
            captures[0].invalid = True
            answer: Any = (cudaError_t.cudaErrorStreamCaptureUnsupported, None)
        elif name in self.fails:
            if name == "cudaStreamEndCapture":  # whatever it returns, the stream is no longer capturing
                self._streams[args[0]].capture = None
            answer = (self.fails[name], None)
        else:
            answer = found(*args)
        if answer[0] and name not in ("cudaGetLastError", "cudaGetErrorString"):
            self.last_error = answer[0]
        return answer

    # Devices and errors

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:
        if not 0 <= device < self.devices:
            return (cudaError_t.cudaErrorInvalidDevice,)
        self._thread.device = device
        return (OK,)

    def cudaGetLastError(self) -> tuple[Any, ...]:
        error, self.last_error = self.last_error, OK
        return (error,)

    def cudaGetErrorString(self, error: Any) -> tuple[Any, ...]:
        return OK, b"what CUDA says"

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        return OK, self.limit - self._allocated(self.current), self.limit

    @property
    def current(self) -> int:
        """The calling thread's GPU."""
        return getattr(self._thread, "device", 0)

    # Memory

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        self._check(size > 0, "nothing was allocated")
        if self._allocated(self.current) + size > self.limit:
            return (cudaError_t.cudaErrorMemoryAllocation, None)
        pointer = next(self._next) << 32
        self.memory[pointer] = Memory(self.current, bytearray(b"\xa5" * size), np.zeros(size, bool))
        return OK, pointer

    def cudaFree(self, devPtr: int) -> tuple[Any, ...]:
        memory = self.memory.get(devPtr)
        self._check(memory is not None, "freed what is not allocated")
        pending = [access for access in memory.accesses if self._host.get(access[0], 0) < access[1]]
        self._check(not pending, "freed what work may still use")
        del self.memory[devPtr]
        return (OK,)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:
        buffer = ctypes.create_string_buffer(b"\x5a" * size, size)
        self._pinned[ctypes.addressof(buffer)] = buffer
        return OK, ctypes.addressof(buffer)

    def cudaFreeHost(self, ptr: int) -> tuple[Any, ...]:
        self._check(ptr in self._pinned, "freed what is not page-locked")
        del self._pinned[ptr]
        return (OK,)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: Any, stream: int) -> tuple[Any, ...]:
        if kind == cudaMemcpyKind.cudaMemcpyHostToDevice:
            self._check_pinned(src, count)
            self._put(stream, Work(lambda: self.write(dst, ctypes.string_at(src, count)), (), [(dst, count)]))
        elif kind == cudaMemcpyKind.cudaMemcpyDeviceToHost:
            self._check_pinned(dst, count)
            self._put(stream, Work(lambda: ctypes.memmove(dst, self.read(src, count), count), [(src, count)]))
        else:
            self._check(abs(dst - src) >= count, "a copy overlaps itself")
            work = Work(lambda: self.write(dst, self.read(src, count)), [(src, count)], [(dst, count)])
            self._put(stream, work)
        return (OK,)

    def cudaMemsetAsync(self, devPtr: int, value: int, count: int, stream: int) -> tuple[Any, ...]:
        self._put(stream, Work(lambda: self.write(devPtr, bytes([value]) * count), (), [(devPtr, count)]))
        return (OK,)

    def read(self, pointer: int, count: int) -> bytes:
        """Bytes on a device, for work that is being done."""
        memory, start = self._find(pointer, count)
        self._check(bool(memory.written[start : start + count].all()), "read what nobody wrote")
        return bytes(memory.content[start : start + count])

    def write(self, pointer: int, data: bytes) -> None:
        memory, start = self._find(pointer, len(data))
        memory.content[start : start + len(data)] = data
        memory.written[start : start + len(data)] = True

    # Streams and events

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        self._check(flags == self.cudaStreamNonBlocking, "a stream that waits for the default stream")
        handle = next(self._next)
        self._streams[handle] = FakeStream(handle, self.current)
        return OK, handle

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        found = self._stream(stream)
        self._advance(found, len(found.works))
        _merge(self._host, found.clock)
        return (OK,)

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        return OK, FakeEvent(self.current)

    def cudaEventRecord(self, event: Any, stream: int) -> tuple[Any, ...]:
        found = self._stream(stream)
        self._check(found.capture is None, "an event was recorded within a capture")
        self._check(event.device == found.device, "event and stream are of two devices")
        event.stream, event.position, event.clock = found, len(found.works), dict(found.clock)
        return (OK,)

    def cudaEventSynchronize(self, event: Any) -> tuple[Any, ...]:
        if event.stream is not None:
            self._advance(event.stream, event.position)
            _merge(self._host, event.clock)
        return (OK,)

    def cudaStreamWaitEvent(self, stream: int, event: Any, flags: int) -> tuple[Any, ...]:
        found = self._stream(stream)
        if found.capture is not None:
            found.capture.invalid = True
            return (cudaError_t.cudaErrorStreamCaptureIsolation,)
        if event.stream is not None:
            found.works.append(Work(after=(event.stream, event.position)))
            _merge(found.clock, event.clock)
        return (OK,)

    # Captures

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> tuple[Any, ...]:
        self._stream(stream).capture = Capture(threading.get_ident())
        return (OK,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        found = self._stream(stream)
        capture, found.capture = found.capture, None
        self._check(capture is not None, "no capture was begun")
        if capture.invalid:
            return cudaError_t.cudaErrorStreamCaptureInvalidated, None
        self.graphs.append(FakeGraph(capture.works))
        return OK, self.graphs[-1]

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[Any, ...]:
        self._check(graph in self.graphs, "the graph is destroyed")
        self.executables.append(FakeGraph(list(graph.works)))
        return OK, self.executables[-1]

    def cudaGraphDestroy(self, graph: Any) -> tuple[Any, ...]:
        self.graphs.remove(graph)
        return (OK,)

    def cudaGraphExecDestroy(self, graphExec: Any) -> tuple[Any, ...]:
        self.executables.remove(graphExec)
        return (OK,)

    def cudaGraphLaunch(self, graphExec: Any, stream: int) -> tuple[Any, ...]:
        self._check(graphExec in self.executables, "a destroyed graph was launched")
        for work in graphExec.works:
            self._put(stream, work)
        return (OK,)

    # For stand-ins of what puts its own work on a stream

    def put(self, stream: int, run: Callable[[], None], *, reads: Sequence[Span], writes: Sequence[Span]) -> None:
        """Work that TensorRT or ONNX Runtime puts on a stream: ``run`` uses ``read`` and ``write`` on the spans."""
        with self._lock:
            self._put(stream, Work(run, reads, writes))

    def is_capturing(self, stream: int) -> bool:
        return self._streams[stream].capture is not None

    def invalidate(self, stream: int) -> None:
        """Work that cannot be captured was put on a stream that is capturing."""
        self._streams[stream].capture.invalid = True

    def finish(self) -> None:
        """Do all work that is left, and check that no rule was broken."""
        for stream in self._streams.values():
            self._advance(stream, len(stream.works))
        assert self.problems == []

    def _put(self, handle: int, work: Work) -> None:
        stream = self._stream(handle)
        if stream.capture is not None:
            self._check(stream.capture.thread == threading.get_ident(), "another thread's work was captured")
            stream.capture.works.append(work)
            return
        _merge(stream.clock, self._host)
        number = stream.clock[handle] = stream.clock.get(handle, 0) + 1
        for writes, spans in ((False, work.reads), (True, work.writes)):
            for pointer, count in spans:
                self._access(stream, number, writes, pointer, count)
        stream.works.append(work)

    def _access(self, stream: FakeStream, number: int, writes: bool, pointer: int, count: int) -> None:
        memory, start = self._find(pointer, count)
        self._check(memory.device == stream.device, "memory of another device")
        for other, at, wrote, begin, end in memory.accesses:
            apart = end <= start or start + count <= begin or not (writes or wrote)
            ordered = other == stream.handle or stream.clock.get(other, 0) >= at
            what = f"{'write' if writes else 'read'} after {'write' if wrote else 'read'}"
            self._check(apart or ordered, f"{what} without waiting for it, at {pointer:#x}")
        if writes:  # all that it covers comes before it
            memory.accesses = [one for one in memory.accesses if one[3] < start or one[4] > start + count]
        memory.accesses.append((stream.handle, number, writes, start, start + count))

    def _advance(self, stream: FakeStream, position: int) -> None:
        while stream.done < position:
            work = stream.works[stream.done]
            stream.done += 1
            if work.after is not None:
                self._advance(*work.after)
            work.run()

    def _stream(self, handle: int) -> FakeStream:
        self._check(handle in self._streams, "no such stream")
        stream = self._streams[handle]
        self._check(stream.device == self.current, "a stream of another device than the thread's")
        return stream

    def _find(self, pointer: int, count: int) -> tuple[Memory, int]:
        base = self._base(pointer)
        self._check(base in self.memory, f"{pointer:#x} is not allocated")
        memory = self.memory[base]
        self._check(pointer - base + count <= len(memory.content), "outside of what is allocated")
        return memory, pointer - base

    def _base(self, pointer: int) -> int:
        return pointer >> 32 << 32

    def _check_pinned(self, pointer: int, count: int) -> None:
        inside = any(base <= pointer and pointer + count <= base + len(of) for base, of in self._pinned.items())
        self._check(inside, "a copy of memory that is not page-locked")

    def _allocated(self, device: int) -> int:
        return sum(len(memory.content) for memory in self.memory.values() if memory.device == device)

    def _captures(self) -> list[Capture]:
        found = [stream.capture for stream in self._streams.values() if stream.capture is not None]
        return [capture for capture in found if capture.thread == threading.get_ident()]

    def _check(self, holds: bool, problem: str) -> None:
        if not holds:
            self.problems.append(problem)
            raise AssertionError(problem)


class HostCuda(FakeCuda):
    """The same with memory of the host, and work that is done at once: for a runtime that computes on the CPU with the
    addresses that it is given. What that one reads and writes is not checked."""

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        buffer = ctypes.create_string_buffer(b"\xa5" * (size + 512), size + 512)
        pointer = -(-ctypes.addressof(buffer) // 256) * 256
        place = (ctypes.c_ubyte * size).from_buffer(buffer, pointer - ctypes.addressof(buffer))
        self.memory[pointer] = Memory(self.current, memoryview(place).cast("B"), np.ones(size, bool))
        return OK, pointer

    def _base(self, pointer: int) -> int:
        return max((base for base in self.memory if base <= pointer), default=0)

    def _put(self, handle: int, work: Work) -> None:
        super()._put(handle, work)
        stream = self._streams[handle]
        self._advance(stream, len(stream.works))


def _merge(clock: Clock, other: Clock) -> None:
    for stream, number in other.items():
        clock[stream] = max(clock.get(stream, 0), number)
