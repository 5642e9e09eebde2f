"""Choice of each graph's precision from ``--precision``, with notes on everything that differs from the request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from ...base.errors import UsageError
from ...runtime.bundle.graph_records import Precision
from ..networks.extractors import ExtractorEntry

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
_EXAMPLE = "flamest-export --backend onnx --precision int8 --precision text=fp32 --out DIR"
BF16_MAJOR = 8  # of the compute capability with which bf16 begins
_TEXTS = ("text", "words")
_IMAGE_ENCODERS = ("vision", "clip")  # fp16 in them is measured first (overflow.py)


@dataclass(frozen=True)
class PrecisionChoice:
    """Precision of each graph.

    ``notes``: decisions that the options alone do not show. They are printed: no precision changes silently.
    """

    by_graph: Mapping[str, Precision]  # of the graphs that make embeddings
    notes: tuple[str, ...] = ()
    rest: Precision = "fp32"  # of what is not int8 in an int8 graph
    by_default: bool = False  # nobody asked for it: a graph that misses its limit is fp32 instead
    named: frozenset[str] = frozenset()  # graphs that were asked for by name
    instead_of_fp16: Precision = "fp32"  # in an image encoder whose values leave fp16's range
    encoder: str = ""  # the graph of an encoder of the exporter's own; empty without one

    def of(self, graph: str) -> Precision:
        return self.by_graph.get(graph, "fp32")

    def with_graphs(self, changed: Mapping[str, Precision]) -> PrecisionChoice:
        return replace(self, by_graph={**self.by_graph, **changed})

    @property
    def uncertain(self) -> tuple[str, ...]:
        """Graphs in fp16 whose values have to be measured first."""
        return tuple(graph for graph in (*_IMAGE_ENCODERS, self.encoder) if self.of(graph) == "fp16")


FP32 = PrecisionChoice({})


def embedding_graphs(entry: ExtractorEntry) -> tuple[str, ...]:
    """The graphs of an extractor but ``keyframes``."""
    vlm = {None: (), "clip": ("clip",), "blip": ("vision", "text"), "blip-text": ("vision", "text", "words")}[entry.vlm]
    own = () if entry.encoder is None else (entry.encoder_graph,)
    return (*vlm, *(() if entry.network is None else ("cnn",)), *own)


def choose_precision(
    words: Sequence[str], entry: ExtractorEntry, backend: str, capability: str = ""
) -> PrecisionChoice:
    """Choose the precision of each graph.

    ``words``: as given with ``--precision``, ``int8`` for all graphs or ``vision=bf16`` for one.

    Without ``words`` all are fp32 with ``backend`` onnx, and in the GPU's half precision with tensorrt.

    ``capability``: the compute capability ("7.5") of the GPU that the TensorRT engines are for; empty when not known.

    Raises UsageError for a word that names no precision or no graph of the extractor, or a graph twice.
    """
    graphs = embedding_graphs(entry)
    for_all, by_name = _read(words, graphs)
    half, notes = _half(backend, capability), []
    by_default = not words and backend == "tensorrt"
    if by_default:
        for_all = half
        notes.append(f"precision {half}, the default of --backend tensorrt. {_bf16_note(half, capability)}")
    chosen: dict[str, Precision] = {graph: by_name.get(graph, for_all or "fp32") for graph in graphs}
    if "int8" in chosen.values() and backend == "tensorrt":
        texts = [graph for graph in _TEXTS if chosen.get(graph) == "int8"]
        chosen |= dict.fromkeys(texts, half)
        if texts:
            notes.append(
                f"{', '.join(texts)} in {half}: TensorRT computes no matmuls of which the weights alone are int8. "
                f"{_bf16_note(half, capability)}"
            )
    bf16 = [graph for graph, precision in chosen.items() if precision == "bf16"]
    if bf16 and backend == "onnx":
        notes.append(
            f"{', '.join(bf16)} in bf16: OpenVINO and TensorRT open such graphs, ONNX Runtime on a CPU does not. "
            "Silos that have ONNX Runtime alone need fp32 or int8; OpenVINO can also compute an fp32 bundle in bf16"
        )
    return PrecisionChoice(
        chosen,
        tuple(notes),
        rest=half if backend == "tensorrt" else "fp32",
        by_default=by_default,
        named=frozenset(by_name),
        instead_of_fp16="bf16" if half == "bf16" else "fp32",
        encoder=entry.encoder_graph if entry.encoder is not None else "",
    )


def _half(backend: str, capability: str) -> Precision:
    """The half precision of the GPU: bf16, whose range is fp32's, where it has that; bf16 where it is not known."""
    if backend != "tensorrt":
        return "fp32"
    return "bf16" if not capability or int(capability.partition(".")[0]) >= BF16_MAJOR else "fp16"


def _bf16_note(half: Precision, capability: str) -> str:
    begins = f"bf16 needs a GPU of compute capability {BF16_MAJOR}.0 or more (Ampere)"
    if capability:
        return f"{begins}, this one has {capability}"
    return f"{begins}; for an older one: --precision fp16"


def _read(words: Sequence[str], graphs: Sequence[str]) -> tuple[Precision | None, dict[str, Precision]]:
    for_all: Precision | None = None
    by_name: dict[str, Precision] = {}
    for word in words:
        graph, equals, name = word.rpartition("=")
        precision = next((known for known in PRECISIONS if known == name), None)
        if precision is None:
            known = ", ".join(PRECISIONS)
            raise UsageError(f"--precision {word}: no such precision, expected one of {known}", fix=_EXAMPLE)
        if not equals:
            if for_all is not None:
                raise UsageError(f"--precision {word}: {for_all} is given for all graphs already", fix=_EXAMPLE)
            for_all = precision
            continue
        if graph == "keyframes":
            raise UsageError(
                f"--precision {word}: the keyframe graph stays fp32, it decides which frames are seen", fix=_EXAMPLE
            )
        if graph not in graphs:
            raise UsageError(
                f"--precision {word}: the extractor has no such graph, expected one of {', '.join(graphs)}",
                fix=_EXAMPLE,
            )
        if graph in by_name:
            raise UsageError(f"--precision {word}: {graph}={by_name[graph]} is given already", fix=_EXAMPLE)
        by_name[graph] = precision
    return for_all, by_name
