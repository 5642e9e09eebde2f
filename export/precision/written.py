"""Graphs that were written, opened to be compared: whatever computes them says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...runtime.backends.session import Session, open_session
from ...runtime.bundle.records import Graph, Precision
from .emulation import WHERE, emulate_bf16


@dataclass(frozen=True)
class WrittenGraphs:
    folder: Path
    graphs: Mapping[str, Graph]  # at least those that are opened
    threads: int | None = None

    def open(self, name: str) -> Session:
        path = self.folder / self.graphs[name].file
        bf16 = self.graphs[name].precision == "bf16"
        return open_session(emulate_bf16(path) if bf16 else path, threads=self.threads)

    def precision(self, name: str) -> Precision:
        return self.graphs[name].precision

    def ran_on(self, name: str) -> str:
        return WHERE if self.graphs[name].precision == "bf16" else "ONNX Runtime CPU"
