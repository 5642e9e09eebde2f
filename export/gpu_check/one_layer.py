"""An engine of one matmul: TensorRT, driver, compiler cache and memory work together, or say at once why not.

Not run on hardware yet.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from ...base.errors import DataError
from ...base.files import sha256_bytes
from ...runtime.backends.tensorrt.build_process import build_engine_in_child
from ...runtime.backends.tensorrt.builder import EngineRequest
from ...runtime.bundle.graph_records import AxisRange, EngineOptions, Graph, Tensor
from .engine_trials import NoProgress, opened_engine

SIDE = 64
LIMIT = 1e-3  # relative error of the product


def build_and_run() -> dict[str, Any]:
    """Build it in a child, run it three times here (plain, captured, replayed); seconds and largest error.

    Raises the errors of building and opening an engine, DataError ``ENGINE_WRONG`` for a wrong product.
    """
    random = np.random.default_rng(0)
    weight = random.standard_normal((SIDE, SIDE), dtype=np.float32)
    model = _model(weight).SerializeToString()
    graph = Graph(
        file="product.onnx",
        opset=17,
        inputs=(Tensor("a", "float32", ("batch", SIDE)),),
        outputs=(Tensor("c", "float32", ("batch", SIDE)),),
        axes={"batch": AxisRange(1, 8, 16)},
        precision="fp32",
        dtype_histogram={"float32": {"MatMul": 1}},
    )
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="flamest-one-layer-") as folder:
        path = Path(folder, graph.file)
        path.write_bytes(model)
        request = EngineRequest("product", path, sha256_bytes(model), graph, EngineOptions())
        built = build_engine_in_child(request, NoProgress())
    error = 0.0
    with opened_engine(built.data, "product") as session:
        for batch in (8, 8, 8, 3):
            a = random.standard_normal((batch, SIDE), dtype=np.float32)
            got, expected = session.run({"a": a})["c"], a @ weight
            error = max(error, float(np.abs(got - expected).max() / np.abs(expected).max()))
    if not error <= LIMIT:
        raise DataError(
            f"TensorRT computed a matmul of {SIDE} wrongly: relative error {error:.1e}, expected at most {LIMIT:.0e}",
            fix="attach the report to an issue; other versions of TensorRT or of the driver may compute it rightly",
            code="ENGINE_WRONG",
        )
    return {"seconds": time.monotonic() - started, "max_rel": error, "tensorrt": str(built.version)}


def _model(weight: Any) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", SIDE]) for name in ("a", "c")]
    node = helper.make_node("MatMul", ["a", "b"], ["c"])
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], [numpy_helper.from_array(weight, "b")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
