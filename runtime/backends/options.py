"""Backend options: ``--backend``, ``--require-backend``, ``--precision``, and their keys in agent.toml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from ...base.errors import UsageError

Backend = Literal["tensorrt", "onnxruntime-cuda", "openvino", "onnxruntime"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)  # best first
AUTO = "auto"
GRAPHS = ("keyframes", "vision", "text", "words", "clip", "cnn", "cnn2")
EXAMPLE = "--backend openvino --backend text=onnxruntime"


@dataclass(frozen=True)
class BackendOptions:
    """Requested backends and precision. The default requests nothing: the ranking decides."""

    backend: str = AUTO  # of BACKENDS, or AUTO; for graphs that are not in by_graph
    by_graph: Mapping[str, str] = field(default_factory=dict)
    require: bool = False  # any other backend is an error
    bf16: bool = False  # compute float32 graphs in bf16; all but keyframes, which decides which frames are seen
    autotune: bool = False  # a measurement decides (runtime/autotune/selection.py); no backend is requested

    def backend_of(self, graph: str) -> str:
        return self.by_graph.get(graph, self.backend)

    def bf16_of(self, graph: str) -> bool:
        return self.bf16 and graph != "keyframes"


DEFAULT_OPTIONS = BackendOptions()


def parse_backend_options(
    words: Sequence[str], *, require: bool = False, precision: str | None = None
) -> BackendOptions:
    """From ``openvino`` and ``text=onnxruntime`` (each word may hold several, with commas).

    ``precision``: None for that of the bundle, ``bf16``, or ``auto``: the fastest. Raises UsageError.
    """
    everywhere, by_graph = AUTO, dict[str, str]()
    for word in (part.strip() for text in words for part in text.split(",")):
        graph, equals, backend = word.rpartition("=")
        if backend not in (AUTO, *BACKENDS):
            raise UsageError(
                f"--backend {word}: no such backend, expected one of {', '.join((AUTO, *BACKENDS))}",
                fix=f"for one graph alone: {EXAMPLE}",
            )
        if equals and graph not in GRAPHS:
            raise UsageError(f"--backend {word}: no such graph, expected one of {', '.join(GRAPHS)}", fix=EXAMPLE)
        if equals:
            by_graph[graph] = backend
        else:
            everywhere = backend
    if precision not in (None, "bf16", "auto"):
        raise UsageError(
            f"--precision {precision}: expected bf16 (OpenVINO computes an fp32 bundle in it) or auto",
            fix="other precisions are made at export: flamest-export --backend onnx --precision int8 --out DIR",
        )
    if precision == "auto" and {everywhere, *by_graph.values()} != {AUTO}:
        raise UsageError(
            "--precision auto also chooses the backend: expected no --backend",
            fix="leave out one of the two",
        )
    backend_options = BackendOptions(everywhere, by_graph, require, precision == "bf16", precision == "auto")
    if require and AUTO in (everywhere, *by_graph.values()):
        raise UsageError(
            "--require-backend: expected a backend to require, none is named",
            fix=f"add one of {', '.join(f'--backend {name}' for name in BACKENDS)}",
        )
    return backend_options
