"""Largest magnitude of a graph's values on calibration clips, and whether fp16 has room for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...runtime.backends.onnxruntime_cpu import open_session
from .ranges import Feeds

FP16_MAX = 65504.0
# Clips that were not measured may go further; three bits of room.
ROOM = 8.0
_NORMALISES = ("Cast", "Div", "Sub", "Transpose")  # a frame of whole bytes, before the network (export/graphs)


def largest_magnitude(
    model: Any, feeds: Sequence[Feeds], *, threads: int | None = None, seen: Callable[[], None] = lambda: None
) -> tuple[float, str]:
    """The largest magnitude of a value that a node of ``model`` (an ``onnx.ModelProto`` in fp32) makes from ``feeds``.

    Second, the name of that value. Infinite where one is not finite. Frames of whole bytes and their normalisation,
    which is fp32 in every graph, are left out.
    """
    from onnx import ModelProto, TensorProto, helper

    from ...runtime.bundle.value_types import value_types

    measured = ModelProto()
    measured.CopyFrom(model)
    types = value_types(model)
    outside = _normalised(model)
    made = [name for node in model.graph.node for name in node.output if name not in outside]
    names = [name for name in made if types.get(name) == "float32"]
    del measured.graph.output[:]
    for index, name in enumerate(names):
        measured.graph.node.extend(
            [
                helper.make_node("Abs", [name], [f"magnitude_{index}"]),
                helper.make_node("ReduceMax", [f"magnitude_{index}"], [f"largest_{index}"], keepdims=0),
            ]
        )
        measured.graph.output.append(helper.make_tensor_value_info(f"largest_{index}", TensorProto.FLOAT, []))
    session = open_session(measured.SerializeToString(), threads=threads)
    largest = np.zeros(len(names))
    for feed in feeds:
        found = session.run(feed)
        values = np.asarray([found[f"largest_{index}"] for index in range(len(names))], np.float64)
        largest = np.maximum(largest, np.nan_to_num(values, nan=np.inf))
        seen()
    at = int(largest.argmax())
    return float(largest[at]), names[at]


def _normalised(model: Any) -> set[str]:
    """The values between an input of whole bytes and the first node that does more than normalise it."""
    from onnx import TensorProto

    inputs = model.graph.input
    found = {each.name for each in inputs if each.type.tensor_type.elem_type == TensorProto.UINT8}
    for node in model.graph.node:
        if node.op_type in _NORMALISES and node.input[0] in found:
            found.update(node.output)
    return found


def fits_fp16(largest: float) -> bool:
    return largest * ROOM <= FP16_MAX


def magnitude_note(graph: str, largest: float) -> str:
    """The measurement, for the notes of a bundle."""
    room = f"room for a factor of {FP16_MAX / largest:.4g}" if largest else "room for any factor"
    short = "" if fits_fp16(largest) else f", less than the {ROOM:.0f} that are asked for"
    return (
        f"{graph}: the largest magnitude inside the network on the calibration clips is {largest:.4g}, fp16 ends at "
        f"{FP16_MAX:.0f}: {room}{short}"
    )
