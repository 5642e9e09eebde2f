"""Training steps over buffers that are allocated once: weights in rows that fit a core's cache, changed in place."""

from __future__ import annotations

import math
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
from ...fedproto.onnx_builder import DType
from ...fedproto.records import TrainSettings
from ...runtime.backends.onnxruntime_cpu import OrtSession
from .adam import AdamScalars, AdamState, adam_scalars, adam_step
from .dataset import FeatureTable
from .graph import linear_maps
from .private import SampleNoise, fresh_generator, sample_factors, scale_samples

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]  # of a table
Task = Callable[[int], None]  # of a step, for the thread of that number

BLOCK = 64 * 2816  # values of a weight whose gradient is one product
# Values that Adam changes at a time: with moments, gradient and scratch 0.9 MB, a second-level cache.
PIECE = 16 * 2816
LINE = 64  # bytes of a cache line
BIASES = ""  # among the tensors' names


@dataclass(frozen=True, eq=False)
class StepSessions:
    """The two graphs of a step, opened."""

    gradients: OrtSession
    layer_inputs: Mapping[str, str]  # GradientGraph.layer_inputs
    weight_gradient: OrtSession  # one thread: blocks run in parallel
    threads: int


@dataclass(frozen=True, eq=False)
class StepConfig:
    """Settings that are the same in every step."""

    class_weight: Array | None = None  # [classes]
    mu: float = 0.0
    anchor: Mapping[str, Array] | None = None  # by the head's tensors
    noise: SampleNoise | None = None  # every row's gradient is clipped, and their sum noised


@dataclass(frozen=True, eq=False)
class _Block:
    """Some rows of a linear map's weight, whose gradient is one product."""

    linear_map: str
    output_gradients: slice  # the rows of the gradient graph's ``output_gradients`` that belong to them
    pieces: list[AdamState]  # of the block's rows, in order


@dataclass(frozen=True, eq=False)
class _BatchBuffers:
    """Buffers for batches of one size, and the runs over them."""

    x: Array  # [batch, inputs]
    y: npt.NDArray[np.int64]  # [batch]
    loss: Array  # []
    output_gradients: Array  # [all outputs, batch]
    gradients: Any  # an IOBinding
    weight_gradients: list[list[Any]]  # by thread and block: an IOBinding that writes the thread's gradient
    # By output of the gradient graph. ONNX Runtime does not keep the arrays that a binding points to.
    layer_inputs: Mapping[str, Array]


