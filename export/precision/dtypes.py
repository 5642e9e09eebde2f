"""Dtype histogram of a written graph: how many nodes of each operator compute in which dtype, read from its file.

In ONNX types decide: a matmul of float16 operands is a float16 matmul, a matmul whose
operands both come from ``DequantizeLinear`` is an int8 matmul (runtimes recognise it by its
quantise-dequantise pairs), and one whose weight alone does is a float matmul with int8 weights.
Convolutions count as matmuls here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...base.errors import InvariantError, MissingExtra
from ...runtime.bundle.graph_records import WITH_INT8_WEIGHTS, DtypeHistogram, Precision
from ...runtime.bundle.value_types import value_types

MATMULS = ("MatMul", "Gemm", "Conv", "MatMulInteger", "ConvInteger", "com.microsoft.MatMulNBits")
# Others worth counting: half precision and int8 lose most there.
NOT_COUNTED_BEFORE_SCHEMA_4 = ("MaxPool", "AveragePool", "Pad")  # not in every type on every GPU (backends/ranking.py)
_OTHERS = (
    *("Softmax", "LayerNormalization", "Gelu", "Erf", "Sigmoid", "Tanh", "ReduceMean", "GlobalAveragePool"),
    *NOT_COUNTED_BEFORE_SCHEMA_4,
)
_WITHOUT_DATA = {"MatMulInteger": "int8", "ConvInteger": "int8", "com.microsoft.MatMulNBits": "int8"}
MATMUL_DTYPE: dict[Precision, str] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8"}


def read_dtype_histogram(path: Path) -> DtypeHistogram:
    """The histogram of the ONNX file ``path``: dtype -> operator -> nodes."""
    try:
        import onnx
    except ImportError as error:
        raise MissingExtra("onnx", extra="export") from error
    model = onnx.load(str(path))
    types = value_types(model)
    makers = {output: node for node in model.graph.node for output in node.output}
    counts: dict[str, Counter[str]] = {}
    for node in model.graph.node:
        operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        if operator in MATMULS or operator in _OTHERS:
            counts.setdefault(_computes_in(operator, node, types, makers), Counter())[operator] += 1
    return {kind: dict(sorted(counts[kind].items())) for kind in sorted(counts)}


def without_operators(histogram: DtypeHistogram, left_out: Sequence[str]) -> DtypeHistogram:
    """The histogram without some operators, and without the types in which only they compute."""
    kept = {kind: {word: nodes for word, nodes in operators.items() if word not in left_out}
            for kind, operators in histogram.items()}  # fmt: skip
    return {kind: operators for kind, operators in kept.items() if operators}


def matmul_dtypes(histogram: DtypeHistogram) -> set[str]:
    """Dtypes that the matmuls and convolutions of a graph compute in."""
    return {kind for kind, operators in histogram.items() if any(operator in MATMULS for operator in operators)}


def is_precision(kinds: set[str], precision: Precision) -> bool:
    """True where matmuls in ``kinds`` are what ``precision`` promises.

    fp32, fp16 and bf16: every one, for a half that keeps float32 would be lost. int8 leaves some in float (the
    first layer, matmuls of two activations).
    """
    if precision == "int8":
        return any(kind == "int8" or kind.endswith(WITH_INT8_WEIGHTS) for kind in kinds)
    return kinds == {MATMUL_DTYPE[precision]}


def check_precision(graph: str, precision: Precision, histogram: DtypeHistogram) -> None:
    """Raise InvariantError when a graph that should compute in ``precision`` does not: it must not be lost silently."""
    kinds = matmul_dtypes(histogram)
    if not is_precision(kinds, precision):
        found = ", ".join(sorted(kinds)) or "nothing"
        raise InvariantError(
            f"the matmuls of graph '{graph}' should compute in {MATMUL_DTYPE[precision]}, in its file they compute in "
            f"{found}"
        )


def _computes_in(operator: str, node: Any, types: dict[str, str], makers: dict[str, Any]) -> str:
    if operator in _WITHOUT_DATA:
        return _WITHOUT_DATA[operator]
    own = types.get(node.input[0])
    if own is None:
        raise InvariantError(f"node '{node.name}' ({operator}): the type of its input {node.input[0]} is not known")
    if operator not in MATMULS:
        return own
    from_int8 = [_dequantised(name, makers) for name in node.input[:2]]
    if all(from_int8):
        return "int8"
    return own + WITH_INT8_WEIGHTS if any(from_int8) else own


def _dequantised(name: str, makers: dict[str, Any]) -> bool:
    """True where the value comes from int8 with nothing but a change of shape or float type in between."""
    maker = makers.get(name)
    while maker is not None and maker.op_type in ("Cast", "Transpose", "Reshape"):
        maker = makers.get(maker.input[0])
    return maker is not None and maker.op_type == "DequantizeLinear"
