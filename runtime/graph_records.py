"""What ``bundle.json`` says of one graph: its tensors, its axes, and what it computes in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from .plan_records import Plan

Precision = Literal["fp32", "fp16", "bf16", "int8"]
Ledger = dict[str, dict[str, int]]  # what is computed in -> operator -> nodes
WITH_INT8_WEIGHTS = " with int8 weights"  # ends the kind of products whose weights alone are int8


def precision_label(of: Mapping[str, str]) -> str:
    """What several graphs compute in, as one word: ``int8``, or ``cnn=int8,text=fp32`` where they differ."""
    if len(set(of.values())) == 1:
        return next(iter(of.values()))
    return ",".join(f"{name}={of[name]}" for name in sorted(of))


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Strict and immutable: an unknown field in a manifest is an error."""


class Tensor(Record, frozen=True):
    name: str
    dtype: str  # numpy name: float32, int64, …
    shape: tuple[int | str, ...]  # a word is a dynamic axis


class AxisRange(Record, frozen=True):
    """What a dynamic axis may be; becomes an optimisation profile."""

    smallest: int
    usual: int
    largest: int


class Graph(Record, frozen=True):
    """One ONNX file. Inputs and outputs are float32 (and int64) whatever its products are computed in."""

    file: str
    opset: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    axes: dict[str, AxisRange]  # by the word used in the shapes
    precision: Precision  # what its products are computed in
    # Read back from the written file, so it proves the precision and does not promise it: float32, float16, bfloat16,
    # int8, "float32 with int8 weights" -> operator ("com.microsoft." before one that is not standard ONNX) -> nodes.
    ledger: Ledger
    plans: tuple[Plan, ...] = ()  # TensorRT's, for GPUs and versions of their own; files of the bundle too
