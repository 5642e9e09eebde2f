"""What a graph is fed with when only its time or its sameness matters."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ..runtime.bundle.records import Graph


def usual_feeds(graph: Graph, sizes: Mapping[str, int]) -> dict[str, npt.NDArray[np.generic]]:
    """Inputs of the right shapes: seeded noise for numbers, zeros for token ids, positions and mask."""
    generator = np.random.default_rng(0)
    feeds: dict[str, npt.NDArray[np.generic]] = {}
    for tensor in graph.inputs:
        shape = [_size(size, sizes) for size in tensor.shape]
        if tensor.dtype == "float32" and tensor.name != "mask":
            feeds[tensor.name] = generator.standard_normal(shape, dtype=np.float32)
        else:
            feeds[tensor.name] = np.zeros(shape, dtype=tensor.dtype)
    return feeds


def _size(size: int | str, sizes: Mapping[str, int]) -> int:
    """A number, or a sum of axes such as ``past + tokens``."""
    return size if isinstance(size, int) else sum(sizes[word.strip()] for word in size.split("+"))
