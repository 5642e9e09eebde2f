"""What ``flamest-export --dry-run`` says; cli.py has the option."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .output import show_notes

if TYPE_CHECKING:
    from ..dry_run import Estimate
    from ..networks.extractors import ExtractorEntry
    from ..precision.choice import PrecisionChoice
    from .engines import PlansOutlook

DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Say what would be built, of what, how large, with what memory, downloads and plans, and build nothing.",
    ),
]


def dry_run(
    entry: ExtractorEntry,
    sources: Mapping[str, str],
    out: Path | None,
    choice: PrecisionChoice,
    plans: PlansOutlook,
    *,
    as_json: bool,
) -> dict[str, Any]:
    from ..dry_run import estimate
    from ..libraries import quiet_libraries

    with quiet_libraries():
        found = estimate(entry, sources, out or Path(), choice.by_graph)
    if not as_json:
        show_notes(choice.notes)
        show_estimate(entry, found, plans.line)
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
        "plans": {"wanted": plans.wanted, "problems": list(plans.problems)},
        "warnings": list(found.warnings),
    }


def show_estimate(entry: ExtractorEntry, found: Estimate, plans: str) -> None:
    print(f"would build: {entry.name} ({entry.title}), about {found.bundle_bytes / 1e6:,.0f} MB")
    for graph in found.graphs:
        print(f"  {graph.name:10} {graph.precision}, {graph.values:,} values, about {graph.bytes / 1e6:,.1f} MB")
    print(f"  {plans}")
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
    print("nothing was built, fetched or loaded")
