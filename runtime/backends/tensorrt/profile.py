"""Input sizes that a TensorRT engine accepts, from the uses of one manifest.Graph. Arithmetic on integers.

An engine has an optimisation profile per use of its graph: a range per input (smallest, usual, largest: TensorRT's min,
opt, max). It is tuned for the usual size alone, so that a graph which is run in several ways has several. A size may
be 0: TensorRT's condition is 0 <= min <= opt <= max (docstring of ``IOptimizationProfile.set_shape``), and the text
graph starts with a past of length 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ....base.errors import InvariantError
from ...bundle.graph_records import AxisRange, EngineOptions, Graph, GraphUse, Tensor
from ...pipeline_options import usual_rows
from ..unavailable import BackendUnavailable, Code, unavailable

Shape = tuple[int, ...]
BATCH = "batch"  # the axis that EngineOptions.max_batch bounds
# Memory of the GPU for each clip of the largest batch: BLIP's cross-attention keys and values take 42 MB in float32,
# and are there twice, next to the buffers of the graphs; an estimate with room, which no GPU has confirmed.
MB_PER_CLIP = 200
SMALL_GPU_MB = 12_000


@dataclass(frozen=True)
class InputRange:
    """One input of an engine; the three shapes have the same rank."""

    name: str
    smallest: Shape
    usual: Shape
    largest: Shape

    def allows(self, shape: Shape) -> bool:
        """True if ``shape`` has the same rank and lies between smallest and largest in every axis."""
        return len(shape) == len(self.largest) and all(
            low <= size <= high for low, size, high in zip(self.smallest, shape, self.largest, strict=True)
        )


@dataclass(frozen=True)
class Profile:
    """The ranges of all inputs in one use of a graph, in the graph's order."""

    use: str
    inputs: tuple[InputRange, ...]


def graph_uses(graph: Graph, max_batch: int | None = None, usual_batch: int | None = None) -> tuple[GraphUse, ...]:
    """The uses of ``graph``, one of all its axes where it names none, with batches up to ``max_batch``, tuned for
    ``usual_batch``; a use of single rows stays one."""
    uses = graph.uses or (GraphUse("all", graph.axes),)
    return tuple(
        GraphUse(use.name, {word: _bounded(word, size, max_batch, usual_batch) for word, size in use.axes.items()})
        for use in uses
    )


def _bounded(word: str, size: AxisRange, max_batch: int | None, usual_batch: int | None) -> AxisRange:
    if word != BATCH:
        return size
    largest = size.largest if max_batch is None else max(size.smallest, min(size.largest, max_batch))
    usual = size.usual if usual_batch is None or size.usual == 1 else max(size.smallest, usual_batch)
    return AxisRange(size.smallest, min(usual, largest), largest)


def largest_batch(graph: Graph, memory_mb: int) -> int | None:
    """The largest batch of an engine of ``graph`` on a GPU of ``memory_mb``: a power of two, and one of the graph's
    sizes; None for a graph without a batch.

    An engine holds scratch memory for its largest batch. A small GPU, which may share its memory with the processor,
    gets engines of the usual batch.
    """
    if BATCH not in graph.axes:
        return None
    fitting = max(1, memory_mb // MB_PER_CLIP)
    if memory_mb < SMALL_GPU_MB:
        fitting = min(fitting, usual_rows(graph, memory_mb))
    return max(graph.axes[BATCH].smallest, min(graph.axes[BATCH].largest, 1 << (fitting.bit_length() - 1)))


def settled_options(options: EngineOptions, graph: Graph, memory_mb: int) -> EngineOptions:
    """``options`` with the largest and the usual batch of an engine of ``graph`` on a GPU of ``memory_mb``."""
    if BATCH not in graph.axes:
        return msgspec.structs.replace(options, max_batch=None, usual_batch=None)
    bound = largest_batch(graph, memory_mb) if options.max_batch is None else options.max_batch
    assert bound is not None
    largest = min(bound, graph.axes[BATCH].largest)
    usual = usual_rows(graph, memory_mb) if options.usual_batch is None else options.usual_batch
    return msgspec.structs.replace(options, max_batch=largest, usual_batch=min(usual, largest))


def profiles(graph: Graph, max_batch: int | None = None, usual_batch: int | None = None) -> tuple[Profile, ...]:
    """A profile for every use of ``graph``; raises InvariantError for an axis without a range."""
    return tuple(
        Profile(use.name, tuple(_range(tensor, use.axes) for tensor in graph.inputs))
        for use in graph_uses(graph, max_batch, usual_batch)
    )


def engine_ranges(engine: Any, inputs: Sequence[str]) -> tuple[tuple[InputRange, ...], ...]:
    """The ranges of ``inputs`` in each optimisation profile of an ``ICudaEngine``."""
    return tuple(
        tuple(InputRange(name, *map(tuple, engine.get_tensor_profile_shape(name, profile))) for name in inputs)
        for profile in range(int(engine.num_optimization_profiles))
    )


def nearest_profile(ranges: Sequence[Sequence[InputRange]], shapes: Mapping[str, Shape]) -> int | None:
    """The profile that allows ``shapes`` and whose usual ones are nearest, in octaves over all axes; None without one.

    ``shapes`` has every input of ``ranges``.
    """
    fitting = {
        profile: sum(_octaves(one.usual, shapes[one.name]) for one in inputs)
        for profile, inputs in enumerate(ranges)
        if all(one.allows(shapes[one.name]) for one in inputs)
    }
    return min(fitting, key=lambda profile: (fitting[profile], profile), default=None)


def _octaves(usual: Shape, shape: Shape) -> float:
    return sum(abs(math.log2((size + 1) / (other + 1))) for other, size in zip(usual, shape, strict=True))


def range_problem(name: str, ranges: tuple[InputRange, ...], shapes: Mapping[str, Shape]) -> BackendUnavailable | None:
    """The reason PROFILE_RANGE of graph ``name`` when a shape lies outside of its range; None when all fit.

    ``shapes`` has every input of ``ranges``.
    """
    for wanted in ranges:
        shape = shapes[wanted.name]
        if not wanted.allows(shape):
            allowed = f"{list(wanted.smallest)} to {list(wanted.largest)}"
            return unavailable(
                Code.PROFILE_RANGE, f"graph '{name}': input {wanted.name} is {list(shape)}, expected {allowed}"
            )
    return None


def _range(tensor: Tensor, axes: Mapping[str, AxisRange]) -> InputRange:
    sizes = [_axis(tensor.name, size, axes) for size in tensor.shape]
    return InputRange(
        tensor.name,
        smallest=tuple(axis.smallest for axis in sizes),
        usual=tuple(axis.usual for axis in sizes),
        largest=tuple(axis.largest for axis in sizes),
    )


def _axis(name: str, size: int | str, axes: Mapping[str, AxisRange]) -> AxisRange:
    """A fixed size, an axis, or a sum of axes such as "past + tokens"."""
    if isinstance(size, int):
        return AxisRange(size, size, size)
    parts = [axes[word] for word in axis_words(name, size, axes)]
    return AxisRange(
        sum(part.smallest for part in parts), sum(part.usual for part in parts), sum(part.largest for part in parts)
    )


def axis_words(name: str, size: str, known: Mapping[str, object]) -> list[str]:
    """The axes that ``size`` of tensor ``name`` adds up; raises InvariantError for one that is not known."""
    words = [word.strip() for word in size.split("+")]
    if unknown := [word for word in words if word not in known]:
        listed = ", ".join(known) or "none"
        raise InvariantError(f"tensor {name}: axis {unknown[0]!r} has no range in the manifest; known: {listed}")
    return words
