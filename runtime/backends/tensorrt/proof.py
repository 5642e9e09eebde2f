"""The proof of an engine, in the child process that built it or opened it first: deserialised, run, compared.

What comparison.py needs is read from the files that the parent names, each checked against its hash.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from ...bundle.graph_records import EngineOptions, Graph
from .comparison import ComparedGraph, compare_engine
from .engine import LoadedEngine, read_trusted
from .verdict import Verdict


class OnnxFile(msgspec.Struct, frozen=True):
    """A graph's ONNX file and its record."""

    path: str
    sha256: str
    graph: Graph

    def read(self) -> bytes:
        """Its bytes; raises UNTRUSTED when they are not those of the hash."""
        return read_trusted(Path(self.path), self.sha256)


class Proof(msgspec.Struct, frozen=True):
    """All that an engine is compared with."""

    name: str  # of the graph
    onnx: OnnxFile
    options: EngineOptions  # of the engine
    vocabulary: int = 0  # token ids are below
    source: OnnxFile | None = None  # the graph whose outputs are inputs of this one
    device: int = 0  # number of the GPU


def prove_engine(trt: Any, loaded: LoadedEngine, proof: Proof, describe: Callable[[str], None]) -> Verdict:
    """Compare an opened engine with its graph; raises the errors of running it."""
    from .cuda_device import CudaDevice
    from .runner import TensorRtSession

    device = CudaDevice.open(number=proof.device)

    def open_engine(cuda_graphs: bool) -> TensorRtSession:
        return TensorRtSession(trt, loaded, device, name=proof.name, where="TensorRT", cuda_graphs=cuda_graphs)

    source = None if proof.source is None else (proof.source.graph, proof.source.read())
    subject = ComparedGraph(proof.name, proof.onnx.graph, proof.onnx.read(), proof.options, proof.vocabulary, source)
    return compare_engine(subject, open_engine, describe)
