"""Shapes of a graph's outputs, from its axes and the shapes of a run's inputs. Pure arithmetic on integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...base.errors import InvariantError
from ..bundle.graph_records import Tensor
from .session import Shape


def output_shapes(
    name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], shapes: Mapping[str, Shape]
) -> dict[str, Shape]:
    """Shape of every output of graph ``name``; ``shapes``: those of all inputs.

    An axis is a number, a word, or a sum of words such as "past + tokens". Raises InvariantError for inputs that
    differ from the graph's, and for an output with an axis that no input has.
    """
    axes: dict[str, int] = {}
    sums: list[tuple[Tensor, str, int]] = []
    for tensor in inputs:
        shape = shapes[tensor.name]
        if len(shape) != len(tensor.shape):
            raise _differs_error(name, tensor, shape)
        for axis, size in zip(tensor.shape, shape, strict=True):
            if isinstance(axis, int):
                fits = axis == size
            elif "+" in axis:
                sums.append((tensor, axis, size))
                fits = True
            else:
                fits = axes.setdefault(axis, size) == size
            if not fits:
                raise _differs_error(name, tensor, shape)
    for tensor, axis, size in sums:
        if _size(name, axis, axes) != size:
            raise _differs_error(name, tensor, shapes[tensor.name])
    return {tensor.name: tuple(_size(name, axis, axes) for axis in tensor.shape) for tensor in outputs}


def _size(name: str, axis: int | str, axes: Mapping[str, int]) -> int:
    if isinstance(axis, int):
        return axis
    words = [word.strip() for word in axis.split("+")]
    if unknown := [word for word in words if word not in axes]:
        raise InvariantError(f"graph '{name}': no input has the axis {unknown[0]!r}; known: {', '.join(axes)}")
    return sum(axes[word] for word in words)


def _differs_error(name: str, tensor: Tensor, shape: Shape) -> InvariantError:
    wanted = ", ".join(map(str, tensor.shape))
    return InvariantError(f"graph '{name}': input {tensor.name} is {list(shape)}, expected [{wanted}]")
