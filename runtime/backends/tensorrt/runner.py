"""A TensorRT engine as a session: values that stay on the GPU, the optimisation profile that fits a run.

A run is asynchronous: it is on the session's stream when ``run_values`` returns, and a value waits when it is copied to
the host. What orders the streams is in cuda_memory.py, where inputs and outputs lie in session_memory.py, and when a
run is replayed as a CUDA graph in contexts.py.

Not run on hardware yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..element_types import ElementType
from ..session import NO_ROWS, Array, Feed, Rows, Shape, Value, wanted_outputs
from ..unavailable import Code, unavailable
from .contexts import EngineContexts, EngineRun
from .cuda_device import CudaDevice
from .device_rows import DeviceRows
from .engine import LoadedEngine
from .network import TENSORRT_DTYPES
from .profile import engine_ranges, nearest_profile, range_problem
from .session_memory import SessionMemory

MAX_KNOWN_SHAPES = 4096  # sets of inputs' shapes for which profile and outputs' shapes are kept


class TensorRtSession:
    """An opened engine (backends/session.py). Any thread may use it; the runs of one session wait for each other.

    ``cuda_graphs``: replay repeated runs as CUDA graphs. Only for an engine that was compared with its ONNX graph with
    them on (trial.py).
    """

    computes_on_host = False

    def __init__(
        self, trt: Any, opened: LoadedEngine, device: CudaDevice, *, name: str, where: str, cuda_graphs: bool = False
    ) -> None:
        self._device, self._name = device, name
        self.where = where
        device.calls.use()
        engine = opened.engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        is_input = {tensor: engine.get_tensor_mode(tensor) == trt.TensorIOMode.INPUT for tensor in names}
        self.inputs = tuple(tensor for tensor in names if is_input[tensor])
        self.outputs = tuple(tensor for tensor in names if not is_input[tensor])
        self.types = {tensor: _type(engine, tensor) for tensor in names}
        # Of each optimisation profile the ranges of the inputs.
        self.profiles = engine_ranges(engine, self.inputs)
        self._memory = SessionMemory(
            device, name, {tensor: self.types[tensor] for tensor in self.inputs},
            {tensor: self.types[tensor] for tensor in self.outputs},
        )  # fmt: skip
        self._contexts = EngineContexts(
            trt, opened, device, name=name, stream=self._memory.stream, cuda_graphs=cuda_graphs
        )
        self._known_shapes: dict[tuple[Shape, ...], tuple[int, dict[str, Shape]]] = {}

    @property
    def usual(self) -> dict[str, tuple[Shape, np.dtype[Any]]]:
        """By input the shape for which the engine's first profile is fastest, and the type of its bits."""
        return {wanted.name: (wanted.usual, self.types[wanted.name].bits_dtype) for wanted in self.profiles[0]}

    @property
    def largest_batch(self) -> int | None:
        """See Session: the largest first axis that all inputs may have in one profile."""
        return max(min(one.largest[0] for one in ranges) for ranges in self.profiles)

    @property
    def replays(self) -> int:
        """Number of runs that were the replay of a CUDA graph."""
        return self._contexts.replays

    @property
    def captures(self) -> int:
        """Number of CUDA graphs that were made: each cost a run in a new context, and the capture."""
        return self._contexts.captures

    def value(self, of: Feed) -> Value:
        return self._memory.value(of, None, f"graph '{self._name}': a value")

    def borrow(self, array: Array) -> Value:
        return self.value(array)

    def rows(self, input_name: str, shape: Shape) -> DeviceRows:
        return self._memory.rows(input_name, shape)

    def run(self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        return {name: value.numpy() for name, value in self.run_values(feeds, outputs).items()}

    def run_values(
        self,
        feeds: Mapping[str, Feed],
        outputs: Sequence[str] | None = None,
        *,
        into: Mapping[str, Rows] = NO_ROWS,
    ) -> dict[str, Value]:
        """See Session. Raises PROFILE_RANGE, before anything is launched, for shapes that no profile allows."""
        with self._memory.lock:
            self._device.calls.use()
            ready = self._memory.ready(feeds)
            shapes = {name: tuple(feed.shape) for name, feed in ready.items()}
            profile, found = self._use_for(shapes)
            inputs = self._memory.bind_inputs(ready)
            results = self._memory.bind_outputs(found, into, inputs)
            addresses = {name: one.block.pointer for name, one in inputs.items()}
            addresses |= {name: value.pointer for name, value in results.items()}
            self._contexts.launch(EngineRun(profile, shapes, addresses))
            self._memory.finish(inputs.values(), results.values())
        return {name: results[name] for name in wanted_outputs(self, outputs)}

    def close(self) -> None:
        """Wait for all work; destroy graphs and contexts, and give the memory back. Values stay valid."""
        with self._memory.lock:
            if not self._memory.closed:
                self._device.calls.use()
                self._contexts.close()
            self._memory.close()

    def _profile_for(self, shapes: Mapping[str, Shape]) -> int:
        if (nearest := nearest_profile(self.profiles, shapes)) is not None:
            return nearest
        problems = [problem for one in self.profiles if (problem := range_problem(self._name, one, shapes))]
        if len(problems) == 1:
            raise problems[0].error()
        evidence = "; ".join(f"profile {index}: {problem.evidence}" for index, problem in enumerate(problems))
        raise unavailable(Code.PROFILE_RANGE, evidence).error()

    def _use_for(self, shapes: Mapping[str, Shape]) -> tuple[int, dict[str, Shape]]:
        """The profile for a run, and the shapes of its outputs."""
        key = tuple(shapes.values())
        if key not in self._known_shapes:
            if len(self._known_shapes) >= MAX_KNOWN_SHAPES:
                self._known_shapes.clear()
            profile = self._profile_for(shapes)
            every = self._contexts.all_shapes(profile, shapes)
            self._known_shapes[key] = profile, {name: every[name] for name in self.outputs}
        return self._known_shapes[key]


def _type(engine: Any, name: str) -> ElementType:
    word = engine.get_tensor_dtype(name).name
    try:
        return ElementType.of(TENSORRT_DTYPES[word])
    except (KeyError, TypeError) as error:
        raise unavailable(
            Code.PLAN_REJECTED, f"tensor {name} is {word}, which no graph of a bundle has"
        ).error() from error
