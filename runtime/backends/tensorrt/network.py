"""Is the network that TensorRT parsed the graph of the manifest, and does it compute in what was asked for?

A builder that silently keeps fp32 is a known trap (a flag that a version no longer has, an operator that has
no half-precision form): what TensorRT says about its own network is compared with the ledger of the graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from ...bundle.records import WITH_INT8_WEIGHTS, Graph, Tensor
from ..unavailable import Code, unavailable

# TensorRT's DataType by name -> numpy name, for what our graphs hold
DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
# Operators whose products decide what a graph costs, and the layers that TensorRT makes of them
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
PRODUCT_LAYERS = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM")
HALVES = ("float16", "bfloat16")


def check_network(trt: Any, network: Any, name: str, graph: Graph) -> None:
    """Raises PLAN_BUILD when inputs or outputs are not the manifest's, PRECISION when precision would be lost."""
    flag = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    if int(trt.__version__.partition(".")[0]) < 11 and not network.get_flag(flag):
        said = f"graph '{name}': TensorRT {trt.__version__} did not make the network strongly typed"
        raise unavailable(Code.PRECISION, said).error()
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    _check_tensors(name, "inputs", inputs, graph.inputs)
    _check_tensors(name, "outputs", outputs, graph.outputs)
    if problem := precision_problem(graph, product_dtypes(network), count_layers(network, "QUANTIZE")):
        raise unavailable(Code.PRECISION, f"graph '{name}' in TensorRT {trt.__version__}: {problem}").error()


def _check_tensors(name: str, side: str, found: list[Any], promised: tuple[Tensor, ...]) -> None:
    have = {tensor.name: DTYPES.get(tensor.dtype.name, tensor.dtype.name) for tensor in found}
    want = {tensor.name: tensor.dtype for tensor in promised}
    if have != want:
        raise unavailable(
            Code.PLAN_BUILD, f"graph '{name}': TensorRT's {side} are {have}, the manifest's {want}"
        ).error()


def _layers(network: Any) -> Iterator[Any]:
    return (network.get_layer(index) for index in range(network.num_layers))


def count_layers(network: Any, kind: str) -> int:
    """How many layers of TensorRT's type ``kind`` or of its inverse DE…: QUANTIZE counts DEQUANTIZE too."""
    return sum(layer.type.name in (kind, f"DE{kind}") for layer in _layers(network))


def product_dtypes(network: Any) -> Counter[str]:
    """How many products the network computes in each type, as TensorRT states it of its layers' outputs."""
    products = (layer for layer in _layers(network) if layer.type.name in PRODUCT_LAYERS)
    names = (product.get_output(0).dtype.name for product in products)
    return Counter(DTYPES.get(name, name) for name in names)


def precision_problem(graph: Graph, products: Counter[str], quantizers: int) -> str:
    """What of the graph's precision the network has lost; empty when nothing.

    ``products``: by numpy dtype the network's products; ``quantizers``: its quantising and dequantising
    layers (int8 products stand between those, and TensorRT states float for them).
    """
    asked, int8 = Counter[str](), False
    for kind, operators in graph.dtype_histogram.items():
        dtype = kind.removesuffix(WITH_INT8_WEIGHTS)
        int8 = int8 or dtype == "int8" or dtype != kind
        # Products of int8 operands: TensorRT states the float type into which they are dequantised.
        asked["any" if dtype == "int8" else dtype] += sum(
            count for operator, count in operators.items() if operator in PRODUCTS
        )
    halves = {half: asked[half] for half in HALVES if asked[half]}
    for half, count in halves.items():
        if not products[half]:
            return f"{count} products of the ONNX graph are {half}, none of the network's ({dict(products)})"
    if halves and products["float32"] > asked["float32"] + asked["any"]:
        return f"the ONNX graph has {asked['float32']} products in float32, the network more: {dict(products)}"
    if int8 and not quantizers:
        return "the ONNX graph is quantised, the network has no quantising layer"
    return ""
