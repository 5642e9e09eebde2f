"""An engine of one layer, built, run and compared in a child process before minutes are spent on larger ones.

It needs all that they need: the driver, the builder, the parser, the runtime, cuda-bindings, captured CUDA graphs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from ....base.errors import FlamestError
from ....base.files import sha256_bytes, write_atomic
from ....base.progress import NoProgress, Progress
from ...bundle.graph_records import AxisRange, EngineOptions, Graph, Tensor
from .build_process import build_engine_in_child
from .builder import BuiltEngine, EngineRequest
from .verdict import Verdict

NAME = "one_layer"
WIDTH = 8
GRAPH = Graph(
    file=f"{NAME}.onnx",
    opset=17,
    inputs=(Tensor("input", "float32", ("batch", WIDTH)),),
    outputs=(Tensor("output", "float32", ("batch", WIDTH)),),
    axes={"batch": AxisRange(1, 2, 4)},
    precision="fp32",
    dtype_histogram={"float32": {"MatMul": 1}},
)


def try_first_engine(
    *, device: int = 0, build: Callable[[EngineRequest, Progress], BuiltEngine] = build_engine_in_child
) -> Verdict:
    """Build the engine on GPU ``device``; takes some seconds.

    Raises the errors of ``build_engine``, with TensorRT's words, ENGINE_WRONG, and those of running it; each says that
    it was the engine of one layer.
    """
    model = make_model()
    with tempfile.TemporaryDirectory(prefix="flamest-") as folder:
        onnx = Path(folder, GRAPH.file)
        write_atomic(onnx, model)
        request = EngineRequest(NAME, onnx, sha256_bytes(model), GRAPH, EngineOptions(opt_level=0), device=device)
        try:
            built = build(request, NoProgress())
            if built.unproved is not None:
                raise built.unproved
            verdict = built.verdict
            if verdict is not None and verdict.wrong:
                raise verdict.error(NAME)
        except FlamestError as error:
            raise type(error)(
                f"TensorRT does not work on this machine: an engine of one layer failed, before any of the bundle's "
                f"was built. {error.message}",
                fix=error.fix,
                code=error.code,
            ) from error
    assert verdict is not None
    return verdict


def make_model() -> bytes:
    """The ONNX graph: a product with a fixed matrix."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32)
    sides = [
        [helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, list(tensor.shape)) for tensor in side]
        for side in (GRAPH.inputs, GRAPH.outputs)
    ]
    node = helper.make_node("MatMul", ["input", "weights"], ["output"])
    graph = helper.make_graph([node], NAME, *sides, [numpy_helper.from_array(weights, "weights")])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", GRAPH.opset)], ir_version=9)
    return bytes(made.SerializeToString())
