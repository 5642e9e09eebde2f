"""Training steps over buffers that are made once: every weight in rows that fit a core's cache, changed in place."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ...fedproto.head import HeadSpec, Params
from ...fedproto.records import TrainSettings
from ...runtime.backends.onnxruntime import OrtSession
from .adam import AdamScalars, AdamState, adam_scalars, adam_step
from .dataset import FeatureTable
from .graph import linear_maps
from .graph_builder import DType
from .private import SampleNoise, fresh_generator, sample_factors

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]  # of a table
Task = Callable[[int], None]  # of a step, for the thread of that number

BLOCK = 64 * 2816  # numbers of a weight whose gradient is one product
PIECE = (
    16 * 2816
)  # numbers that Adam changes at a time: with moments, gradient and scratch 0.9 MB, a second-level cache
LINE = 64  # bytes of a cache line
BIASES = ""  # among the tensors' names


@dataclass(frozen=True, eq=False)
class StepSessions:
    """The two graphs of a step, opened."""

    gradients: OrtSession
    below: Mapping[str, str]  # GradientGraph.below
    product: OrtSession  # one thread: blocks run beside each other
    threads: int


@dataclass(frozen=True, eq=False)
class StepConfig:
    """What stays the same over the steps."""

    class_weight: Array | None = None  # [classes]
    mu: float = 0.0
    anchor: Mapping[str, Array] | None = None  # by the head's tensors
    noise: SampleNoise | None = None  # every row's gradient is cut, and their sum blurred


@dataclass(frozen=True, eq=False)
class _Block:
    """Some rows of a linear map's weight, whose gradient is one product."""

    linear_map: str
    slopes: slice  # the rows of the gradient graph's ``slopes`` that belong to them
    pieces: list[AdamState]  # one after the other


@dataclass(frozen=True, eq=False)
class _Bound:
    """Buffers for batches of one size, and the runs over them."""

    x: Array  # [batch, inputs]
    y: npt.NDArray[np.int64]  # [batch]
    loss: Array  # []
    slopes: Array  # [all outputs, batch]
    gradients: Any  # an IOBinding
    products: list[list[Any]]  # by thread and block: an IOBinding that writes the thread's gradient
    below: Mapping[str, Array]  # by output of the gradient graph: ONNX Runtime does not keep what a binding points into


