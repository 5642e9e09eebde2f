"""Training steps over buffers that are made once: every weight in rows that fit a core's cache, changed in place."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...fedproto.head import HeadSpec, Params
from ...fedproto.records import TrainSettings
from ...runtime.backends.ort_cpu import OrtSession
from .graph import MOMENTS, NEXT, adam_scalars, linear_maps
from .table import FeatureTable
from .writer import DType

Array = npt.NDArray[Any]

BLOCK = 96 * 1024  # numbers of a weight that one run of the update graph changes: 32 rows of 2816
LINE = 64  # bytes of a cache line


@dataclass(frozen=True, eq=False)
class StepSessions:
    """The two graphs of a step, opened."""

    gradients: OrtSession
    below: Mapping[str, str]  # GradientGraph.below
    update: OrtSession  # one thread: blocks run beside each other
    threads: int


@dataclass(frozen=True, eq=False)
class Fixed:
    """What stays the same over the steps."""

    class_weight: Array | None = None  # [classes]
    mu: float = 0.0
    anchor: Mapping[str, Array] | None = None  # by the head's tensors


@dataclass(frozen=True, eq=False)
class _Bound:
    """Buffers for batches of one size, and the runs over them."""

    x: Array  # [batch, inputs]
    y: npt.NDArray[np.int64]  # [batch]
    loss: Array  # []
    gradients: Any  # an IOBinding
    updates: list[Any]  # IOBindings, in any order
    kept: Any  # arrays that the bindings point into: ONNX Runtime does not keep them


class TrainingSteps:
    """Parameters, their moments, and one Adam step at a time on some rows of a table.

    Which thread runs which block changes no bit: blocks do not depend on the number of threads, and each is
    one run in one thread. The gradient graph's products do depend on it, in their last bits.
    """

    def __init__(
        self, sessions: StepSessions, spec: HeadSpec, params: Mapping[str, Array], dtype: DType, fixed: Fixed
    ) -> None:
        self.steps = 0
        self._width = spec.inputs
        self._sessions = sessions
        self._names = list(spec.shapes)
        self._maps = linear_maps(spec)
        self._dtype = dtype
        self._state = {"weight": self._stored(params), **{moment: self._stored() for moment in MOMENTS}}
        self._scalars = {name: aligned((), dtype) for name in adam_scalars(TrainSettings(), 1)}
        if fixed.anchor is not None:
            self._state["anchor"] = self._stored(fixed.anchor)
            self._scalars["mu"] = _filled(np.asarray(fixed.mu), dtype)
        self._class_weight = None if fixed.class_weight is None else _filled(fixed.class_weight, dtype)
        self._bound: dict[int, _Bound] = {}  # by rows of the batch

    @contextmanager
    def running(self) -> Iterator[TrainingSteps]:
        """Helper threads for as long as the steps run."""
        with ThreadPoolExecutor(max(self._sessions.threads - 1, 1), "training") as self._helpers:
            yield self

    def step(self, table: FeatureTable, features: Array, rows: npt.NDArray[np.int64], settings: TrainSettings) -> float:
        """One Adam step on ``rows`` of ``features``, ``table.x`` in the training's dtype; the loss before it."""
        bound = self._bound.get(len(rows))
        if bound is None:
            bound = self._bound[len(rows)] = self._bind(len(rows))
        # "clip" takes straight into the buffer, the other modes by way of another one.
        np.take(features, rows, axis=0, out=bound.x, mode="clip")
        np.take(table.y, rows, out=bound.y, mode="clip")
        self.steps += 1
        for name, value in adam_scalars(settings, self.steps).items():
            self._scalars[name][...] = value
        self._sessions.gradients.run_bound(bound.gradients)
        todo = deque(bound.updates)
        helpers = [self._helpers.submit(self._drain, todo) for _ in range(self._sessions.threads - 1)]
        self._drain(todo)
        for helper in helpers:
            helper.result()
        return float(bound.loss)

    def params(self) -> Params:
        wanted = np.float64 if self._dtype == "float64" else np.float32
        return {name: np.array(self._state["weight"][name], dtype=wanted) for name in self._names}

    def _drain(self, todo: deque[Any]) -> None:
        while True:
            try:
                binding = todo.popleft()
            except IndexError:
                return
            self._sessions.update.run_bound(binding)

    def _stored(self, values: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Buffers by the head's tensors, zero without ``values``; ``""`` is all biases as one column."""
        biases = aligned((sum(shape[0] for shape in self._maps.values()), 1), self._dtype)
        stored, start = {"": biases}, 0
        for name, shape in self._maps.items():
            stored[f"{name}.weight"] = aligned(shape, self._dtype)
            stored[f"{name}.bias"] = biases[start : start + shape[0], 0]
            start += shape[0]
        for name in values or {}:
            stored[name][...] = (values or {})[name]
        return stored

    def _bind(self, batch: int) -> _Bound:
        """Buffers and bindings of a batch of ``batch`` rows."""
        sessions, dtype = self._sessions, self._dtype
        columns = {sessions.below[name]: shape[1] for name, shape in self._maps.items()}
        columns["x"] = self._width
        below = {output: aligned((batch, width), dtype) for output, width in columns.items()}
        y, loss = aligned((batch,), "int64"), aligned((), dtype)
        slopes = aligned((len(self._state["weight"][""]), batch), dtype)
        weights = {name: self._state["weight"][name] for name in self._names}
        feeds = {"x": below["x"], "y": y, **weights}
        if self._class_weight is not None:
            feeds["class_weight"] = self._class_weight
        made = {"loss": loss, "slopes": slopes, **{name: array for name, array in below.items() if name != "x"}}
        ones = _filled(np.ones((batch, 1)), dtype)
        updates, start = [], 0
        for name, shape in self._maps.items():
            updates += self._updates(f"{name}.weight", slopes[start : start + shape[0]], below[sessions.below[name]])
            start += shape[0]
        updates += self._updates("", slopes, ones)
        return _Bound(below["x"], y, loss, bind(sessions.gradients, feeds, made), updates, (below, slopes, ones))

    def _updates(self, tensor: str, slopes: Array, below: Array) -> list[Any]:
        """Bindings that together change every row of ``tensor``, its outputs onto its inputs (see update_graph)."""
        whole = {name: tensors[tensor] for name, tensors in self._state.items()}
        count, columns = whole["weight"].shape
        rows = max(1, BLOCK // columns)
        bindings = []
        for start in range(0, count, rows):
            part = {name: array[start : start + rows] for name, array in whole.items()}
            feeds = {"slope": slopes[start : start + rows], "below": below, **part, **self._scalars}
            made = {name + NEXT: part[name] for name in ("weight", *MOMENTS)}
            bindings.append(bind(self._sessions.update, feeds, made))
        return bindings


def bind(session: OrtSession, feeds: Mapping[str, Array], made: Mapping[str, Array]) -> Any:
    """A binding of ``session`` that reads ``feeds`` and writes ``made``: C-ordered arrays that the caller keeps."""
    binding = session.bind()
    for name, array in feeds.items():
        binding.bind_input(name, "cpu", 0, array.dtype.type, list(array.shape), array.ctypes.data)
    for name, array in made.items():
        binding.bind_output(name, "cpu", 0, array.dtype.type, list(array.shape), array.ctypes.data)
    return binding


def aligned(shape: tuple[int, ...], dtype: str) -> Array:
    """Zeros that begin a cache line, as the kernels like it (NumPy's own begin anywhere)."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + LINE, np.uint8)
    start = -raw.ctypes.data % LINE
    return raw[start : start + size].view(dtype).reshape(shape)


def _filled(values: Array, dtype: str) -> Array:
    array = aligned(values.shape, dtype)
    array[...] = values
    return array
