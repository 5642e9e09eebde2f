"""How long each graph of a bundle takes on this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..runtime.bundle import open_bundle
from ..runtime.graph_records import Graph
from ..runtime.session import open_session
from ..runtime.signature import TrustedKeys


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one run; the smallest disturbs least, the 95th percentile is what a user meets."""

    sizes: Mapping[str, int]  # of the dynamic axes
    min_ms: float
    p50_ms: float
    p95_ms: float
    runs: int


def time_graphs(
    bundle: Path, *, repeats: int, threads: int | None = None, trusted: TrustedKeys = ()
) -> dict[str, Timing]:
    """Run each graph ``repeats`` times at the usual sizes of its axes, batch 1; the bundle is checked first.

    Raises DataError as ``open_bundle`` does.
    """
    opened = open_bundle(bundle, trusted)
    timings = {}
    for name, graph in opened.manifest.graphs.items():
        session = open_session(opened.graph(name), threads=threads)
        sizes = {word: axis.usual for word, axis in graph.axes.items()}
        feeds = usual_feeds(graph, sizes)
        session.run(feeds)  # the first run allocates
        taken = []
        for _ in range(repeats):
            started = time.perf_counter()
            session.run(feeds)
            taken.append(1000 * (time.perf_counter() - started))
        p50, p95 = np.percentile(taken, (50, 95))
        timings[name] = Timing(sizes, min(taken), float(p50), float(p95), repeats)
    return timings


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
