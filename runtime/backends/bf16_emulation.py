"""Half precision on a processor that does not compute in it: fp32, rounded to bf16 or fp16 after every operator.

ONNX Runtime's CPU provider has no bf16 arithmetic, but it can cast. Hardware does the same, up to the order of sums:
half operands, fp32 accumulation, one rounding. It has fp16 arithmetic, whose sums and speed differ between releases and
processors: a reference does not depend on them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..bundle.value_types import value_types

WHERE = "ONNX Runtime CPU, fp32 rounded to bf16 after every operator"
_MOVES = ("Reshape", "Transpose", "Gather", "Concat", "Slice", "Unsqueeze", "Squeeze", "Expand", "Identity", "MaxPool")


def emulate_bf16(graph: Path | bytes) -> bytes:
    """The graph of an ONNX file (or its bytes) with fp32 tensors in place of bf16 ones, their values bf16's.

    Inputs and outputs that are bf16 become fp32 too: the caller gives values that bf16 has.
    """
    return _emulated(graph, "bfloat16")


def emulate_fp16(graph: Path | bytes) -> bytes:
    """The same for fp16; inputs and outputs stay fp16."""
    return _emulated(graph, "float16")


def _emulated(graph: Path | bytes, half: str) -> bytes:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    kind = TensorProto.BFLOAT16 if half == "bfloat16" else TensorProto.FLOAT16
    model = onnx.load_from_string(graph) if isinstance(graph, bytes) else onnx.load(str(graph))
    types = value_types(model)
    nodes: list[Any] = []
    for node in model.graph.node:
        rounded = [name for name in node.output if types.get(name) == half]
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == kind:
                attribute.i = TensorProto.FLOAT
        nodes.append(node)
        if node.op_type in _MOVES:
            continue
        for name in rounded:
            index = list(node.output).index(name)
            node.output[index] = f"{name}_exact"
            nodes.append(helper.make_node("Cast", [f"{name}_exact"], [f"{name}_half"], to=kind))
            nodes.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    for tensor in model.graph.initializer:
        if tensor.data_type == kind:
            values = numpy_helper.to_array(tensor).astype("float32")
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    _widen_sides(model, kind)
    del model.graph.value_info[:]  # they state the half precision
    return bytes(model.SerializeToString())


def _widen_sides(model: Any, kind: int) -> None:
    """Make half inputs and outputs fp32 (bf16), or keep their type by a cast at each (fp16, which NumPy has)."""
    from onnx import TensorProto, helper

    graph = model.graph
    sides = [value for value in (*graph.input, *graph.output) if value.type.tensor_type.elem_type == kind]
    if kind == TensorProto.BFLOAT16:
        for value in sides:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
        return
    names = {value.name: f"{value.name}_wide" for value in sides}
    for node in graph.node:
        for words in (node.input, node.output):
            for index, word in enumerate(words):
                words[index] = names.get(word, word)
    inputs = {value.name for value in graph.input}
    before = [helper.make_node("Cast", [name], [wide], to=TensorProto.FLOAT)
              for name, wide in names.items() if name in inputs]  # fmt: skip
    after = [helper.make_node("Cast", [wide], [name], to=kind) for name, wide in names.items() if name not in inputs]
    nodes = [*before, *(type(node).FromString(node.SerializeToString()) for node in graph.node), *after]
    del graph.node[:]
    graph.node.extend(nodes)
