"""The backend candidates on this machine as text and for ``--json``: the output of ``doctor``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import groupby
from typing import Any

from ..bundle.graph_records import Graph
from ..bundle.manifest import Manifest
from .machine import Gpu, MachineFacts
from .options import AUTO, BackendOptions
from .ranking import CANDIDATE_TITLES, Candidate, rank_backends

ANY_GRAPH = "an fp32 graph without engines"
_PLAIN = Graph("", 18, (), (), {}, "fp32", {})


def machine_row(facts: MachineFacts) -> dict[str, Any]:
    """The facts for ``--json``."""
    return asdict(facts)


def rank_graphs(
    facts: MachineFacts, manifest: Manifest | None, backend_options: BackendOptions
) -> dict[str, tuple[Candidate, ...]]:
    """Candidates by graph; without a bundle those of ANY_GRAPH."""
    if manifest is None:
        return {ANY_GRAPH: rank_backends("cnn", _PLAIN, facts, backend_options)}
    return {name: rank_backends(name, manifest.graphs[name], facts, backend_options) for name in manifest.needed_graphs}


def candidate_rows(candidates: Mapping[str, tuple[Candidate, ...]]) -> dict[str, list[dict[str, Any]]]:
    """Candidates for ``--json``, {graph: [{rung, backend, ok, code, evidence, fix}]}; the first ok one is opened."""
    return {name: [_row(candidate) for candidate in of] for name, of in candidates.items()}


def _row(candidate: Candidate) -> dict[str, Any]:
    row: dict[str, Any] = {"rung": candidate.kind, "backend": candidate.backend, "ok": candidate.unavailable is None}
    if candidate.unavailable is not None:
        row |= {
            "code": candidate.unavailable.code.value,
            "evidence": candidate.unavailable.evidence,
            "fix": candidate.unavailable.fix,
        }
    return row


def machine_lines(facts: MachineFacts) -> list[str]:
    if facts.gpu is not None:
        driver = f"driver {facts.driver}, " if facts.driver else ""
        free = "" if facts.gpu.free_mb is None else f", {facts.gpu.free_mb} MB of it free"
        gpu = f"{facts.gpu.name}, compute capability {facts.gpu.compute_capability}, {facts.gpu.memory_mb} MB{free}"
        gpu += f" ({driver}CUDA up to {facts.cuda})"
        if len(facts.gpus) > 1:
            listed = ", ".join(f"{number} {_memory(one)}" for number, one in enumerate(facts.gpus))
            gpu += f"; number {facts.device} of {len(facts.gpus)}: {listed}"
    else:
        gpu = f"none to use: {facts.driver_problem}"
    packages = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    return [
        f"NVIDIA GPU: {gpu}",
        f"processor: {'computes bf16' if facts.bf16 else 'has no bf16'}",
        f"runtimes installed: {packages or 'none'}",
    ]


def _memory(gpu: Gpu) -> str:
    free = "" if gpu.free_mb is None else f", {gpu.free_mb} MB free"
    return f"{gpu.name} ({gpu.memory_mb} MB{free})"


def candidate_lines(candidates: Mapping[str, tuple[Candidate, ...]]) -> list[str]:
    """Lines for people; graphs with the same candidates share them."""
    together: dict[tuple[str, ...], list[str]] = {}
    for name, of in candidates.items():
        together.setdefault(tuple(_candidate_lines(of)), []).append(name)
    return [line for lines, names in together.items() for line in (f"{', '.join(names)}:", *lines)]


def _candidate_lines(candidates: tuple[Candidate, ...]) -> Iterator[str]:
    """Neighbours with one reason share it. A fix is optional where another candidate is available."""
    label = "optional" if any(candidate.unavailable is None for candidate in candidates) else "fix"
    for reason, same in groupby(candidates, key=lambda candidate: candidate.unavailable):
        kinds = [CANDIDATE_TITLES[candidate.kind] for candidate in same]
        if reason is None:
            yield from (f"  ok  {title}" for title in kinds)
        else:
            yield from (f"  no  {title}" for title in kinds)
            yield f"        {reason}"
            yield f"        {label}: {reason.fix}"


def placement_lines(candidates: Mapping[str, tuple[Candidate, ...]], backend_options: BackendOptions) -> list[str]:
    """Lines that name the backend of each graph."""
    asked = "" if backend_options.backend == AUTO else f" (--backend {backend_options.backend})"
    together: dict[str, list[str]] = {}
    for name, of in candidates.items():
        kind = next((candidate.kind for candidate in of if candidate.unavailable is None), None)
        together.setdefault(CANDIDATE_TITLES[kind] if kind else "no backend of this machine", []).append(name)
    return [f"{', '.join(names)} would run on {title}{asked}" for title, names in together.items()]
