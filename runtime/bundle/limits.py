"""Limits on the distance of two computations of one graph: an export from PyTorch, an engine from its ONNX graph.

In fp32 the limit is on max |a - b| / max |b| of an output, because both sides round at the 24th bit and only the order
of their sums differs. In other precisions it is on the cosine of each row of an output: what belongs to one clip, as
one vector, over whose numbers the rounding errors are spread.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .graph_records import Precision

# A graph and PyTorch's fp32 (export/parity).
RELATIVE = 1e-4  # fp32: largest relative error of any output
COSINES: Mapping[Precision, float] = MappingProxyType({"fp32": 0.999999, "fp16": 0.9999, "bf16": 0.999, "int8": 0.998})

# An engine and its ONNX graph on the CPU. In half precision and int8 each of the two may be as far from the exact
# result as COSINES allows, and the squares of independent errors add up: twice the distance from 1. A GPU's fp32 sums
# run over larger blocks, and its convolutions may be transformed (Winograd, FFT): ten times RELATIVE.
ENGINE_RELATIVE = 1e-3
# TF32 keeps 10 bits of a product's mantissa, as fp16 does, and sums in fp32.
_ROUNDED_AS: Mapping[Precision, Precision] = {"fp32": "fp16"}


def engine_cosine(precision: Precision, *, tf32: bool) -> float | None:
    """Smallest allowed cosine of a row of an engine's output and its graph's; None: ENGINE_RELATIVE applies."""
    if precision == "fp32" and not tf32:
        return None
    return 1.0 - 2.0 * (1.0 - COSINES[_ROUNDED_AS.get(precision, precision)])
