"""The checks of a bundle that need neither PyTorch nor a GPU nor a runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import DataError, MissingExtra
from ..runtime.bundle.graph_check import check_graph
from ..runtime.bundle.graph_records import Graph
from ..runtime.bundle.manifest import SCHEMA, Manifest
from ..runtime.bundle.opening import open_bundle
from ..runtime.bundle.signature import TrustedKeys
from .graphs.tensorrt_operators import NEWER_OPSETS, OPSETS, STANDARD, newer_operators, parser_problems
from .graphs.views import GraphView, view_graph
from .precision.dtypes import (
    NOT_COUNTED_BEFORE_SCHEMA_4,
    is_precision,
    matmul_dtypes,
    read_dtype_histogram,
    without_operators,
)

CHECKS = (
    "content",
    "ONNX checker",
    "strict shape inference",
    "tensors and axes",
    "dtype histogram",
    "TensorRT operators",
)
_SHOWN = 4  # problems of one kind that are named


@dataclass(frozen=True)
class CheckResult:
    """One check of one graph. A remark is a problem that does not fail the check."""

    graph: str
    check: str  # of CHECKS
    problems: tuple[str, ...]
    remark: bool = False

    @property
    def ok(self) -> bool:
        return self.remark or not self.problems


def check_bundle(bundle: Path, trusted: TrustedKeys = ()) -> tuple[CheckResult, ...]:
    """Every check of every graph, in the order of CHECKS; raises DataError as ``open_bundle`` does."""
    opened = open_bundle(bundle, trusted)
    results: list[CheckResult] = []
    for name in opened.manifest.graphs:
        with opened.private_graph(name) as path:
            results += _check_graph(path, name, opened.manifest)
    return tuple(results)


def check_graphs(folder: Path, manifest: Manifest) -> tuple[CheckResult, ...]:
    """Check the graphs of a folder whose files are known to be right: one that is being exported."""
    return tuple(
        result
        for name, graph in manifest.graphs.items()
        for result in _check_graph(folder / graph.file, name, manifest)
    )


def raise_for_failures(results: tuple[CheckResult, ...], bundle: Path) -> None:
    """Raise DataError (``check_failed``) that names every problem of every failed check."""
    failed = [f"{result.graph}: {result.check}: {problem}" for result in results if not result.ok
              for problem in result.problems]  # fmt: skip
    if failed:
        raise DataError(
            f"{bundle}: {len(failed)} check{'s' * (len(failed) > 1)} failed: " + "; ".join(failed),
            fix="report this with the versions that flamest-export doctor prints",
            code="check_failed",
        )


def _check_graph(path: Path, name: str, manifest: Manifest) -> Iterator[CheckResult]:
    graph = manifest.graphs[name]

    def found(check: str, problems: Iterator[str] | tuple[str, ...], *, remark: bool = False) -> CheckResult:
        return CheckResult(name, check, tuple(problems), remark)

    yield found("content", _content(path, graph))
    yield found("ONNX checker", _checker(path))
    try:
        view = view_graph(path)
    except DataError as error:
        yield found("strict shape inference", (error.message,))
        return
    yield found("strict shape inference", ())
    yield found("tensors and axes", _interface(graph, view))
    yield found("dtype histogram", _dtypes(path, graph, manifest.schema))
    # An int8 form that was chosen for another backend is not meant for TensorRT: a remark, no failure.
    elsewhere = graph.precision == "int8" and manifest.backend != "tensorrt"
    yield found("TensorRT operators", _operators(view), remark=elsewhere)
    if newer := tuple(_newer(view)):
        yield found("TensorRT operators", newer, remark=True)


def _content(path: Path, graph: Graph) -> Iterator[str]:
    """One file, and nothing in it but known operators: as when the bundle is opened."""
    try:
        check_graph(path, graph.file)
    except DataError as error:
        yield error.message


def _checker(path: Path) -> Iterator[str]:
    try:
        import onnx
    except ImportError as error:
        raise MissingExtra("onnx", extra="agent") from error
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        yield str(error).strip().splitlines()[0]


def _interface(graph: Graph, view: GraphView) -> Iterator[str]:
    """Inputs, outputs and dynamic axes are those of the manifest, and every axis has a range that can be."""
    for side, promised, have in (("input", graph.inputs, view.inputs), ("output", graph.outputs, view.outputs)):
        want = {tensor.name: (tensor.dtype, tensor.shape) for tensor in promised}
        for name in sorted(want.keys() | have.keys()):
            if want.get(name) != have.get(name):
                yield f"{side} {name} is {_shown(have.get(name))}, the manifest's is {_shown(want.get(name))}"
    words = {word for tensor in (*graph.inputs, *graph.outputs) for size in tensor.shape for word in _words(size)}
    for word in sorted(words - graph.axes.keys()):
        yield f"axis '{word}' has no range"
    yield from _uses(graph, words)
    for word, axis in graph.axes.items():
        if not 0 <= axis.smallest <= axis.usual <= axis.largest or axis.largest < 1:
            yield f"axis '{word}' ranges from {axis.smallest} over {axis.usual} to {axis.largest}"


def _uses(graph: Graph, words: set[str]) -> Iterator[str]:
    """Every use has a range for every axis, within that of the graph; the last covers them all."""
    for use in graph.uses:
        for word in sorted(words - use.axes.keys()):
            yield f"use '{use.name}': axis '{word}' has no range"
        for word, axis in use.axes.items():
            whole = graph.axes.get(word)
            if whole is None or not whole.smallest <= axis.smallest <= axis.usual <= axis.largest <= whole.largest:
                yield f"use '{use.name}': axis '{word}' ranges from {axis.smallest} to {axis.largest}: not the graph's"
            elif use is graph.uses[-1] and (axis.smallest, axis.largest) != (whole.smallest, whole.largest):
                yield f"use '{use.name}' is the last and does not cover axis '{word}'"


def _words(size: int | str) -> list[str]:
    return [] if isinstance(size, int) else [word.strip() for word in size.split("+")]


def _shown(tensor: tuple[str, tuple[int | str, ...]] | None) -> str:
    return "absent" if tensor is None else f"{tensor[0]}[{', '.join(map(str, tensor[1]))}]"


def _dtypes(path: Path, graph: Graph, schema: int) -> Iterator[str]:
    """The file computes in the dtypes of the manifest, and they fit its precision.

    An older manifest did not count every operator that is counted now.
    """
    histogram = read_dtype_histogram(path)
    if schema < SCHEMA:
        histogram = without_operators(histogram, NOT_COUNTED_BEFORE_SCHEMA_4)
    if histogram != graph.dtype_histogram:
        yield f"computes in {histogram}, the manifest says {graph.dtype_histogram}"
    kinds = matmul_dtypes(histogram)
    if not is_precision(kinds, graph.precision):
        found = ", ".join(sorted(kinds)) or "nothing"
        yield f"its matmuls and convolutions compute in {found}, its precision is {graph.precision}"


def _newer(view: GraphView) -> Iterator[str]:
    """Remarks on operators that a TensorRT between 10.3 and 10.15 may not accept."""
    for domain, opset in view.opsets.items():
        if domain in STANDARD and opset in NEWER_OPSETS:
            yield f"opset {opset}: TensorRT 10.15 reads up to 24, 9.2 up to {OPSETS[-1]}: 10.3 may not read it"
    yield from dict.fromkeys(problem for node in view.nodes for problem in newer_operators(node))


def _operators(view: GraphView) -> Iterator[str]:
    for domain, opset in view.opsets.items():
        if domain in STANDARD and opset not in (*OPSETS, *NEWER_OPSETS):
            yield f"opset {opset}, expected {OPSETS[0]} to {NEWER_OPSETS[-1]}"
    found: Counter[str] = Counter()
    where: dict[str, list[str]] = {}
    for node in view.nodes:
        for problem in parser_problems(node):
            kind = node.node.op_type
            found[kind] += 1
            where.setdefault(kind, []).append(problem)
    for kind, problems in where.items():
        yield from dict.fromkeys(problems[:_SHOWN])
        if found[kind] > _SHOWN and len(set(problems)) > _SHOWN:
            yield f"{kind}: and {found[kind] - _SHOWN} more"
