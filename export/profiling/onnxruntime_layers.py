"""Times of ONNX Runtime's own profiler (``SessionOptions.enable_profiling``), from the file that it writes.

The file is a trace (chrome://tracing, https://ui.perfetto.dev). Events of the category ``Node`` are nodes after
ONNX Runtime's fusions; on a GPU their time is that of the launch, and events of the category ``Kernel`` have the
kernels' own, where ONNX Runtime was built with CUDA profiling
(https://onnxruntime.ai/docs/performance/tune-performance/profiling-tools.html).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .records import LayerTime, LayerTimes, median_run

KERNEL_TIME = "_kernel_time"
PROFILER = "ONNX Runtime's profiler"
LAUNCHES = (
    "this ONNX Runtime does not report the GPU's kernels: the times are those of launching them, not of computing; "
    "flamest-export bench has the time of a whole run"
)
# Position of the weight among the inputs, by operator
CONVOLUTIONS = {"Conv": 1, "FusedConv": 1, "NhwcFusedConv": 1, "NhwcConv": 1, "ConvInteger": 1, "QLinearConv": 3}
MATMULS = frozenset(
    {"MatMul", "FusedMatMul", "Gemm", "FusedGemm", "MatMulInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
    | {"QLinearMatMul", "QGemm", "MatMulNBits"}
)


def read_trace(trace: Path, *, runs: int, on_gpu: bool) -> LayerTimes:
    """The layers in a trace of ``runs`` equal runs after a first one, which is not counted."""
    events = json.loads(trace.read_text())
    nodes = [event for event in events if event.get("cat") == "Node" and event["name"].endswith(KERNEL_TIME)]
    kernels = [event for event in events if event.get("cat") == "Kernel"]
    return LayerTimes(
        layers=_layers(kernels if on_gpu and kernels else nodes, runs),
        profiler=PROFILER,
        gflop=sum(map(event_flop, nodes)) / (runs + 1) / 1e9,
        note=LAUNCHES if on_gpu and not kernels else "",
    )


def _layers(events: Sequence[Mapping[str, Any]], runs: int) -> tuple[LayerTime, ...]:
    """Events of the same node are its runs."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for event in sorted(events, key=lambda each: float(each["ts"])):
        about = event.get("args", {})
        name = event["name"].removesuffix(KERNEL_TIME)
        key = (name, about.get("op_name") or "kernel", about.get("provider", ""))
        found.setdefault(key, []).append(event["dur"] / 1e3)
    return tuple(
        LayerTime(name, operator, median_run(taken, runs, first=True), provider, len(taken) / (runs + 1))
        for (name, operator, provider), taken in found.items()
    )


def event_flop(event: Mapping[str, Any]) -> float:
    """Operations of one run of a node, two for each multiply-add; 0 for what is neither matmul nor convolution."""
    about = event["args"]
    operator = about.get("op_name", "")
    inputs, outputs = _shapes(about.get("input_type_shape")), _shapes(about.get("output_type_shape"))
    if not outputs or not inputs:
        return 0.0
    written = math.prod(outputs[0])
    if operator in MATMULS:
        return 2.0 * written * (inputs[0][-1] if inputs[0] else 1)
    weight = CONVOLUTIONS.get(operator)
    if weight is not None and weight < len(inputs):
        return 2.0 * written * math.prod(inputs[weight][1:])
    return 0.0


def _shapes(listed: Any) -> list[tuple[int, ...]]:
    """From ONNX Runtime's form [{"float": [1, 128]}, …]."""
    return [tuple(shape) for each in listed or () for shape in each.values()]
