"""A TensorRT engine as a session: buffers for the profile's largest shapes, values that stay on the GPU.

Outputs are written to device blocks that are reused when their value is dropped (cuda_device.py): while a caption is
generated, two blocks per layer alternate, the ``present`` of one step and of the next.

A run with shapes and addresses seen before is replayed as a CUDA graph: a caption step launches some hundred small
kernels, and launching them costs more than running them. TensorRT allows several captured graphs of one context only
when the application provides the context's memory
(https://docs.nvidia.com/deeplearning/tensorrt/latest/performance/best-practices.html), so it does here.

Not run on hardware yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....base.errors import InvariantError
from ..session import Array, Feed, Value, on_host, wanted_outputs
from ..unavailable import Code, unavailable
from .cuda_device import Block, CudaDevice, DeviceValue, Shape, size_of
from .engine import LoadedEngine
from .network import TENSORRT_DTYPES
from .profile import InputRange, range_problem

MAX_CAPTURED_GRAPHS = 128  # graphs of one session: 20 caption steps, each with some sets of addresses
Key = tuple[tuple[Shape, ...], tuple[int, ...]]  # shapes of the inputs, addresses of all tensors


@dataclass(frozen=True)
class _Tensor:
    name: str
    dtype: np.dtype[Any]
    largest: Shape

    @property
    def size(self) -> int:
        return size_of(self.largest, self.dtype)


@dataclass(frozen=True)
class _Captured:
    graph: Any
    shapes: Mapping[str, Shape]  # of the outputs


class TensorRtSession:
    """An opened engine (backends/session.py). Runs of a device's sessions wait for each other,
    whatever thread they come from.

    ``cuda_graphs=False`` launches every run without a CUDA graph.
    """

    computes_on_host = False

    def __init__(
        self, trt: Any, opened: LoadedEngine, device: CudaDevice, *, name: str, where: str, cuda_graphs: bool = True
    ) -> None:
        self._opened, self._device, self._name = opened, device, name
        self.where = where
        engine = opened.engine
        # Without its own memory: see above.
        self._context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self._context is None:
            raise unavailable(Code.GPU_MEMORY, f"graph '{name}': no execution context: {opened.log.errors}").error()
        size = int(engine.device_memory_size_v2)
        self._scratch = device.take((name, "scratch"), size)
        self._context.set_device_memory(self._scratch.pointer, size)
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        is_input = {tensor: engine.get_tensor_mode(tensor) == trt.TensorIOMode.INPUT for tensor in names}
        self.inputs = tuple(tensor for tensor in names if is_input[tensor])
        self.outputs = tuple(tensor for tensor in names if not is_input[tensor])
        self._ranges = tuple(_range(engine, tensor) for tensor in self.inputs)
        self._sources = {
            wanted.name: _Tensor(wanted.name, _dtype(engine, wanted.name), wanted.largest) for wanted in self._ranges
        }
        largest = self._shapes_of({wanted.name: wanted.largest for wanted in self._ranges})
        self._results = {tensor: _Tensor(tensor, _dtype(engine, tensor), largest[tensor]) for tensor in self.outputs}
        self._staging: dict[str, Block] = {}  # for inputs that come from the host; most are on the device already
        for tensor in self._results.values():
            device.give_back(device.take((name, tensor.name), tensor.size))
        self._max_captured = MAX_CAPTURED_GRAPHS if cuda_graphs else 0
        self._captured: dict[Key, _Captured] = {}
        self._seen: set[Key] = set()

    @property
    def usual(self) -> dict[str, tuple[Shape, np.dtype[Any]]]:
        """By input the shape for which the engine is fastest, and its type."""
        return {wanted.name: (wanted.usual, self._sources[wanted.name].dtype) for wanted in self._ranges}

    def value(self, of: Feed) -> Value:
        if isinstance(of, DeviceValue) and of.device is self._device:
            return of
        return self._device.value(np.asarray(on_host(of), order="C"))

    def borrow(self, array: Array) -> Value:
        return self.value(array)

    def run(self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        with self._device.lock:
            return {name: value.numpy() for name, value in self.run_values(feeds, outputs).items()}

    def run_values(self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None = None) -> dict[str, Value]:
        """See Session. Raises PROFILE_RANGE, before anything is launched, for a shape outside of the profile."""
        with self._device.lock:
            return self._run(feeds, outputs)

    def _run(self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None) -> dict[str, Value]:
        ready = {name: self._ready(name, feeds) for name in self.inputs}
        shapes = {name: feed.shape for name, feed in ready.items()}
        if problem := range_problem(self._name, self._ranges, shapes):
            raise problem.error()
        addresses = {name: self._address(name, feed) for name, feed in ready.items()}
        blocks = {name: self._device.take((self._name, name), tensor.size) for name, tensor in self._results.items()}
        try:
            found = self._launch(shapes, addresses | {name: block.pointer for name, block in blocks.items()})
        except BaseException:
            for block in blocks.values():
                self._device.give_back(block)
            raise
        values = {name: self._result(name, block, found[name]) for name, block in blocks.items()}
        return {name: values[name] for name in wanted_outputs(self, outputs)}

    def _ready(self, name: str, feeds: Mapping[str, Feed]) -> DeviceValue | Array:
        """A value of this device, or an array to copy to it."""
        if name not in feeds:
            raise InvariantError(f"graph '{self._name}': input {name} is not given")
        feed = feeds[name]
        own = isinstance(feed, DeviceValue) and feed.device is self._device
        ready = feed if isinstance(feed, DeviceValue) and own else np.asarray(on_host(feed), order="C")
        if ready.dtype != self._sources[name].dtype:
            expected = self._sources[name].dtype
            raise InvariantError(f"graph '{self._name}': input {name} is {ready.dtype}, expected {expected}")
        return ready

    def _address(self, name: str, feed: DeviceValue | Array) -> int:
        if isinstance(feed, DeviceValue):
            return feed.pointer
        if name not in self._staging:
            self._staging[name] = self._device.take((self._name, name), self._sources[name].size)
        pointer = self._staging[name].pointer
        self._device.upload(pointer, feed)
        return pointer

    def _result(self, name: str, block: Block, shape: Shape) -> DeviceValue:
        return DeviceValue(self._device, block, shape, self._results[name].dtype)

    def _launch(self, shapes: Mapping[str, Shape], addresses: Mapping[str, int]) -> Mapping[str, Shape]:
        """Run, or replay a captured run; return the shapes of the outputs."""
        key = (tuple(shapes[name] for name in self.inputs), tuple(addresses.values()))
        if (known := self._captured.get(key)) is not None:
            self._device.launch(known.graph)
            return known.shapes
        found = self._shapes_of(shapes)
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise self._failed_error(f"TensorRT did not accept the address of {name}")
        self._enqueue()
        if key in self._seen and len(self._captured) < self._max_captured:
            # Right after a plain run: TensorRT finishes its deferred work at the first launch of a shape,
            # which cannot be captured.
            graph = self._device.capture(self._enqueue)
            if graph is None:
                self._max_captured = 0
            else:
                self._captured[key] = _Captured(graph, found)
        elif len(self._seen) < 8 * MAX_CAPTURED_GRAPHS:
            self._seen.add(key)
        return found

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._device.stream):
            raise self._failed_error("TensorRT did not launch")

    def _shapes_of(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Set the inputs' shapes in the context, which infers the outputs'."""
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                evidence = f"TensorRT did not accept {name} of shape {list(shape)}: {self._opened.log.errors}"
                raise unavailable(Code.PROFILE_RANGE, f"graph '{self._name}': {evidence}").error()
        if unknown := self._context.infer_shapes():
            raise self._failed_error(f"TensorRT cannot infer shapes without {', '.join(unknown)}")
        return {name: tuple(self._context.get_tensor_shape(name)) for name in self.outputs}

    def _failed_error(self, problem: str) -> Exception:
        evidence = f"graph '{self._name}': {problem}: {self._opened.log.errors or 'nothing was logged'}"
        return unavailable(Code.BACKEND_FAILED, evidence).error()


def _range(engine: Any, name: str) -> InputRange:
    smallest, usual, largest = (tuple(shape) for shape in engine.get_tensor_profile_shape(name, 0))
    return InputRange(name, smallest, usual, largest)


def _dtype(engine: Any, name: str) -> np.dtype[Any]:
    """NumPy type of a tensor. Our graphs' inputs and outputs are float32 and int64."""
    word = engine.get_tensor_dtype(name).name
    try:
        return np.dtype(TENSORRT_DTYPES[word])
    except (KeyError, TypeError) as error:
        raise unavailable(
            Code.PLAN_REJECTED, f"tensor {name} is {word}, for which NumPy has no type"
        ).error() from error
