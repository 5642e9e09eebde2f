"""ONNX files of a trained head: ``MODEL.onnx``, and ``MODEL.fused.onnx`` next to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..base.errors import UsageError
from ..base.files import sha256_bytes, write_atomic
from .head_onnx import encode_onnx
from .model_file import ModelFile

SUFFIX, FUSED_SUFFIX = ".onnx", ".fused.onnx"


def check_onnx_name(path: Path) -> None:
    """Raise UsageError unless ``path`` can be the name of the head's file."""
    if path.suffix != SUFFIX or path.name == SUFFIX or path.name.endswith(FUSED_SUFFIX):
        raise UsageError(
            f"{path}: expected a name that ends in {SUFFIX}; the fused graph's file is named after it",
            fix=f"give {path.with_name('model' + SUFFIX)}",
        )


def write_onnx(path: Path, model: ModelFile, *, parts: Sequence[int]) -> list[dict[str, Any]]:
    """Write the graphs of ``encode_onnx``, each whole or not at all, and return a row for each file.

    Nothing is written before all graphs are made and checked. Raises UsageError for another name than ``MODEL.onnx``;
    DataError and MissingExtra as ``encode_onnx``; StorageError.
    """
    check_onnx_name(path)
    graphs = encode_onnx(model, parts=parts, version=__version__)
    files = []
    for graph in graphs:
        name = path if graph.kind == "head" else path.with_name(path.stem + FUSED_SUFFIX)
        write_atomic(name, graph.data)
        row = {"file": str(name), "graph": graph.kind, "bytes": len(graph.data), "sha256": sha256_bytes(graph.data)}
        files.append({**row, "inputs": graph.inputs, "outputs": ["logits", "probabilities"]})
    return files


def onnx_lines(files: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the rows of ``write_onnx`` as text."""
    lines = []
    for row in files:
        inputs = ", ".join(f"{name} float32[batch, {width}]" for name, width in row["inputs"].items())
        lines.append(f"  {row['file']}: {inputs} -> {', '.join(row['outputs'])}")
    if len(files) == 1:
        fused = Path(files[0]["file"])
        lines.append(
            "  no fused graph: the embedding is one part, or the widths of its parts are unknown (--parts W,W)"
        )
        if fused.with_name(fused.stem + FUSED_SUFFIX).exists():
            lines.append(f"  {fused.stem + FUSED_SUFFIX} is there from an earlier time and was left as it is")
    return lines
