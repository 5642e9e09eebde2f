"""Records of ``bundle.json`` below the manifest: graphs with their tensors and precision, parity, TensorRT engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Precision = Literal["fp32", "fp16", "bf16", "int8"]
DtypeHistogram = dict[str, dict[str, int]]  # type of the arithmetic -> operator -> nodes
WITH_INT8_WEIGHTS = " with int8 weights"  # suffix of the type where only the weights are int8


# A manifest comes from elsewhere: what it may say is bounded by its types, far above what any export writes.
# Text is shown to people: without control characters, and none that turns the direction of writing.
Text = Annotated[str, Meta(max_length=4096, pattern=r"^[^\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]*\Z")]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Number = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
FileBytes = Annotated[int, Meta(ge=0, le=8 << 30)]
AxisSize = Annotated[int, Meta(ge=-(1 << 31), le=(1 << 31) - 1)]  # negative: unknown, which flamest-export check names
Pixels = Annotated[int, Meta(ge=1, le=2048)]
Frames = Annotated[int, Meta(ge=0, le=1024)]
Width = Annotated[int, Meta(ge=0, le=1 << 16)]  # floats
TokenId = Annotated[int, Meta(ge=0, le=1 << 20)]
Level = Annotated[float, Meta(ge=-1000.0, le=1000.0)]
Shape = Annotated[tuple[AxisSize | Text, ...], Meta(max_length=16)]


def precision_label(of: Mapping[str, str]) -> str:
    """Precision of several graphs as one word: ``int8``, or ``cnn=int8,text=fp32`` where they differ."""
    if len(set(of.values())) == 1:
        return next(iter(of.values()))
    return ",".join(f"{name}={of[name]}" for name in sorted(of))


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Strict and immutable: an unknown field in a manifest is an error."""


class Tensor(Record, frozen=True):
    name: Text
    dtype: Text  # numpy name: float32, int64, …
    shape: Shape  # a word is a dynamic axis


class AxisRange(Record, frozen=True):
    """Sizes of a dynamic axis; the axes of a graph become an optimisation profile."""

    smallest: AxisSize
    usual: AxisSize
    largest: AxisSize


class GraphUse(Record, frozen=True):
    """One of several ways in which a graph is run, with the sizes of it: an optimisation profile of its own.

    A profile is tuned for its usual sizes alone. The last use of a graph covers all of its axes' ranges.
    """

    name: Text
    axes: Annotated[dict[str, AxisRange], Meta(max_length=100)]  # every axis of the graph


Share = Annotated[float, Meta(ge=0.0, le=1.0)]


class Int8Arithmetic(Record, frozen=True):
    """The products of a graph that int8 was found to be good for, and what it costs."""

    kept: Annotated[tuple[Text, ...], Meta(max_length=10_000)]  # results of products that stay in higher precision
    share: Share  # int8's of the multiply-adds with a weight (matmuls of two activations are none)
    share_of_all: Share  # of all multiply-adds
    multiply_adds: Number  # all, of one clip or frame at the usual sizes of the other axes
    held_out_cosine: float  # smallest on clips that were not calibrated on: of an output's row, and of the embedding
    held_out_clips: Number  # that judged, the folder's and drawn ones; none of them is calibrated on


class Graph(Record, frozen=True):
    """One ONNX file. Types of its inputs and outputs: runtime/bundle/manifest.py."""

    file: Text
    opset: Annotated[int, Meta(ge=0, le=1000)]
    inputs: Annotated[tuple[Tensor, ...], Meta(max_length=1000)]
    outputs: Annotated[tuple[Tensor, ...], Meta(max_length=1000)]
    axes: Annotated[dict[str, AxisRange], Meta(max_length=100)]  # by the word used in the shapes
    precision: Precision  # of its matmuls and convolutions
    # Read back from the written file, so it proves the precision and does not promise it: float32, float16, bfloat16,
    # int8, "float32 with int8 weights" -> operator ("com.microsoft." before one that is not standard ONNX) -> nodes.
    dtype_histogram: DtypeHistogram = msgspec.field(name="ledger")
    # TensorRT engines, each for its GPUs and TensorRT versions; their files are in the bundle too. JSON name "plans".
    engines: Annotated[tuple[EngineRecord, ...], Meta(max_length=100)] = msgspec.field(name="plans", default=())
    uses: Annotated[tuple[GraphUse, ...], Meta(max_length=8)] = ()  # empty: one, with the sizes of ``axes``
    int8: Int8Arithmetic | None = None  # None where it is not int8, or was written before this was measured

    @property
    def takes_bytes(self) -> bool:
        """True when frames enter as uint8 [..., height, width, 3] and are normalised in the graph."""
        return any(tensor.dtype == "uint8" for tensor in self.inputs)


