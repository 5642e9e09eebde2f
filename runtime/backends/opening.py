"""Open a bundle's graphs, each on the first backend candidate that works, and record where each one runs and why."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...base.errors import FlamestError, SettingsError
from ...base.files import printable_path
from ..bundle.graph_records import precision_label
from ..bundle.manifest import Manifest
from ..bundle.opening import Bundle
from .machine import MachineFacts, gather_facts
from .onnxruntime_cpu import open_session
from .options import DEFAULT_OPTIONS, BackendOptions
from .ranking import CANDIDATE_TITLES, Candidate, CandidateKind, rank_backends
from .session import Session
from .unavailable import BackendUnavailable, Code

if TYPE_CHECKING:
    from .tensorrt.loader import TensorRtOpener


@dataclass(frozen=True)
class GraphPlacement:
    """Backend and precision of one opened graph."""

    graph: str
    backend: str  # of options.BACKENDS
    where: str  # as the session reports it: "OpenVINO CPU bf16"
    precision: str  # its matmuls' type
    skipped: tuple[tuple[CandidateKind, BackendUnavailable], ...]  # candidates that ranked higher, best first
    verdict: str = ""  # on a TensorRT engine, when it was compared with its ONNX graph

    def as_json(self) -> dict[str, Any]:
        verdict = {"verdict": self.verdict} if self.verdict else {}
        return {
            **verdict,
            "backend": self.backend,
            "where": self.where,
            "precision": self.precision,
            "refused": [unavailable_row(kind, reason) for kind, reason in self.skipped],
        }


@dataclass(frozen=True)
class OpeningOptions:
    """Options, cores and facts for opening graphs. ``facts``: None asks this machine."""

    backend_options: BackendOptions = DEFAULT_OPTIONS
    threads: int | None = None  # cores for one run of a graph on the CPU; None: all that this process may use
    facts: MachineFacts | None = None
    notice: Callable[[str], None] = lambda _: None  # called before work that takes minutes
    stop: Callable[[], bool] = lambda: False  # asked while the bundle is read: Stopped when it returns True


class GraphOpener:
    """Opens the graphs of one checked bundle; ``placements`` grows with each."""

    def __init__(self, bundle: Bundle, opening: OpeningOptions) -> None:
        self._bundle = bundle
        self._opening = opening
        self._facts = machine_facts() if opening.facts is None else opening.facts
        self.placements: dict[str, GraphPlacement] = {}
        self._tensorrt: TensorRtOpener | None = None
        self._on_gpu: list[Any] = []  # sessions that hold memory of a GPU

    def close(self) -> None:
        """Give back what the opened graphs hold on a GPU. Values that were computed stay valid."""
        while self._on_gpu:
            self._on_gpu.pop().close()

    def open(self, name: str) -> Session:
        """Open the graph on the first candidate that works.

        Raises SettingsError ``no_backend`` with every reason when none does, DataError ``bad_graph`` for a
        graph that ONNX Runtime, the last candidate, cannot open.
        """
        graph = self._bundle.manifest.graphs[name]
        skipped: list[tuple[CandidateKind, BackendUnavailable]] = []
        for candidate in rank_backends(name, graph, self._facts, self._opening.backend_options):
            if candidate.unavailable is not None:
                skipped.append((candidate.kind, candidate.unavailable))
                continue
            try:
                session = self._open_on(candidate, name)
            except FlamestError as error:
                if error.code not in Code.__members__:
                    raise
                skipped.append((candidate.kind, BackendUnavailable.of(error)))
                continue
            if not session.computes_on_host:
                self._on_gpu.append(session)
            precision = precision_of(self._bundle.manifest, name, self._opening.backend_options)
            self.placements[name] = GraphPlacement(
                name, candidate.backend, session.where, precision, tuple(skipped), self._verdict(candidate, name)
            )
            return session
        raise no_backend_error(name, self._opening.backend_options, skipped)

    def _verdict(self, candidate: Candidate, name: str) -> str:
        verdicts = {} if self._tensorrt is None else self._tensorrt.verdicts
        return str(verdicts[name]) if candidate.backend == "tensorrt" and name in verdicts else ""

    def _open_on(self, candidate: Candidate, name: str) -> Session:
        if candidate.backend == "tensorrt":
            return self._open_tensorrt(candidate, name)
        manifest, threads = self._bundle.manifest, self._opening.threads
        shown = printable_path(self._bundle.graph(name))
        with self._bundle.private_graph(name) as onnx:
            if candidate.kind == "onnxruntime":
                return open_session(onnx, threads=threads, shown=shown)
            if candidate.kind == "openvino":
                from .openvino_cpu import OpenVinoSession

                bf16 = precision_of(manifest, name, self._opening.backend_options) == "bf16"
                return OpenVinoSession.open(onnx, computed="bf16" if bf16 else "f32", threads=threads, shown=shown)
            from .onnxruntime_cuda import OrtCudaSession
            from .tensorrt.supply import local_build_options

            gpu, tf32 = self._facts.gpu.name if self._facts.gpu else "GPU", local_build_options(manifest, name).tf32
            return OrtCudaSession.open(onnx, gpu=gpu, device=self._facts.device, tf32=tf32, shown=shown)

    def _open_tensorrt(self, candidate: Candidate, name: str) -> Session:
        from .tensorrt.loader import TensorRtOpener

        if self._tensorrt is None:
            self._tensorrt = TensorRtOpener(self._bundle, self._facts, self._opening.notice)
        if candidate.engine is not None:
            return self._tensorrt.open_bundled(name, candidate.engine)
        return self._tensorrt.open_built(name)


@functools.cache
def machine_facts() -> MachineFacts:
    """This machine's facts, gathered once per process."""
    return gather_facts()


def precision_of(manifest: Manifest, name: str, backend_options: BackendOptions) -> str:
    """Type of the graph's matmuls under these options."""
    precision = manifest.graphs[name].precision
    return "bf16" if precision == "fp32" and backend_options.bf16_of(name) else precision


def effective_precision(manifest: Manifest, backend_options: BackendOptions) -> str:
    """The precision label of stored features: the manifest's, unless a backend lowers it when it compiles."""
    of = {name: precision_of(manifest, name, backend_options) for name in manifest.needed_graphs if name != "keyframes"}
    return precision_label(of)


def no_backend_error(
    name: str, backend_options: BackendOptions, skipped: list[tuple[CandidateKind, BackendUnavailable]]
) -> SettingsError:
    """One error with all candidates that were tried and their reasons."""
    lines = [f"  {CANDIDATE_TITLES[kind]}: {reason}" for kind, reason in skipped]
    asked = backend_options.backend_of(name)
    what = (
        f"graph '{name}' does not run on {asked}, which is required" if backend_options.require else f"graph '{name}'"
    )
    head = what if backend_options.require else f"{what} runs on no backend of this machine (--backend {asked})"
    fixes = dict.fromkeys(reason.fix for _, reason in skipped)
    return SettingsError("\n".join((f"{head}:", *lines)), fix="; or: ".join(fixes), code="no_backend")


def unavailable_row(kind: CandidateKind, reason: BackendUnavailable) -> dict[str, str]:
    """One unavailable candidate for ``--json``."""
    return {"rung": kind, "code": reason.code.value, "evidence": reason.evidence, "fix": reason.fix}
