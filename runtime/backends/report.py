"""The ladder on this machine, for people and for ``--json``: what doctor shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import groupby
from typing import Any

from ..bundle.manifest import Manifest
from ..bundle.records import Graph
from .machine import MachineFacts
from .options import AUTO, BackendOptions
from .ranking import TITLES, Candidate, rank_backends

ANY_GRAPH = "an fp32 graph without plans"
_PLAIN = Graph("", 18, (), (), {}, "fp32", {})


def machine_row(facts: MachineFacts) -> dict[str, Any]:
    """The facts for ``--json``."""
    return asdict(facts)


def ladders(facts: MachineFacts, manifest: Manifest | None, wishes: BackendOptions) -> dict[str, tuple[Candidate, ...]]:
    """By graph its rungs; without a bundle those of ANY_GRAPH."""
    if manifest is None:
        return {ANY_GRAPH: rank_backends("cnn", _PLAIN, facts, wishes)}
    return {name: rank_backends(name, manifest.graphs[name], facts, wishes) for name in manifest.needed_graphs}


def ladder_rows(rungs: Mapping[str, tuple[Candidate, ...]]) -> dict[str, list[dict[str, Any]]]:
    """The same for ``--json``: {graph: [{rung, backend, ok, code, evidence, fix}]}; first where ok it is opened."""
    return {name: [_row(rung) for rung in of] for name, of in rungs.items()}


def _row(rung: Candidate) -> dict[str, Any]:
    row: dict[str, Any] = {"rung": rung.kind, "backend": rung.backend, "ok": rung.refusal is None}
    if rung.refusal is not None:
        row |= {"code": rung.refusal.code.value, "evidence": rung.refusal.evidence, "fix": rung.refusal.fix}
    return row


def machine_lines(facts: MachineFacts) -> list[str]:
    if facts.gpu is not None:
        driver = f"driver {facts.driver}, " if facts.driver else ""
        gpu = f"{facts.gpu.name}, compute capability {facts.gpu.compute_capability}, {facts.gpu.memory_mb} MB"
        gpu += f" ({driver}CUDA up to {facts.cuda})"
    else:
        gpu = f"none to use: {facts.driver_problem}"
    packages = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    return [
        f"NVIDIA GPU: {gpu}",
        f"processor: {'computes bf16' if facts.bf16 else 'has no bf16'}",
        f"runtimes installed: {packages or 'none'}",
    ]


def ladder_lines(rungs: Mapping[str, tuple[Candidate, ...]]) -> list[str]:
    """Graphs with the same rungs stand together."""
    together: dict[tuple[str, ...], list[str]] = {}
    for name, of in rungs.items():
        together.setdefault(tuple(_rung_lines(of)), []).append(name)
    return [line for lines, names in together.items() for line in (f"{', '.join(names)}:", *lines)]


def _rung_lines(rungs: tuple[Candidate, ...]) -> Iterator[str]:
    """Neighbours with one reason share it. What would only run it on a better rung is optional."""
    label = "optional" if any(rung.refusal is None for rung in rungs) else "fix"
    for refusal, same in groupby(rungs, key=lambda rung: rung.refusal):
        kinds = [TITLES[rung.kind] for rung in same]
        if refusal is None:
            yield from (f"  ok  {title}" for title in kinds)
        else:
            yield from (f"  no  {title}" for title in kinds)
            yield f"        {refusal}"
            yield f"        {label}: {refusal.fix}"


def first_lines(rungs: Mapping[str, tuple[Candidate, ...]], wishes: BackendOptions) -> list[str]:
    """Where each graph would be opened first."""
    asked = "" if wishes.backend == AUTO else f" (--backend {wishes.backend})"
    together: dict[str, list[str]] = {}
    for name, of in rungs.items():
        kind = next((rung.kind for rung in of if rung.refusal is None), None)
        together.setdefault(TITLES[kind] if kind else "no backend of this machine", []).append(name)
    return [f"{', '.join(names)} would run on {title}{asked}" for title, names in together.items()]
