"""Element types of an ONNX graph's values, found by inference that needs no large weights."""

from __future__ import annotations

from typing import Any

import numpy as np

SMALL_BYTES = 1 << 12  # of a constant; inference may need the values of small ones


def value_types(model: Any) -> dict[str, str]:
    """The element type of every value, by numpy's name."""
    import onnx

    light = onnx.ModelProto()
    light.CopyFrom(model)
    known = {tensor.name: tensor.data_type for tensor in light.graph.initializer}
    drop_large_constants(light)
    graph = onnx.shape_inference.infer_shapes(light, strict_mode=False).graph
    known |= {
        value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)
    }
    return {name: dtype_name(number) for name, number in known.items()}


def drop_large_constants(model: Any) -> None:
    """Turn large constants of ``model`` into inputs of the same type and shape.

    Type and shape inference copies the model and needs no values of theirs.
    """
    import onnx

    kept = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) <= SMALL_BYTES]
    known = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > SMALL_BYTES and tensor.name not in known:
            shape = list(tensor.dims)
            model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, shape))
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def dtype_name(number: int) -> str:
    """Return numpy's name of an ONNX element type."""
    import onnx

    return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(number)).name)
