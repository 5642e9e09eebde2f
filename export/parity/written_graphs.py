"""Written graphs, opened to be compared, with the name of whatever computes them.

No runtime at hand computes bf16: such a graph runs in fp32, rounded to bf16 after every operator. Hardware does the
same, up to the order of sums: bf16 operands, fp32 accumulation, one rounding. ONNX Runtime's CPU provider has no bf16
arithmetic, but it can cast.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.backends.onnxruntime_cpu import open_session
from ...runtime.backends.session import Session
from ...runtime.bundle.graph_records import Graph, Precision
from ...runtime.bundle.opening import Bundle
from ..precision.dtypes import value_types

WHERE = "ONNX Runtime CPU, fp32 rounded to bf16 after every operator"
_MOVES = ("Reshape", "Transpose", "Gather", "Concat", "Slice", "Unsqueeze", "Squeeze", "Expand", "Identity", "MaxPool")


def emulate_bf16(path: Path) -> bytes:
    """The graph of the ONNX file ``path`` with fp32 tensors in place of bf16 ones, their values bf16's."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(str(path))
    types = value_types(model)
    nodes: list[Any] = []
    for node in model.graph.node:
        rounded = [name for name in node.output if types.get(name) == "bfloat16"]
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
        nodes.append(node)
        if node.op_type in _MOVES:
            continue
        for name in rounded:
            index = list(node.output).index(name)
            node.output[index] = f"{name}_exact"
            nodes.append(helper.make_node("Cast", [f"{name}_exact"], [f"{name}_bf16"], to=TensorProto.BFLOAT16))
            nodes.append(helper.make_node("Cast", [f"{name}_bf16"], [name], to=TensorProto.FLOAT))
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.BFLOAT16:
            values = numpy_helper.to_array(tensor).astype("float32")
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return bytes(model.SerializeToString())


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
