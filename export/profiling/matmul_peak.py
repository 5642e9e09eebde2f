"""The most operations a second that a runtime reaches here: a chain of large square matmuls in one precision.

This is the limit that a graph's speed is compared with. It is measured, not looked up: the number of a data sheet
holds for other clock rates, and no matmul reaches it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ...base.errors import FlamestError
from ...runtime.backends.session import Session

CPU_SIDE, GPU_SIDE = 1536, 8192
CHAIN = 3  # matmuls of a run
REPEATS = 4  # the best of
_TYPES = {"fp32": "FLOAT", "fp16": "FLOAT16", "bf16": "BFLOAT16"}


def matmul_gflops(open_file: Callable[[Path], Session], precision: str, *, side: int) -> float | None:
    """10^9 operations a second of square matmuls of ``side`` in ``precision``; None where the backend refuses them.

    ``open_file``: opens an ONNX file with input ``a``, float32 [side, side], on the backend in question.
    """
    with tempfile.TemporaryDirectory(prefix="flamest-peak-") as folder:
        path = Path(folder, "matmuls.onnx")
        path.write_bytes(matmul_chain(precision, side).SerializeToString())
        try:
            session = open_file(path)
            feeds = {"a": session.value(np.random.default_rng(0).standard_normal((side, side), dtype=np.float32))}
            session.run(feeds)  # the first allocates
            times = []
            for _ in range(REPEATS):
                started = time.perf_counter()
                session.run(feeds)
                times.append(time.perf_counter() - started)
        except FlamestError:
            return None
    return CHAIN * 2 * side**3 / min(times) / 1e9


def matmul_chain(precision: str, side: int) -> Any:
    """An ``onnx.ModelProto``: a @ b @ b @ …, and the mean of it, so that nothing large leaves the device."""
    import onnx
    from onnx import TensorProto, helper

    values = np.random.default_rng(1).standard_normal((side, side), dtype=np.float32) / side**0.5
    inner = _TYPES.get(precision, "FLOAT")
    nodes = [helper.make_node("Cast", ["a"], ["x0"], to=getattr(TensorProto, inner))]
    if precision == "int8":
        constants, weight = _int8_weight(values), "b"
        nodes.append(helper.make_node("DequantizeLinear", ["b_int8", "b_scale", "zero"], ["b"]))
    else:
        constants, weight = [_typed(values, inner)], "b"
    for step in range(CHAIN):
        source = f"x{step}"
        if precision == "int8":
            nodes.append(helper.make_node("QuantizeLinear", [source, "a_scale", "zero"], [f"q{step}"]))
            nodes.append(helper.make_node("DequantizeLinear", [f"q{step}", "a_scale", "zero"], [f"d{step}"]))
            source = f"d{step}"
        nodes.append(helper.make_node("MatMul", [source, weight], [f"x{step + 1}"]))
    nodes.append(helper.make_node("Cast", [f"x{CHAIN}"], ["wide"], to=TensorProto.FLOAT))
    nodes.append(helper.make_node("ReduceMean", ["wide"], ["mean"], axes=[0, 1], keepdims=0))
    graph = helper.make_graph(
        nodes,
        "matmuls",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, [side, side])],
        [helper.make_tensor_value_info("mean", TensorProto.FLOAT, [])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def _typed(values: Any, inner: str) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    kind = getattr(TensorProto, inner)
    return numpy_helper.from_array(values.astype(helper.tensor_dtype_to_np_dtype(kind)), "b")


def _int8_weight(values: Any) -> list[Any]:
    from onnx import numpy_helper

    scale = np.float32(np.abs(values).max() / 127)
    return [
        numpy_helper.from_array((values / scale).round().astype(np.int8), "b_int8"),
        numpy_helper.from_array(np.array(scale), "b_scale"),
        numpy_helper.from_array(np.array(np.float32(4 / 127)), "a_scale"),
        numpy_helper.from_array(np.array(np.int8(0)), "zero"),
    ]
