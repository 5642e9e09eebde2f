"""bfloat16 on a processor that does not compute in it: fp32, rounded to bf16 after every operator.

ONNX Runtime's CPU provider has no bf16 arithmetic, but it can cast. Hardware does the same, up to the order of sums:
bf16 operands, fp32 accumulation, one rounding.
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
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load_from_string(graph) if isinstance(graph, bytes) else onnx.load(str(graph))
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
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    del model.graph.value_info[:]  # they state bf16
    return bytes(model.SerializeToString())
