"""Input sizes that a TensorRT engine accepts, from the axes of one manifest.Graph. Pure arithmetic on integers.

An engine is built for a range per input (smallest, usual, largest: TensorRT's min, opt, max) and is fastest at the
usual size. A size may be 0: TensorRT's condition is 0 <= min <= opt <= max (docstring of
``IOptimizationProfile.set_shape``), and the text graph starts with a past of length 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ....base.errors import InvariantError
from ...bundle.graph_records import AxisRange, Graph, Tensor
from ..unavailable import BackendUnavailable, Code, unavailable

Shape = tuple[int, ...]


@dataclass(frozen=True)
class InputRange:
    """One input of an engine; the three shapes have the same rank."""

    name: str
    smallest: Shape
    usual: Shape
    largest: Shape


def input_ranges(graph: Graph) -> tuple[InputRange, ...]:
    """The range of every input of ``graph``, in its order; raises InvariantError for an axis without a range."""
    return tuple(_range(tensor, graph.axes) for tensor in graph.inputs)


def largest_shapes(graph: Graph) -> dict[str, Shape]:
    """Largest shape of each input and output that the profile allows, for buffers that always suffice."""
    return {tensor.name: _range(tensor, graph.axes).largest for tensor in (*graph.inputs, *graph.outputs)}


def range_problem(name: str, ranges: tuple[InputRange, ...], shapes: Mapping[str, Shape]) -> BackendUnavailable | None:
    """The reason PROFILE_RANGE of graph ``name`` when a shape lies outside of its range; None when all fit.

    ``shapes`` has every input of ``ranges``.
    """
    for wanted in ranges:
        shape = shapes[wanted.name]
        fits = len(shape) == len(wanted.largest) and all(
            low <= size <= high for low, size, high in zip(wanted.smallest, shape, wanted.largest, strict=True)
        )
        if not fits:
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
    words = [word.strip() for word in size.split("+")]
    if unknown := [word for word in words if word not in axes]:
        known = ", ".join(axes) or "none"
        raise InvariantError(f"tensor {name}: axis {unknown[0]!r} has no range in the manifest; known: {known}")
    parts = [axes[word] for word in words]
    return AxisRange(
        sum(part.smallest for part in parts), sum(part.usual for part in parts), sum(part.largest for part in parts)
    )