class TrainingSteps:
    """Parameters, their moments, and one Adam step at a time on some rows of a table.

    The result does not depend on which thread takes which block: blocks do not depend on the number of threads, and
    each is one product in one thread. The gradient graph's products do depend on the number of threads, in their last
    bits.
    """

    def __init__(
        self, sessions: StepSessions, spec: HeadSpec, params: Mapping[str, Array], dtype: DType, config: StepConfig
    ) -> None:
        self.steps = 0
        self._width = spec.inputs
        self._sessions = sessions
        self._names = list(spec.shapes)
        self._maps = linear_maps(spec)
        self._dtype = dtype
        self._mu = config.mu
        self._noise = config.noise
        self._random = [fresh_generator() for _ in range(sessions.threads if config.noise else 0)]
        self._state = {"weight": self._stored(params), "m": self._stored({}), "v": self._stored({})}
        if config.anchor is not None:
            self._state["anchor"] = self._stored(config.anchor)
        self._class_weight = None if config.class_weight is None else _filled(config.class_weight, dtype)
        self._biases = self._adam_state(BIASES, 0, None)
        self._blocks = self._split_blocks()
        most = max(sum(len(piece.weight) for piece in block.pieces) for block in self._blocks)
        self._gradients = [aligned((most,), dtype) for _ in range(sessions.threads)]
        self._scratch = [aligned((most,), dtype) for _ in range(sessions.threads)]
        self._buffers_by_size: dict[tuple[int, int], _BatchBuffers] = {}  # by rows of the batch, and which of two

    @contextmanager
    def running(self) -> Iterator[TrainingSteps]:
        """Helper threads for as long as the steps run."""
        with ThreadPoolExecutor(max(self._sessions.threads - 1, 1), "training") as self._helpers:
            yield self

    def run(
        self, table: FeatureTable, batches: Sequence[Rows], settings: TrainSettings, drawn: Sequence[int] = ()
    ) -> float:
        """Make one Adam step on each batch of ``table``'s rows; returns the sum of all rows' losses before the steps.

        While a step's weights are changed, the next batch is gathered. ``drawn``, with noise on the rows' gradients:
        how many rows of each batch count.
        """
        features, total = table.x.astype(self._dtype, copy=False), 0.0

        def gather(number: int, _thread: int = 0) -> None:
            buffers = self._buffers(batches[number], number)
            # mode "clip" writes straight into the buffer, the other modes through a temporary one.
            np.take(features, batches[number], axis=0, out=buffers.x, mode="clip")
            np.take(table.y, batches[number], out=buffers.y, mode="clip")

        for number, rows in enumerate(batches):
            buffers = self._buffers(rows, number)
            if number == 0:
                gather(number)
            self.steps += 1
            scalars = adam_scalars(settings, self.steps, self._dtype, self._mu)
            self._sessions.gradients.run_bound(buffers.gradients)
            if self._noise is not None:
                inputs = self._layer_inputs(buffers)
                factors = sample_factors(buffers.output_gradients, inputs, self._maps, drawn[number], self._noise)
                scale_samples(buffers.output_gradients, inputs, factors)
            tasks: deque[Task] = deque(
                partial(self._update_block, buffers, scalars, at) for at in range(len(self._blocks))
            )
            if number + 1 < len(batches):
                tasks.appendleft(partial(gather, number + 1))
            tasks.append(partial(self._update_biases, buffers, scalars))
            helpers = [self._helpers.submit(_drain, tasks, thread) for thread in range(1, self._sessions.threads)]
            _drain(tasks, 0)
            for helper in helpers:
                helper.result()
            total += len(rows) * float(buffers.loss)
        return total

    def params(self) -> Params:
        wanted = np.float64 if self._dtype == "float64" else np.float32
        return {name: np.array(self._state["weight"][name], dtype=wanted) for name in self._names}

    def _update_block(self, buffers: _BatchBuffers, scalars: AdamScalars, block: int, thread: int) -> None:
        gradient, scratch = self._gradients[thread], self._scratch[thread]
        self._sessions.weight_gradient.run_bound(buffers.weight_gradients[thread][block])
        start = 0
        for piece in self._blocks[block].pieces:
            size = len(piece.weight)
            self._add_noise(gradient[start : start + size], scratch[:size], thread)
            adam_step(piece, gradient[start : start + size], scratch[:size], scalars)
            start += size

    def _update_biases(self, buffers: _BatchBuffers, scalars: AdamScalars, thread: int) -> None:
        gradient = buffers.output_gradients.sum(axis=1)
        scratch = np.empty_like(gradient)
        self._add_noise(gradient, scratch, thread)
        adam_step(self._biases, gradient, scratch, scalars)

    def _add_noise(self, gradient: Array, scratch: Array, thread: int) -> None:
        """Add fresh noise to a part of the gradient, independent for every value."""
        if self._noise is not None:
            self._random[thread].standard_normal(out=scratch, dtype=scratch.dtype.type)
            scratch *= scratch.dtype.type(self._noise.standard_deviation)
            gradient += scratch

    def _layer_inputs(self, buffers: _BatchBuffers) -> dict[str, Array]:
        """Return the inputs of each linear map: [batch, inputs]."""
        return {name: buffers.layer_inputs[self._sessions.layer_inputs[name]] for name in self._maps}

    def _buffers(self, rows: Rows, number: int) -> _BatchBuffers:
        """Return the buffers of batch ``number``: not those of the batch before it, which may still be read."""
        key = len(rows), number % 2
        if key not in self._buffers_by_size:
            self._buffers_by_size[key] = self._bind(len(rows))
        return self._buffers_by_size[key]

    def _stored(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Allocate buffers by the head's tensors, zero where ``values`` has none; ``BIASES`` is all biases in one."""
        biases = aligned((sum(shape[0] for shape in self._maps.values()),), self._dtype)
        stored, start = {BIASES: biases}, 0
        for name, shape in self._maps.items():
            stored[f"{name}.weight"] = aligned(shape, self._dtype)
            stored[f"{name}.bias"] = biases[start : start + shape[0]]
            start += shape[0]
        for name, value in values.items():
            stored[name][...] = value
        return stored

    def _adam_state(self, tensor: str, start: int, stop: int | None) -> AdamState:
        """Rows ``start`` to ``stop`` of ``tensor``."""
        return AdamState(**{name: tensors[tensor][start:stop].reshape(-1) for name, tensors in self._state.items()})

    def _split_blocks(self) -> list[_Block]:
        """Divide every weight into blocks of about ``BLOCK`` values, in pieces of about ``PIECE``."""
        blocks, before = [], 0
        for name, (count, columns) in self._maps.items():
            rows, piece = max(1, BLOCK // columns), max(1, PIECE // columns)
            for start in range(0, count, rows):
                stop = min(start + rows, count)
                starts = range(start, stop, piece)
                pieces = [self._adam_state(f"{name}.weight", each, min(each + piece, stop)) for each in starts]
                blocks.append(_Block(name, slice(before + start, before + stop), pieces))
            before += count
        return blocks

    def _bind(self, batch: int) -> _BatchBuffers:
        """Buffers and bindings of a batch of ``batch`` rows."""
        sessions, dtype = self._sessions, self._dtype
        columns = {sessions.layer_inputs[name]: shape[1] for name, shape in self._maps.items()}
        columns["x"] = self._width
        layer_inputs = {output: aligned((batch, width), dtype) for output, width in columns.items()}
        y, loss = aligned((batch,), "int64"), aligned((), dtype)
        output_gradients = aligned((len(self._biases.weight), batch), dtype)
        weights = {name: self._state["weight"][name] for name in self._names}
        feeds = {"x": layer_inputs["x"], "y": y, **weights}
        if self._class_weight is not None:
            feeds["class_weight"] = self._class_weight
        outputs = {
            "loss": loss,
            "output_gradients": output_gradients,
            **{name: array for name, array in layer_inputs.items() if name != "x"},
        }
        weight_gradients = [
            [self._bind_weight_gradient(block, output_gradients, layer_inputs, gradient) for block in self._blocks]
            for gradient in self._gradients
        ]
        return _BatchBuffers(
            layer_inputs["x"],
            y,
            loss,
            output_gradients,
            bind(sessions.gradients, feeds, outputs),
            weight_gradients,
            layer_inputs,
        )

    def _bind_weight_gradient(
        self, block: _Block, output_gradients: Array, layer_inputs: Mapping[str, Array], gradient: Array
    ) -> Any:
        """Bind a run that writes the gradient of ``block`` to the start of ``gradient``."""
        feeds = {
            "output_gradients": output_gradients[block.output_gradients],
            "layer_inputs": layer_inputs[self._sessions.layer_inputs[block.linear_map]],
        }
        shape = (len(feeds["output_gradients"]), feeds["layer_inputs"].shape[1])
        outputs = {"gradient": gradient[: shape[0] * shape[1]].reshape(shape)}
        return bind(self._sessions.weight_gradient, feeds, outputs)


def _drain(tasks: deque[Task], thread: int) -> None:
    """Run task after task until none is left."""
    while True:
        try:
            task = tasks.popleft()
        except IndexError:
            return
        task(thread)


def bind(session: OrtSession, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> Any:
    """Bind a run of ``session`` that reads ``feeds`` and writes ``outputs``: C-ordered arrays that the caller keeps."""
    binding = session.bind()
    for name, array in feeds.items():
        binding.bind_input(name, "cpu", 0, array.dtype.type, list(array.shape), array.ctypes.data)
    for name, array in outputs.items():
        binding.bind_output(name, "cpu", 0, array.dtype.type, list(array.shape), array.ctypes.data)
    return binding


def aligned(shape: tuple[int, ...], dtype: str) -> Array:
    """Return zeros that start at a cache line, as the kernels prefer (NumPy's own arrays start anywhere)."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(size + LINE, np.uint8)
    start = -raw.ctypes.data % LINE
    return raw[start : start + size].view(dtype).reshape(shape)


def _filled(values: Array, dtype: str) -> Array:
    array = aligned(values.shape, dtype)
    array[...] = values
    return array
