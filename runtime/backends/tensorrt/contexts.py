"""Execution contexts of one engine over shared scratch memory, and the CUDA graphs captured from them.

TensorRT's developer guide (https://docs.nvidia.com/deeplearning/tensorrt/latest/performance/best-practices.html, "CUDA
Graphs") calls changing a context that a graph was captured from undefined behaviour, and recommends one context for
each captured graph, over one device memory: contexts may share it as long as they do not run at once. So a graph has a
context of its own, whose shapes and addresses are never set again, and plain runs use another one for each
optimisation profile, from which nothing is captured.

Contexts may share an optimisation profile since TensorRT 10.0 (``PreviewFeature.PROFILE_SHARING_0806`` is on there, and
no longer a choice in 11). Switching it is work on the session's stream, so it comes before the runs there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ....base.errors import FlamestError
from ..session import Shape
from ..unavailable import Code, unavailable
from .cuda_device import CudaDevice
from .cuda_memory import Block
from .cuda_streams import Stream
from .engine import LoadedEngine

MAX_CAPTURED_GRAPHS = 64  # of one session; the one used longest ago gives way
MAX_COUNTED_RUNS = 1024  # different runs whose repetitions are counted
RUNS_BEFORE_CAPTURE = 1
RUNS_BEFORE_REPLACING = 8  # where another graph has to give way


@dataclass(frozen=True)
class EngineRun:
    """One run: optimisation profile, shapes of the inputs, addresses of all tensors."""

    profile: int
    shapes: Mapping[str, Shape]
    addresses: Mapping[str, int]

    @property
    def key(self) -> tuple[int, tuple[Shape, ...], tuple[int, ...]]:
        return self.profile, tuple(self.shapes.values()), tuple(self.addresses.values())


class EngineContext:
    """An execution context with an optimisation profile. Raises BACKEND_FAILED where TensorRT does not go on."""

    def __init__(self, trt: Any, opened: LoadedEngine, name: str, profile: int, stream: Stream, scratch: Block) -> None:
        self._name, self._opened, self._stream = name, opened, stream
        # USER_MANAGED: without memory of its own. All contexts of the engine use its scratch memory.
        context = opened.engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise unavailable(Code.GPU_MEMORY, f"graph '{name}': no execution context: {opened.log.errors}").error()
        self._context = context
        context.set_device_memory(scratch.pointer, scratch.size)
        if not context.set_optimization_profile_async(profile, stream.handle):
            raise self._failed_error(f"TensorRT did not accept optimisation profile {profile}")

    def set_shapes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Set the inputs' shapes; return those of all tensors."""
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                evidence = f"TensorRT did not accept {name} of shape {list(shape)}: {self._opened.log.errors}"
                raise unavailable(Code.PROFILE_RANGE, f"graph '{self._name}': {evidence}").error()
        try:
            unknown = self._context.infer_shapes()
        except RuntimeError as error:
            raise self._failed_error(f"TensorRT cannot infer shapes: {error}") from error
        if unknown:
            raise self._failed_error(f"TensorRT cannot infer shapes without {', '.join(unknown)}")
        engine = self._opened.engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        return {name: tuple(self._context.get_tensor_shape(name)) for name in names}

    def set_addresses(self, addresses: Mapping[str, int]) -> None:
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise self._failed_error(f"TensorRT did not accept the address of {name}")

    def enqueue(self) -> None:
        """Put a run on the stream."""
        if not self._context.execute_async_v3(self._stream.handle):
            raise self._failed_error("TensorRT did not launch")

    def _failed_error(self, problem: str) -> FlamestError:
        evidence = f"graph '{self._name}': {problem}: {self._opened.log.errors or 'nothing was logged'}"
        return unavailable(Code.BACKEND_FAILED, evidence).error()


@dataclass(frozen=True, eq=False)
class _Captured:
    graph: Any
    context: EngineContext  # must live as long as the graph


