"""A graph that will be int8: its file in fp32 or half precision, what calibration found, and the writing of it.

The same draft is written several times, with more or less of it in int8, until trial.py is content.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ...base.errors import InvariantError
from ...runtime.backends.bf16_emulation import emulate_bf16
from ...runtime.backends.session import Session
from ...runtime.bundle.graph_records import WITH_INT8_WEIGHTS, Graph, Int8Arithmetic
from ..graphs.export import check_and_save
from ..profiling.arithmetic import node_operations
from .dtypes import MATMUL_DTYPE, MATMULS, read_dtype_histogram
from .int8 import Int8Form, quantise_static, quantise_weights, watched_channels
from .products import Product, find_products, gemms_to_matmuls
from .ranges import Feeds, Seen, observe
from .selection import STEPS, kept_products
from .sensitivity import SwitchedGraph, product_costs, smallest_cosine

MEASURED_FEEDS = 2  # on which the cost of each product is measured
# Calibration is bounded by the number of its clips, which is the same on every machine. On one so slow that this takes
# longer, it ends here, with so many of a graph's feeds at least. Only then does a clock decide scales; a note says so.
CALIBRATION_S, LEAST_FEEDS = 600.0, 8
OPSET_HALF_PAIRS = 19  # the first in which QuantizeLinear and DequantizeLinear take float16
_EMULATED = "_exact"  # suffix of a value before emulate_bf16 rounds it


@dataclass(frozen=True, eq=False)
class Calibrated:
    """Material of a draft: feeds, and the outputs of fp32 that the written graph is compared with."""

    feeds: Sequence[Feeds]
    held_out: Sequence[Feeds]  # of clips that are not among those of ``feeds``
    expected: Sequence[Mapping[str, npt.NDArray[Any]]]  # fp32's outputs for ``held_out``
    held_out_clips: int  # from which ``held_out`` and the chain's comparison come


@dataclass(frozen=True)
class Int8Settings:
    """The settings that turn a graph into int8."""

    form: Int8Form
    static: bool  # with scales of their own for activations; otherwise the weights of matmuls alone
    threads: int | None = None


@dataclass(frozen=True)
class ProductKind:
    """The products of a graph that can be int8."""

    static: bool  # with scales of their own for activations; otherwise the weights of matmuls alone
    first: bool = False  # with the convolution of the pixels

    def find(self, model: Any) -> tuple[Product, ...]:
        return find_products(model, ("MatMul", "Conv") if self.static else ("MatMul",), first=self.first)


@dataclass(eq=False)
class Int8Draft:
    """A graph and all that decides its int8."""

    graph: Graph  # of ``path``
    path: Path  # the graph in fp32 or half precision, without Gemm nodes
    settings: Int8Settings
    calibrated: Calibrated
    seen: Mapping[str, Seen]
    kind: ProductKind
    costs: Mapping[str, float] = field(default_factory=dict)
    unseen: int = 0  # calibration feeds that there was no time for

    @property
    def notes(self) -> tuple[str, ...]:
        if not self.unseen:
            return ()
        total = len(self.calibrated.feeds)
        return (
            f"{self.path.stem}: calibration ended after {CALIBRATION_S / 60:.0f} minutes, with {total - self.unseen} "
            f"of {total} inputs; its int8 scales and biases depend on this machine's speed",
        )

    def write(self, step: int, folder: Path, tell: Callable[[float], None] = lambda share: None) -> Graph:
        """Write the graph with as much in higher precision as STEPS allows at ``step``; the cosine is not in it yet.

        ``tell``: called with the share of the products that are measured, once for each draft that needs it.
        Raises InvariantError when the file computes in something else.
        """
        import onnx

        model = onnx.load(str(self.path))
        products = self.kind.find(model)
        work, names = _work(self.path, self.graph), _weighted(model)
        weighted = {name: count for name, count in work.items() if name in names}
        if STEPS[step] and not self.costs:
            self.costs = self._measure(products, tell)
        order = [product.name for product in products]
        kept = kept_products(STEPS[step], order, weighted, self.costs) if STEPS[step] else ()
        if self.kind.static:
            changed, kind = quantise_static(model, self.seen, self.settings.form, kept, first=self.kind.first), "int8"
        else:
            means = {name: value.mean for name, value in self.seen.items() if value.mean is not None}
            changed, kind = quantise_weights(model, means, kept), MATMUL_DTYPE["fp32"] + WITH_INT8_WEIGHTS
        path = folder / self.graph.file
        check_and_save(model, path)
        histogram = read_dtype_histogram(path)
        found = sum(count for operator, count in histogram.get(kind, {}).items() if operator in MATMULS)
        if found != changed or not found:
            raise InvariantError(f"graph '{path.stem}': {found} of {changed} matmuls and convolutions are {kind}")
        int8 = sum(weighted[name] for name in order if name not in kept)
        record = Int8Arithmetic(
            kept=kept,
            share=round(int8 / max(sum(weighted.values()), 1), 4),
            share_of_all=round(int8 / max(sum(work.values()), 1), 4),
            multiply_adds=sum(work.values()),
            held_out_cosine=-1.0,
            held_out_clips=self.calibrated.held_out_clips,
        )
        opset = model.opset_import[0].version
        return msgspec.structs.replace(
            self.graph, opset=opset, precision="int8", dtype_histogram=histogram, int8=record
        )

    def smallest_cosine(self, session: Session) -> float:
        """The smallest cosine to fp32 of a row of any output, on the clips that were held out."""
        smallest = 1.0
        for feeds, expected in zip(self.calibrated.held_out, self.calibrated.expected, strict=True):
            wanted = [name for name, values in expected.items() if values.dtype.kind == "f"]
            got = session.run({name: feeds[name] for name in session.inputs}, wanted)
            smallest = min(smallest, *(smallest_cosine(got[name], expected[name]) for name in wanted))
        return smallest

    def _measure(self, products: Sequence[Product], tell: Callable[[float], None]) -> dict[str, float]:
        """The cost of each product alone (sensitivity.py)."""
        model = runnable(self.path, self.graph)
        mine = self.kind.find(model)
        feeds = [first_row(feed) for feed in spread(self.calibrated.feeds, MEASURED_FEEDS)]
        switched = SwitchedGraph(model, mine, self.seen, values_too=self.kind.static)
        costs = product_costs(switched, feeds, threads=self.settings.threads, tell=tell)
        bare = {name.removesuffix(_EMULATED): cost for name, cost in costs.items()}
        return {product.name: bare[product.name] for product in products}


def draft_int8(
    graph: Graph,
    path: Path,
    calibrated: Calibrated,
    settings: Int8Settings,
    *,
    tell: Callable[[float], None],
    clock: Callable[[], float] = time.monotonic,
) -> Int8Draft:
    """Make the draft of the graph in ``path``, whose values are observed on the calibration feeds.

    ``tell``: called with the share of the feeds that are observed. ``clock``: seconds; after CALIBRATION_S no further
    feeds are.
    Raises DataError as ``observe`` does.
    """
    import onnx

    model = onnx.load(str(path))
    gemms_to_matmuls(model)
    if any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer):
        model.opset_import[0].version = max(model.opset_import[0].version, OPSET_HALF_PAIRS)
    check_and_save(model, path)
    form, kind = settings.form, ProductKind(settings.static, settings.static and _is_much(path, graph, model))
    if settings.static:
        channels = watched_channels(model, form, first=kind.first)
    else:
        channels = {each.source: each.source_axis for each in kind.find(model)}
    count = [0]

    def observed() -> None:
        count[0] += 1
        tell(count[0] / len(calibrated.feeds))

    ends = clock() + CALIBRATION_S
    feeds = itertools.takewhile(lambda _: count[0] < LEAST_FEEDS or clock() < ends, calibrated.feeds)
    seen = observe(
        runnable(path, graph), channels, feeds, symmetric=form.symmetric, threads=settings.threads, seen=observed
    )
    unseen = len(calibrated.feeds) - count[0]
    return Int8Draft(graph, path, settings, calibrated, seen, kind, unseen=unseen)


def _work(path: Path, graph: Graph) -> dict[str, int]:
    """Multiply-adds of every matmul and convolution, at the usual sizes and a batch of one."""
    import onnx

    sizes = {word: axis.usual for word, axis in graph.axes.items()} | {"batch": 1}
    counted = node_operations(onnx.load(str(path)), sizes)
    return {name: int((operations or 0.0) / 2) for name, operations in counted.items()}


def _weighted(model: Any) -> set[str]:
    """Results of the matmuls and convolutions of ``model`` with a constant weight."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return {node.output[0] for node in model.graph.node if node.op_type in MATMULS and node.input[1] in constants}


def _is_much(path: Path, graph: Graph, model: Any) -> bool:
    """True where the convolution of the pixels is more of the arithmetic than may stay in higher precision at all."""
    work, weighted = _work(path, graph), _weighted(model)
    usual, whole = ({each.name for each in find_products(model, first=first)} for first in (False, True))
    return sum(work[name] for name in whole - usual) > STEPS[-1] * sum(work[name] for name in weighted)


def runnable(path: Path, graph: Graph) -> Any:
    """The graph as an ``onnx.ModelProto`` that ONNX Runtime's CPU provider computes: bf16 is emulated."""
    import onnx

    half = "bfloat16" in graph.dtype_histogram or any(tensor.dtype == "bfloat16" for tensor in graph.outputs)
    return onnx.load_from_string(emulate_bf16(path)) if half else onnx.load(str(path))


def first_row(feed: Feeds) -> Feeds:
    """The first clip or frame of a feed."""
    return {name: array[:1] for name, array in feed.items()}


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` of ``items``, evenly spread."""
    chosen = np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)) if items else ()
    return [items[index] for index in chosen]
