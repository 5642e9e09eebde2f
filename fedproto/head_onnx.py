"""A trained head as ONNX graphs, for serving without this package: alone, and fused behind the concatenation.

    head     x [batch, inputs]                          -> logits, probabilities [batch, classes]
    fused    vlm [batch, 768], cnn [batch, 2048], say   -> the same, of the two in a row

All values are float32, the batch is dynamic, the parameters are inside the file. Operators are those of ONNX 1.12
(opset 17, IR version 8). ``metadata_props`` hold what a model file holds (model_file.py), each value one JSON text:
``flamest.labels`` names the classes in the outputs' order; ``flamest.version`` is the package that wrote it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..base.errors import DataError, UsageError, printable
from .bounds import MAX_BLOCKS, MAX_WIDTH
from .fingerprint import imported_width
from .head import HeadSpec
from .head_graph import head_forward
from .model_file import ModelFile, check_model, encode_metadata
from .onnx_builder import OnnxGraphBuilder

PAIR = ("vlm", "cnn")  # a bundle's two parts
# Widths of the parts in embeddings of the published networks, for runs whose settings name no blocks: BLIP, and Slow,
# I3D or ResNet-3D. No other bundle of published networks has embeddings of these widths.
PUBLISHED_PARTS = {2816: (768, 2048), 1280: (768, 512)}


@dataclass(frozen=True)
class OnnxHead:
    """A graph and the widths of its inputs by name."""

    kind: str  # "head", "fused"
    data: bytes
    inputs: dict[str, int]


def encode_onnx(model: ModelFile, *, parts: Sequence[int] = (), version: str) -> tuple[OnnxHead, ...]:
    """Return the model's graphs: the head alone and, where ``parts`` are two or more, the fused one.

    The same arguments give the same bytes. ``parts``: widths of the fused graph's inputs, in the order of the row
    (``known_parts``). Raises DataError when params or labels do not fit the head (``bad_model``), or the parts do not
    add up to its inputs; MissingExtra without the package onnx.
    """
    check_model(model)
    if parts and (len(parts) > MAX_BLOCKS or min(parts) < 1 or sum(parts) != model.head.inputs):
        raise DataError(
            f"parts {list(parts)[:MAX_BLOCKS]}: expected widths that add up to the head's {model.head.inputs} inputs",
            fix="name the widths in the order of the row, as flamest-export inspect shows them",
            code="bad_parts",
        )
    metadata = {**encode_metadata(model), "flamest.version": f'"{version}"'}
    graphs = [_encode(model, {"x": model.head.inputs}, metadata, kind="head")]
    if len(parts) > 1:
        names = PAIR if len(parts) == 2 else tuple(f"part_{number}" for number in range(len(parts)))
        graphs.append(_encode(model, dict(zip(names, parts, strict=True)), metadata, kind="fused"))
    return tuple(graphs)


def known_parts(head: HeadSpec, fingerprint: str) -> tuple[int, ...]:
    """Return the widths of the parts in a row of features; empty when the row is one, or they are not known here."""
    if head.blocks:
        return head.blocks if len(head.blocks) > 1 else ()
    return () if imported_width(fingerprint) else PUBLISHED_PARTS.get(head.inputs, ())


def parse_parts(text: str) -> tuple[int, ...]:
    """Return the widths of an option's text like ``768,2048``. Raises UsageError."""
    words = text.split(",")
    if len(words) <= MAX_BLOCKS and all(word.isascii() and word.isdecimal() and len(word) <= 5 for word in words):
        widths = tuple(map(int, words))
        if all(1 <= width <= MAX_WIDTH for width in widths):
            return widths
    raise UsageError(
        f"--parts {printable(text[:60])}: expected widths with commas, like 768,2048",
        fix="flamest-export inspect shows the widths of a bundle's parts",
    )


def _encode(model: ModelFile, inputs: dict[str, int], metadata: dict[str, str], *, kind: str) -> OnnxHead:
    builder = OnnxGraphBuilder("float32")
    if len(inputs) > 1:
        builder.op("Concat", *inputs, name="x", axis=1)
    for name in model.head.shapes:
        builder.constant(model.params[name], name=name)
    builder.op("Identity", head_forward(builder, model.head).logits, name="logits")
    builder.op("Softmax", "logits", name="probabilities", axis=-1)
    outputs = [builder.value(name, ["batch", model.head.outputs]) for name in ("logits", "probabilities")]
    values = [builder.value(name, ["batch", width]) for name, width in inputs.items()]
    data = builder.finish(f"flamest_{kind}", values, outputs, metadata=metadata, strict=True)
    return OnnxHead(kind, data, inputs)
