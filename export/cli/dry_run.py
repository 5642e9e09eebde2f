"""``flamest-export --dry-run``: what would be built, from which sources, with which resources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .output import show_notes

if TYPE_CHECKING:
    from ..bundle import ExportRequest
    from ..dry_run import Estimate
    from ..engines import RequestedEngines
    from ..networks.extractors import ExtractorEntry


def dry_run(request: ExportRequest, engines: RequestedEngines | None, *, as_json: bool) -> dict[str, Any]:
    from ..dry_run import estimate
    from ..networks.reference import quiet_libraries

    entry, choice = request.extractor, request.precision
    with quiet_libraries():
        found = estimate(entry, request.sources, request.out, choice.by_graph)
    problems = [] if engines is None else [str(problem) for problem in engines.problems]
    if not as_json:
        show_notes(choice.notes)
        show_estimate(entry, found, _engines_line(engines, problems))
    return {
        "dry_run": True,
        "extractor": entry.name,
        "graphs": {
            graph.name: {"precision": graph.precision, "values": graph.values, "bytes": graph.bytes}
            for graph in found.graphs
        },
        "sources": {
            source.network: {
                "name": source.name,
                "revision": source.revision,
                "licence": source.licence,
                "here": source.here,
                "download_bytes": source.download_bytes,
            }
            for source in found.sources
        },
        "bundle_bytes": found.bundle_bytes,
        "memory_bytes": found.memory_bytes,
        "download_bytes": found.download_bytes,
        "free_bytes": found.free_bytes,
        "notes": list(choice.notes),
        "plans": {"wanted": engines is not None, "problems": problems},
        "warnings": list(found.warnings),
    }


def _engines_line(engines: RequestedEngines | None, problems: list[str]) -> str:
    if engines is None:
        return "engines: none"
    if problems:
        return f"engines: cannot be built on this machine: {'; '.join(problems)}"
    size = "without weights" if engines.options.strip_weights else "about the graph's size"
    return f"engines: one per graph, {size}, built on this machine"


def show_estimate(entry: ExtractorEntry, found: Estimate, engines: str) -> None:
    print(f"would build: {entry.name} ({entry.title}), about {found.bundle_bytes / 1e6:,.0f} MB")
    for graph in found.graphs:
        print(f"  {graph.name:10} {graph.precision}, {graph.values:,} values, about {graph.bytes / 1e6:,.1f} MB")
    print(f"  {engines}")
    print("from:")
    for source in found.sources:
        fetched = f", about {source.download_bytes / 1e6:,.0f} MB" if source.download_bytes else ""
        revision = f" ({source.revision})" if source.revision else ""
        print(f"  {source.network:10} {source.name}{revision}: {source.here}{fetched}")
        print(f"             licence: {source.licence}")
    print(f"needs: about {found.memory_bytes / 1e9:.1f} GB of memory, {found.bundle_bytes / 1e6:,.0f} MB of disk where")
    print(f"       {found.free_bytes / 1e6:,.0f} MB are free, {found.download_bytes / 1e6:,.0f} MB of downloads")
    for warning in found.warnings:
        print(f"WARNING: {warning}")
    print("nothing was built, fetched or loaded" if entry.encoder is None else "nothing was built")
