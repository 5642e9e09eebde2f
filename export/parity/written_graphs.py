"""Written graphs, opened to be compared, with the name of whatever computes them.

No runtime at hand computes bf16: such a graph is emulated (``runtime/backends/bf16_emulation.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...runtime.backends.bf16_emulation import WHERE, emulate_bf16
from ...runtime.backends.onnxruntime_cpu import open_session
from ...runtime.backends.session import Session
from ...runtime.bundle.graph_records import Graph, Precision
from ...runtime.bundle.manifest import FramePreprocessing
from ...runtime.bundle.opening import Bundle
from ..networks.frame_bytes import normalise_bytes
from ..precision.half import HALVES


@dataclass(frozen=True)
class WrittenGraphs:
    """Graphs of a bundle folder."""

    folder: Path
    graphs: Mapping[str, Graph]  # at least those that are opened
    threads: int | None = None
    bundle: Bundle | None = None  # to open private copies; None for a folder that nobody else writes to

    def open(self, name: str) -> Session:
        bf16 = self._has_bf16(name)
        file = nullcontext(self.folder / self.graphs[name].file)
        with self.bundle.private_graph(name) if self.bundle else file as path:
            source = emulate_bf16(path) if bf16 else path
            return open_session(source, threads=self.threads, shown=self.graphs[name].file)

    def frames(self, name: str, rgb: npt.NDArray[np.uint8], rule: FramePreprocessing) -> npt.NDArray[Any]:
        """Frames as the graph takes them: the bytes [..., S, S, 3], or of a schema-3 graph normalised by ``rule``.

        Then [N, 3, S, S], and of clips [B, 3, K, S, S].
        """
        if self.graphs[name].takes_bytes:
            return rgb
        values = normalise_bytes(rgb.reshape(-1, *rgb.shape[-3:]), rule)
        if rgb.ndim == 4:
            return values
        return np.ascontiguousarray(values.reshape(*rgb.shape[:2], *values.shape[1:]).swapaxes(1, 2))

    def caches(self, name: str, arrays: Mapping[str, npt.NDArray[np.float32]]) -> dict[str, npt.NDArray[Any]]:
        """Keys and values in the types of the graph's inputs; bf16, which is emulated, as rounded float32."""
        types = {tensor.name: tensor.dtype for tensor in self.graphs[name].inputs}
        return {key: _cast(array, types.get(key, "float32")) for key, array in arrays.items()}

    def precision(self, name: str) -> Precision:
        return self.graphs[name].precision

    def compared_as(self, name: str) -> Precision:
        """The precision whose limits hold for the graph: an fp32 one may round what it gives to half precision."""
        given = {tensor.dtype for tensor in self.graphs[name].outputs}
        halves: list[Precision] = [precision for precision, dtype in HALVES.items() if dtype in given]
        return halves[0] if halves and self.precision(name) == "fp32" else self.precision(name)

    def ran_on(self, name: str) -> str:
        return WHERE if self._has_bf16(name) else "ONNX Runtime CPU"

    def _has_bf16(self, name: str) -> bool:
        """True where ONNX Runtime's CPU provider lacks operators for the graph, or NumPy a type for its tensors."""
        graph = self.graphs[name]
        ends = (tensor.dtype for tensor in (*graph.inputs, *graph.outputs))
        return graph.precision == "bf16" or "bfloat16" in ends or "bfloat16" in graph.dtype_histogram


def _cast(array: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[Any]:
    if dtype != "bfloat16":
        return array.astype(dtype)
    from onnx import TensorProto, helper

    bf16 = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
    return array.astype(bf16).astype(np.float32)
