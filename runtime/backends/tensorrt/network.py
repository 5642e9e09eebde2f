"""Check that TensorRT's parsed network has the manifest's inputs, outputs and precision.

A builder can silently keep fp32 (a flag that a version no longer has, an operator without a half-precision form), so
TensorRT's own network is compared with the graph's dtype histogram.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from ...bundle.graph_records import WITH_INT8_WEIGHTS, Graph, Tensor
from ..unavailable import Code, unavailable

# TensorRT's DataType by name -> numpy name, for the types of our graphs
TENSORRT_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
# The operators that dominate a graph's cost, and TensorRT's layers for them
MATMUL_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
MATMUL_LAYERS = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM")
HALVES = ("float16", "bfloat16")


def check_network(trt: Any, network: Any, name: str, graph: Graph) -> None:
    """Compare TensorRT's network with the manifest's graph ``name``.

    Raises PLAN_BUILD when inputs or outputs differ, PRECISION when precision would be lost.
    """
    flag = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    if int(trt.__version__.partition(".")[0]) < 11 and not network.get_flag(flag):
        evidence = f"graph '{name}': TensorRT {trt.__version__} did not make the network strongly typed"
        raise unavailable(Code.PRECISION, evidence).error()
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    _check_tensors(name, "inputs", inputs, graph.inputs)
    _check_tensors(name, "outputs", outputs, graph.outputs)
    if problem := precision_problem(graph, matmul_dtypes(network), quantized_sources(network)):
        raise unavailable(Code.PRECISION, f"graph '{name}' in TensorRT {trt.__version__}: {problem}").error()


def _check_tensors(name: str, side: str, found: list[Any], promised: tuple[Tensor, ...]) -> None:
    have = {tensor.name: TENSORRT_DTYPES.get(tensor.dtype.name, tensor.dtype.name) for tensor in found}
    want = {tensor.name: tensor.dtype for tensor in promised}
    if have != want:
        raise unavailable(
            Code.PLAN_BUILD, f"graph '{name}': TensorRT's {side} are {have}, the manifest's {want}"
        ).error()


def _layers(network: Any) -> Iterator[Any]:
    return (network.get_layer(index) for index in range(network.num_layers))


def quantized_sources(network: Any) -> int:
    """Number of layers that read int8 values to make floats of them: one for each int8 operand, in the form that
    TensorRT recognises (its documentation calls it explicit quantisation)."""
    layers = (layer for layer in _layers(network) if layer.type.name == "DEQUANTIZE")
    return sum(layer.get_input(0).dtype.name == "INT8" for layer in layers)


def matmul_dtypes(network: Any) -> Counter[str]:
    """Number of matmuls and convolutions by type of their output, as TensorRT reports it."""
    matmuls = (layer for layer in _layers(network) if layer.type.name in MATMUL_LAYERS)
    names = (matmul.get_output(0).dtype.name for matmul in matmuls)
    return Counter(TENSORRT_DTYPES.get(name, name) for name in names)


def precision_problem(graph: Graph, matmuls: Counter[str], quantized: int) -> str:
    """The precision that the network has lost; empty when none.

    ``matmuls``: the network's matmuls and convolutions by numpy dtype; ``quantized``: its ``quantized_sources``. For
    int8 operands TensorRT reports the float type into which the result is dequantised: that of the graph around them.
    """
    expected, int8, weights = Counter[str](), 0, 0
    around = {kind.removesuffix(WITH_INT8_WEIGHTS) for kind in graph.dtype_histogram}
    for kind, operators in graph.dtype_histogram.items():
        count = sum(count for operator, count in operators.items() if operator in MATMUL_OPERATORS)
        if kind == "int8":
            int8 += count
        else:
            expected[kind.removesuffix(WITH_INT8_WEIGHTS)] += count
            weights += count if kind.endswith(WITH_INT8_WEIGHTS) else 0
    halves = {half: expected[half] for half in HALVES if expected[half]}
    for half, count in halves.items():
        if not matmuls[half]:
            return f"{count} matmuls of the ONNX graph are {half}, none of the network's ({dict(matmuls)})"
    # Matmuls of int8 operands may be dequantised into float32 where the graph has float32 as well.
    spare = int8 if "float32" in around else 0
    if around & set(HALVES) and matmuls["float32"] > expected["float32"] + spare:
        return f"the ONNX graph has {expected['float32']} matmuls in float32, the network more: {dict(matmuls)}"
    if int8 + weights and not quantized:
        return f"{int8 + weights} matmuls of the ONNX graph have int8 operands, the network dequantises nothing"
    return ""
