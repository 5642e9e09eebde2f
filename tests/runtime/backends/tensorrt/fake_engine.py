"""A TensorRT engine for tests that computes on fake_cuda.py, from strict fakes of the genuine classes.

Not a test; imported where ``tensorrt_fakes`` can be. An ``EngineSpec`` says what the engine computes. The fake keeps
TensorRT's rules that fake_cuda.py cannot know:

- a context needs its memory, a profile, and shapes within the profile;
- shapes and addresses of a context may not be set again once a graph was captured from it;
- two tensors of which one is empty may not have one address, and every address is a multiple of 256;
- the first launch of a context's shapes cannot be captured;
- an error that CUDA still reports makes the next launch fail;
- each run writes all of the scratch memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Shape = tuple[int, ...]
Arrays = dict[str, Any]


@dataclass
class EngineSpec:
    """``inputs``, ``outputs``: by name TensorRT's type. ``profiles``: in each by input (smallest, usual, largest).

    ``shapes``: shapes of the outputs from those of the inputs; ``compute``: outputs from inputs. Both use NumPy's
    types of the bits (uint16 for BF16).
    """

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    profiles: Sequence[Mapping[str, Sequence[Shape]]]
    shapes: Callable[[Mapping[str, Shape]], dict[str, Shape]]
    compute: Callable[[Arrays], Arrays]
    scratch: int = 64  # bytes
    layers: Sequence[Any] = ("layer",)  # as the inspector describes them: names, or mappings with "Name"


LAYER_MS = 0.25  # that each layer takes, as a profiler hears
BITS = {"FLOAT": "float32", "HALF": "float16", "BF16": "uint16", "INT64": "int64", "INT32": "int32", "UINT8": "uint8"}


@dataclass(eq=False)
class FakeContext:
    """State behind one IExecutionContext."""

    owner: FakeEngine
    profile: int | None = None
    memory: tuple[int, int] | None = None
    shapes: dict[str, Shape] = field(default_factory=dict)
    addresses: dict[str, int] = field(default_factory=dict)
    fresh: bool = True  # its shapes were not launched yet
    captured: bool = False
    made: Any = None  # the fake of the genuine class

    def set_memory(self, memory: int, size: int) -> None:
        self._check_unchanged()
        self.memory = (memory, size)

    def set_profile(self, profile_index: int, stream_handle: int) -> bool:
        self._check_unchanged()
        self.profile, self.shapes, self.fresh = profile_index, {}, True
        return 0 <= profile_index < len(self.owner.spec.profiles)

    def set_shape(self, name: str, shape: Sequence[int]) -> bool:
        self._check_unchanged()
        if self.profile is None:
            return False
        smallest, _, largest = self.owner.spec.profiles[self.profile][name]
        if len(shape) != len(largest) or not all(
            low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)
        ):
            return False
        self.fresh = self.fresh or self.shapes.get(name) != tuple(shape)
        self.shapes[name] = tuple(shape)
        return True

    def set_address(self, name: str, memory: int) -> bool:
        self._check_unchanged()
        self.addresses[name] = memory
        return True

    def infer(self) -> list[str]:
        return [name for name in self.owner.spec.inputs if name not in self.shapes]

    def shape(self, name: str) -> Shape:
        return self.shapes[name] if name in self.shapes else self.owner.spec.shapes(self.shapes)[name]

    def execute(self, stream_handle: int) -> bool:
        cuda, spec = self.owner.cuda, self.owner.spec
        if cuda.last_error or self.memory is None or self.profile is None or self.infer():
            return False
        self._check_addresses()
        if cuda.is_capturing(stream_handle):
            self._check_unchanged()
            if self.fresh or self.owner.fails_in_capture:
                cuda.invalidate(stream_handle)
                return False
            self.captured = True
        self.fresh = False
        self.owner.launched += 1
        shapes, addresses = self.owner.shapes_seen(self), self.owner.addresses_seen(self)
        spans = {name: (addresses[name], self.owner.size(name, shapes[name])) for name in addresses}

        def run() -> None:
            inputs = {name: self.owner.array(name, addresses[name], shapes[name]) for name in spec.inputs}
            for name, array in spec.compute(inputs).items():
                cuda.write(addresses[name], np.ascontiguousarray(array).tobytes())

        reads = [spans[name] for name in spec.inputs if spans[name][1]]
        writes = [*(spans[name] for name in spec.outputs if spans[name][1]), (self.memory[0], spec.scratch)]
        cuda.put(stream_handle, run, reads=reads, writes=writes)
        if isinstance(self.made.profiler, self.owner.trt.IProfiler):
            for layer in spec.layers:
                self.made.profiler.report_layer_time(layer if isinstance(layer, str) else layer["Name"], LAYER_MS)
        return True

    def _check_addresses(self) -> None:
        sizes = {
            name: self.owner.size(name, self.shape(name))
            for name in (*self.owner.spec.inputs, *self.owner.spec.outputs)
        }
        for name in sizes:
            address = self.addresses.get(name)
            self.owner.check(bool(address) and address % 256 == 0, f"{name} has the address {address}")
            self.owner.cuda._find(address, sizes[name])
            others = [other for other in sizes if other != name and self.addresses.get(other) == address]
            self.owner.check(not (others and not sizes[name]), f"{name}, empty, has the address of {others}")

    def _check_unchanged(self) -> None:
        self.owner.check(not self.captured, "a context was changed after its capture")


class FakeEngine:
    """``engine``: for ``LoadedEngine``; ``contexts``: those that were made, oldest first.

    ``launched``: runs that TensorRT itself put on a stream; ``fails``: method of a context -> what it returns instead.
    """

    def __init__(self, trt: Any, fakes: Any, cuda: Any, spec: EngineSpec) -> None:
        self.trt, self.fakes, self.cuda, self.spec = trt, fakes, cuda, spec
        self.contexts: list[FakeContext] = []
        self.made: list[Any] = []
        self.launched = 0
        self.fails: dict[str, Any] = {}
        self.fails_in_capture = False
        names, types = [*spec.inputs, *spec.outputs], {**spec.inputs, **spec.outputs}
        mode = {name: "INPUT" if name in spec.inputs else "OUTPUT" for name in names}
        self.engine = fakes.make(
            "ICudaEngine",
            **{
                "create_execution_context.side_effect": self._make_context,
                "create_engine_inspector.side_effect": self._make_inspector,
                "device_memory_size_v2": spec.scratch,
                "num_io_tensors": len(names),
                "num_optimization_profiles": len(spec.profiles),
                "get_tensor_name.side_effect": names.__getitem__,
                "get_tensor_mode.side_effect": lambda name: getattr(trt.TensorIOMode, mode[name]),
                "get_tensor_dtype.side_effect": lambda name: getattr(trt.DataType, types[name]),
                "get_tensor_profile_shape.side_effect": lambda name, index: list(spec.profiles[index][name]),
            },
        )

    def shapes_seen(self, context: FakeContext) -> dict[str, Shape]:
        """Shapes that a launch of the context computes with; a faulty engine may see others."""
        return {name: context.shape(name) for name in (*self.spec.inputs, *self.spec.outputs)}

    def addresses_seen(self, context: FakeContext) -> dict[str, int]:
        """Addresses that a launch of the context uses."""
        return dict(context.addresses)

    def size(self, name: str, shape: Shape) -> int:
        return int(np.prod(shape)) * np.dtype(self._bits(name)).itemsize

    def array(self, name: str, pointer: int, shape: Shape) -> Any:
        """The input or output at an address, read on the device."""
        size = self.size(name, shape)
        return np.frombuffer(self.cuda.read(pointer, size) if size else b"", self._bits(name)).reshape(shape)

    def check(self, holds: bool, problem: str) -> None:
        if not holds:
            self.cuda.problems.append(problem)
            raise AssertionError(problem)

    def _bits(self, name: str) -> str:
        return BITS[{**self.spec.inputs, **self.spec.outputs}[name]]

    def _make_context(self, strategy: Any) -> Any:
        self.check(strategy == self.trt.ExecutionContextAllocationStrategy.USER_MANAGED, "memory of its own")
        context = FakeContext(self)
        if "create_execution_context" in self.fails:
            return self.fails["create_execution_context"]

        def unless_it_fails(method: str, work: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *args: self.fails[method] if method in self.fails else work(*args)

        methods = {
            "set_device_memory": context.set_memory,
            "set_optimization_profile_async": context.set_profile,
            "set_input_shape": context.set_shape,
            "set_tensor_address": context.set_address,
            "infer_shapes": context.infer,
            "get_tensor_shape": context.shape,
            "execute_async_v3": context.execute,
        }
        self.contexts.append(context)
        sides = {f"{method}.side_effect": unless_it_fails(method, work) for method, work in methods.items()}
        self.made.append(self.fakes.make("IExecutionContext", **sides))
        context.made = self.made[-1]
        return self.made[-1]

    def _make_inspector(self) -> Any:
        described = json.dumps({"Layers": list(self.spec.layers)})
        return self.fakes.make("EngineInspector", **{"get_engine_information.return_value": described})