class TrainingSteps:
    """Parameters, their moments, and one Adam step at a time on some rows of a table.

    Which thread takes which block changes no bit: blocks do not depend on the number of threads, and each is
    one product in one thread. The gradient graph's products do depend on it, in their last bits.
    """

    def __init__(
        self, sessions: StepSessions, spec: HeadSpec, params: Mapping[str, Array], dtype: DType, fixed: StepConfig
    ) -> None:
        self.steps = 0
        self._width = spec.inputs
        self._sessions = sessions
        self._names = list(spec.shapes)
        self._maps = linear_maps(spec)
        self._dtype = dtype
        self._mu = fixed.mu
        self._noise = fixed.noise
        self._random = [fresh_generator() for _ in range(sessions.threads if fixed.noise else 0)]
        self._state = {"weight": self._stored(params), "m": self._stored({}), "v": self._stored({})}
        if fixed.anchor is not None:
            self._state["anchor"] = self._stored(fixed.anchor)
        self._class_weight = None if fixed.class_weight is None else _filled(fixed.class_weight, dtype)
        self._biases = self._moving(BIASES, 0, None)
        self._blocks = self._cut()
        most = max(sum(len(piece.weight) for piece in block.pieces) for block in self._blocks)
        self._gradients = [aligned((most,), dtype) for _ in range(sessions.threads)]
        self._scratch = [aligned((most,), dtype) for _ in range(sessions.threads)]
        self._bound: dict[tuple[int, int], _Bound] = {}  # by rows of the batch, and which of two

    @contextmanager
    def running(self) -> Iterator[TrainingSteps]:
        """Helper threads for as long as the steps run."""
        with ThreadPoolExecutor(max(self._sessions.threads - 1, 1), "training") as self._helpers:
            yield self

    def run(
        self, table: FeatureTable, batches: Sequence[Rows], settings: TrainSettings, drawn: Sequence[int] = ()
    ) -> float:
        """One Adam step on each batch of ``table``'s rows; the losses before the steps, summed over all rows.

        While a step's weights are changed, the next batch is gathered. ``drawn``, with noise on the rows' gradients:
        how many rows of each batch count.
        """
        features, total = table.x.astype(self._dtype, copy=False), 0.0

        def gather(number: int, _thread: int = 0) -> None:
            bound = self._buffers(batches[number], number)
            # "clip" takes straight into the buffer, the other modes by way of another one.
            np.take(features, batches[number], axis=0, out=bound.x, mode="clip")
            np.take(table.y, batches[number], out=bound.y, mode="clip")

        for number, rows in enumerate(batches):
            bound = self._buffers(rows, number)
            if number == 0:
                gather(number)
            self.steps += 1
            scalars = adam_scalars(settings, self.steps, self._dtype, self._mu)
            self._sessions.gradients.run_bound(bound.gradients)
            if self._noise is not None:
                bound.slopes[...] *= sample_factors(
                    bound.slopes, self._entered(bound), self._maps, drawn[number], self._noise
                )
            todo: deque[Task] = deque(partial(self._change, bound, scalars, at) for at in range(len(self._blocks)))
            if number + 1 < len(batches):
                todo.appendleft(partial(gather, number + 1))
            todo.append(partial(self._change_biases, bound, scalars))
            helpers = [self._helpers.submit(_drain, todo, thread) for thread in range(1, self._sessions.threads)]
            _drain(todo, 0)
            for helper in helpers:
                helper.result()
            total += len(rows) * float(bound.loss)
        return total

    def params(self) -> Params:
        wanted = np.float64 if self._dtype == "float64" else np.float32
        return {name: np.array(self._state["weight"][name], dtype=wanted) for name in self._names}

    def _change(self, bound: _Bound, scalars: AdamScalars, block: int, thread: int) -> None:
        gradient, scratch = self._gradients[thread], self._scratch[thread]
        self._sessions.product.run_bound(bound.products[thread][block])
        start = 0
        for piece in self._blocks[block].pieces:
            size = len(piece.weight)
            self._add_noise(gradient[start : start + size], scratch[:size], thread)
            adam_step(piece, gradient[start : start + size], scratch[:size], scalars)
            start += size

    def _change_biases(self, bound: _Bound, scalars: AdamScalars, thread: int) -> None:
        gradient = bound.slopes.sum(axis=1)
        scratch = np.empty_like(gradient)
        self._add_noise(gradient, scratch, thread)
        adam_step(self._biases, gradient, scratch, scalars)

    def _add_noise(self, gradient: Array, scratch: Array, thread: int) -> None:
        """Fresh noise on a part of the gradient; every number gets its own."""
        if self._noise is not None:
            self._random[thread].standard_normal(out=scratch, dtype=scratch.dtype.type)
            scratch *= scratch.dtype.type(self._noise.deviation)
            gradient += scratch

    def _entered(self, bound: _Bound) -> dict[str, Array]:
        """What entered each linear map: [batch, inputs]."""
        return {name: bound.below[self._sessions.below[name]] for name in self._maps}

    def _buffers(self, rows: Rows, number: int) -> _Bound:
        """Those of batch ``number``: not those of the batch before it, which may still be read."""
        key = len(rows), number % 2
        if key not in self._bound:
            self._bound[key] = self._bind(len(rows))
        return self._bound[key]

    def _stored(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Buffers by the head's tensors, zero where ``values`` has none; ``BIASES`` is all biases in one."""
        biases = aligned((sum(shape[0] for shape in self._maps.values()),), self._dtype)
        stored, start = {BIASES: biases}, 0
        for name, shape in self._maps.items():
            stored[f"{name}.weight"] = aligned(shape, self._dtype)
            stored[f"{name}.bias"] = biases[start : start + shape[0]]
            start += shape[0]
        for name, value in values.items():
            stored[name][...] = value
        return stored

    def _moving(self, tensor: str, start: int, stop: int | None) -> AdamState:
        """Rows ``start`` to ``stop`` of ``tensor``."""
        return AdamState(**{name: tensors[tensor][start:stop].reshape(-1) for name, tensors in self._state.items()})

    def _cut(self) -> list[_Block]:
        """Every weight in blocks of about ``BLOCK`` numbers, in pieces of about ``PIECE``."""
        blocks, before = [], 0
        for name, (count, columns) in self._maps.items():
            rows, piece = max(1, BLOCK // columns), max(1, PIECE // columns)
            for start in range(0, count, rows):
                stop = min(start + rows, count)
                starts = range(start, stop, piece)
                pieces = [self._moving(f"{name}.weight", each, min(each + piece, stop)) for each in starts]
                blocks.append(_Block(name, slice(before + start, before + stop), pieces))
            before += count
        return blocks

    def _bind(self, batch: int) -> _Bound:
        """Buffers and bindings of a batch of ``batch`` rows."""
        sessions, dtype = self._sessions, self._dtype
        columns = {sessions.below[name]: shape[1] for name, shape in self._maps.items()}
        columns["x"] = self._width
        below = {output: aligned((batch, width), dtype) for output, width in columns.items()}
        y, loss = aligned((batch,), "int64"), aligned((), dtype)
        slopes = aligned((len(self._biases.weight), batch), dtype)
        weights = {name: self._state["weight"][name] for name in self._names}
        feeds = {"x": below["x"], "y": y, **weights}
        if self._class_weight is not None:
            feeds["class_weight"] = self._class_weight
        made = {"loss": loss, "slopes": slopes, **{name: array for name, array in below.items() if name != "x"}}
        products = [
            [self._product(block, slopes, below, gradient) for block in self._blocks] for gradient in self._gradients
        ]
        return _Bound(below["x"], y, loss, slopes, bind(sessions.gradients, feeds, made), products, below)

    def _product(self, block: _Block, slopes: Array, below: Mapping[str, Array], gradient: Array) -> Any:
        """A binding that leaves the gradient of ``block`` at the start of ``gradient``."""
        feeds = {"slope": slopes[block.slopes], "below": below[self._sessions.below[block.linear_map]]}
        shape = (len(feeds["slope"]), feeds["below"].shape[1])
        made = {"gradient": gradient[: shape[0] * shape[1]].reshape(shape)}
        return bind(self._sessions.product, feeds, made)


def _drain(todo: deque[Task], thread: int) -> None:
    """Do task after task until none is left."""
    while True:
        try:
            task = todo.popleft()
        except IndexError:
            return
        task(thread)


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
