"""The verdict on an engine: does it compute what its ONNX graph computes? Made by comparison.py, kept by cache.py."""

from __future__ import annotations

import msgspec

from ....base.errors import FlamestError
from ..unavailable import Code, unavailable


class Verdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The result of comparing one engine with its ONNX graph on one machine."""

    shapes: int  # input shapes that were compared
    runs: int  # of the engine
    cuda_graphs: bool  # replayed CUDA graphs gave right results; else the engine runs without them
    closest: str  # the output that came nearest to its limit, with figure and limit
    seconds: float
    wrong: str = ""  # the evidence; empty for a right engine
    remarks: tuple[str, ...] = ()
    passing: bool = False  # a lack of memory, say, kept CUDA graphs from being compared: not to be kept

    def __str__(self) -> str:
        if self.wrong:
            return f"wrong: {self.wrong}"
        graphs = "with and without CUDA graphs" if self.cuda_graphs else "without CUDA graphs only"
        return f"equals its ONNX graph at {self.shapes} shapes {graphs}; {self.closest}"

    def error(self, graph: str, engine: str = "") -> FlamestError:
        """ENGINE_WRONG with the evidence."""
        where = f"graph '{graph}'" + (f", {engine}" if engine else "")
        return unavailable(Code.ENGINE_WRONG, f"{where}: {self.wrong}").error()
