"""Written graphs, opened to be compared, with the name of whatever computes them.

No runtime at hand computes bf16: such a graph is emulated (``runtime/backends/bf16_emulation.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from ...runtime.backends.bf16_emulation import WHERE, emulate_bf16
from ...runtime.backends.onnxruntime_cpu import open_session
from ...runtime.backends.session import Session
from ...runtime.bundle.graph_records import Graph, Precision
from ...runtime.bundle.opening import Bundle


@dataclass(frozen=True)
class WrittenGraphs:
    """Graphs of a bundle folder."""

    folder: Path
    graphs: Mapping[str, Graph]  # at least those that are opened
    threads: int | None = None
    bundle: Bundle | None = None  # to open private copies; None for a folder that nobody else writes to

    def open(self, name: str) -> Session:
        bf16 = self.graphs[name].precision == "bf16"
        file = nullcontext(self.folder / self.graphs[name].file)
        with self.bundle.private_graph(name) if self.bundle else file as path:
            source = emulate_bf16(path) if bf16 else path
            return open_session(source, threads=self.threads, shown=self.graphs[name].file)

    def precision(self, name: str) -> Precision:
        return self.graphs[name].precision

    def ran_on(self, name: str) -> str:
        return WHERE if self.graphs[name].precision == "bf16" else "ONNX Runtime CPU"