class GraphParity(Record, frozen=True):
    """Difference of one graph to PyTorch's fp32 over the batches compared."""

    max_abs: float
    max_rel: float  # max |a - b| / max |b| per output, the largest of the outputs
    min_cosine: float  # of a row of any output: what belongs to one clip, as one vector
    batches: tuple[Number, ...]
    ran_on: Text  # the session that computed the graph: "ONNX Runtime CPU", …


class Cosine(Record, frozen=True):
    smallest: float
    mean: float


class ChainParity(Record, frozen=True):
    """The whole chain of a bundle compared with the same chain in fp32, on the calibration clips.

    The embedding is compared for the fp32 caption: near-ties between captions are counted separately.
    """

    clips: Number
    embeddings: dict[str, Cosine]  # by part: "vlm", "cnn"
    captions_equal: Number
    captions: Number
    ran_on: Text


class Parity(Record, frozen=True):
    graphs: dict[str, GraphParity]
    captions_equal: Number  # to PyTorch's, of ``captions``
    captions: Number  # compared
    chain: ChainParity | None = None  # None where all graphs are fp32 and compared with PyTorch


class Calibration(Record, frozen=True):
    """The clips on which the ranges of int8 activations were measured."""

    source: Text  # "seeded" or "own clips"
    clips: Number


HardwareCompat = Literal["none", "ampere+", "same-cc"]


class EngineOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Build options of an engine. Precision is not one of them: the ONNX graph defines it."""

    opt_level: int = 3
    hardware_compat: HardwareCompat = "none"
    version_compatible: bool = False
    strip_weights: bool = False  # the node refits the weights from the ONNX graph
    tf32: bool = False  # float32 matmuls may round their inputs to 10 bits of mantissa (Ampere and later)
    workspace_mb: int | None = None  # MiB that a kernel may use in addition to its tensors; None: all of the GPU's
    detailed: bool = False  # the engine describes each layer's kernel, for flamest-export profile
    max_batch: int | None = None  # clips of the largest batch; None: by the GPU's memory
    usual_batch: int | None = None  # clips (captions) that it is tuned for; None: by the GPU's memory

    def flags(self) -> tuple[str, ...]:
        """The options that differ from the default, as ``flamest-export`` takes them."""
        words: list[str] = []
        if self.opt_level != EngineOptions().opt_level:
            words += ["--opt-level", str(self.opt_level)]
        if self.hardware_compat != "none":
            words += ["--hardware-compat", self.hardware_compat]
        words += ["--version-compatible"] if self.version_compatible else []
        words += ["--strip-weights"] if self.strip_weights else []
        words += ["--tf32"] if self.tf32 else []
        words += ["--workspace-mb", str(self.workspace_mb)] if self.workspace_mb is not None else []
        words += ["--detailed"] if self.detailed else []
        words += ["--max-batch", str(self.max_batch)] if self.max_batch is not None else []
        return tuple(words)


class EngineRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An engine file of a graph: native code for one GPU (or family) and one TensorRT (or major version)."""

    file: Text
    onnx_sha256: Text  # of the ONNX graph that it was built from
    tensorrt: Text  # version, from the engine's header: "10.16.1.11"
    cuda: Text  # newest CUDA that the driver supports: "12.8"
    driver: Text  # "570.86.15"; "unknown" where the driver gives none
    gpu: Text  # "NVIDIA H100 80GB HBM3"
    compute_capability: Text  # "9.0"
    options: EngineOptions
    build_seconds: float