class EngineContexts:
    """The contexts of one session. The caller holds the session's lock, and the device is the thread's."""

    def __init__(
        self, trt: Any, opened: LoadedEngine, device: CudaDevice, *, name: str, stream: Stream, cuda_graphs: bool
    ) -> None:
        self._trt, self._opened, self._device, self._name, self._stream = trt, opened, device, name, stream
        # The largest of the profiles' sizes: enough for all contexts.
        self._scratch = device.memory.take((stream, "scratch"), int(opened.engine.device_memory_size_v2))
        self._plain: dict[int, EngineContext] = {}  # by profile
        self._plain_shapes: dict[int, Mapping[str, Shape]] = {}  # of the inputs, as they are set
        self._captured: OrderedDict[Any, _Captured] = OrderedDict()
        self._counted: OrderedDict[Any, int] = OrderedDict()
        self._captures = cuda_graphs
        self.replays = 0  # runs that a CUDA graph did
        self.captures = 0  # CUDA graphs that were made, those that are gone included

    def all_shapes(self, profile: int, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Shapes of all tensors for those of the inputs."""
        with self._whole(profile):
            found = self._plain_context(profile).set_shapes(shapes)
        self._plain_shapes[profile] = dict(shapes)
        return found

    def launch(self, run: EngineRun) -> None:
        """Put a run on the stream: by its CUDA graph if it has one, else by TensorRT."""
        captured = self._captured.get(run.key)
        if captured is not None and self._replay(run, captured):
            return
        if self._should_capture(run) and self._launch_and_capture(run):
            return
        with self._whole(run.profile):
            context = self._plain_context(run.profile)
            if self._plain_shapes.get(run.profile) != run.shapes:
                context.set_shapes(run.shapes)
                self._plain_shapes[run.profile] = dict(run.shapes)
            context.set_addresses(run.addresses)
            context.enqueue()

    def close(self) -> None:
        """Destroy graphs and contexts."""
        self._stream.synchronize()
        while self._captured:
            self._drop(next(iter(self._captured)))
        self._plain.clear()
        self._plain_shapes.clear()
        self._device.memory.free([self._scratch])
        self._captures = False

    def _make(self, profile: int) -> EngineContext:
        """A context; where the GPU is full, free blocks are given back to it first."""
        asked = (self._trt, self._opened, self._name, profile, self._stream, self._scratch)
        with self._device.memory.rare:  # it allocates
            try:
                return EngineContext(*asked)
            except FlamestError as error:
                if error.code != Code.GPU_MEMORY:
                    raise
            self._device.memory.trim()
            return EngineContext(*asked)

    def _plain_context(self, profile: int) -> EngineContext:
        if profile not in self._plain:
            self._plain[profile] = self._make(profile)
        return self._plain[profile]

    @contextmanager
    def _whole(self, profile: int) -> Iterator[None]:
        """Drop the profile's plain context, after its work, when a failure may have left it half set."""
        try:
            yield
        except BaseException:
            self._device.calls.quietly("cudaStreamSynchronize", self._stream.handle)
            self._plain.pop(profile, None)
            self._plain_shapes.pop(profile, None)
            raise

    def _should_capture(self, run: EngineRun) -> bool:
        if not self._captures:
            return False
        key = run.key
        seen = self._counted.pop(key, 0)
        needed = RUNS_BEFORE_CAPTURE if len(self._captured) < MAX_CAPTURED_GRAPHS else RUNS_BEFORE_REPLACING
        if seen >= needed:
            return True
        self._counted[key] = seen + 1
        if len(self._counted) > MAX_COUNTED_RUNS:
            self._counted.popitem(last=False)
        return False

    def _launch_and_capture(self, run: EngineRun) -> bool:
        """Run in a new context, then capture the same run there; False when it did not run.

        TensorRT finishes deferred work at the first launch of a shape, which cannot be captured. After a failed
        capture there are no further ones.
        """
        try:
            context = self._make(run.profile)
            context.set_shapes(run.shapes)
            context.set_addresses(run.addresses)
            context.enqueue()
        except Exception:  # whatever it was, a plain run follows and has its error
            self._captures = False
            self._device.calls.quietly("cudaStreamSynchronize", self._stream.handle)
            return False
        graph = self._device.capture(self._stream, context.enqueue)
        if graph is None:
            self._captures = False
            self._stream.synchronize()  # before the context goes, which still runs
            return True
        if len(self._captured) >= MAX_CAPTURED_GRAPHS:
            self._stream.synchronize()
            self._drop(next(iter(self._captured)))
        self._captured[run.key] = _Captured(graph, context)
        self.captures += 1
        return True

    def _replay(self, run: EngineRun, captured: _Captured) -> bool:
        """Launch the graph; False when that failed, and the graph is gone."""
        try:
            self._device.launch(captured.graph, self._stream)
        except FlamestError:
            self._captures = False
            self._device.calls.quietly("cudaStreamSynchronize", self._stream.handle)
            self._drop(run.key)
            return False
        self._captured.move_to_end(run.key)
        self.replays += 1
        return True

    def _drop(self, key: Any) -> None:
        captured = self._captured.pop(key)
        self._device.calls.quietly("cudaGraphExecDestroy", captured.graph)
