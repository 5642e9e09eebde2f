"""Records of a profile: what is asked, layers of a graph with their times, and what is computed from them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...runtime.backends.opening import OpeningOptions, precision_of
from ...runtime.bundle.opening import Bundle


@dataclass(frozen=True)
class LayerQuestion:
    """A graph of the bundle on one backend. ``out``: folder for dumps that are kept."""

    bundle: Bundle
    graph: str
    backend: str  # of runtime/backends/options.py
    opening: OpeningOptions
    sizes: Mapping[str, int]  # of the graph's axes
    runs: int
    out: Path
    detailed: bool = False  # TensorRT: an engine that describes its layers, built if there is none

    @property
    def computed(self) -> str:
        """Precision of the graph's matmuls under the options."""
        return precision_of(self.bundle.manifest, self.graph, self.opening.backend_options)


@dataclass(frozen=True)
class LayerTime:
    """One layer of a graph, as the runtime names it after its fusions."""

    name: str
    operator: str  # "MatMul", "Convolution"; of a TensorRT engine without details: "layer"
    ms: float  # median of the runs
    detail: str = ""  # implementation: "jit_avx512_f32", "CPUExecutionProvider", a kernel's name
    calls: float = 1.0  # of a run


@dataclass(frozen=True)
class LayerTimes:
    """The layers of one graph from the profiler of its runtime."""

    layers: tuple[LayerTime, ...]
    profiler: str  # "ONNX Runtime's profiler"
    gflop: float | None = None  # of the graph's matmuls and convolutions in a run; None where it is not known
    note: str = ""  # a limit of these times
    memory: dict[str, float] = field(default_factory=dict)  # MB, by what it is: "file", "engine", "scratch"
    files: tuple[str, ...] = ()  # dumps that were kept
    trtexec: str = ""  # command of TensorRT's own tool that builds the same engine


def median_run(taken: Sequence[float], runs: int, *, first: bool) -> float:
    """Median of what a layer took in each of ``runs`` equal runs, from the times of all its calls in order.

    ``first``: one more run came before them and is not counted: it allocates, and reads weights for the first time.
    """
    calls = len(taken) / (runs + first)
    if calls != int(calls):  # a layer that not every run has: its mean
        return sum(taken) / (runs + first)
    each = int(calls)
    sums = [sum(taken[start : start + each]) for start in range(0, len(taken), each)]
    return statistics.median(sums[1:] if first else sums)


def by_operator(layers: Sequence[LayerTime]) -> list[dict[str, Any]]:
    """Time of all layers of an operator: name, number of layers, milliseconds and share; the largest first."""
    found: dict[str, tuple[int, float]] = {}
    for layer in layers:
        count, ms = found.get(layer.operator, (0, 0.0))
        found[layer.operator] = (count + 1, ms + layer.ms)
    total = sum(ms for _, ms in found.values()) or 1.0
    return [
        {"operator": name, "layers": count, "ms": ms, "share": ms / total}
        for name, (count, ms) in sorted(found.items(), key=lambda each: -each[1][1])
    ]


def by_layer(layers: Sequence[LayerTime]) -> list[dict[str, Any]]:
    """Every layer as a mapping with its share of all layers' time; the longest first."""
    total = sum(layer.ms for layer in layers) or 1.0
    return [
        {
            "name": layer.name,
            "operator": layer.operator,
            "ms": layer.ms,
            "share": layer.ms / total,
            "calls": layer.calls,
            "detail": layer.detail,
        }
        for layer in sorted(layers, key=lambda each: -each.ms)
    ]
