"""``flamest-export extractors``: the extractors of the paper's Table 1."""

from __future__ import annotations

from typing import Any

from ...base.console import command, say
from ...base.options import JsonOption
from ..networks.extractors import EXTRACTORS, ExtractorEntry, count_networks, count_parameters


@command
def extractors(as_json: JsonOption = False) -> dict[str, Any]:
    """List the extractors with frames, embedding dimension and parameters, next to the paper's figures.

    Parameters are those of the published networks, counted from their architectures; BLIP's word
    embedding and output projection, which are one matrix, count twice, as in the paper.
    """
    from ..networks.reference import quiet_libraries

    with quiet_libraries():
        counts, networks = count_parameters(), count_networks()
    rows = [extractor_row(entry, counts[name]) for name, entry in EXTRACTORS.items()]
    if not as_json:
        show_extractors(rows)
        print(f"BLIP with each stored value once: {networks['blip'].stored:,}")
        print(f"Student of the knowledge distillation (ResNet-18): {networks['resnet18'].parameters:,}")
    return {
        "extractors": rows,
        "networks": {
            name: {"parameters": count.parameters, "stored": count.stored} for name, count in networks.items()
        },
    }


def show_extractors(rows: list[dict[str, Any]]) -> None:
    say(f"{'--extractor':19} {'frames':8} {'dims':>7} {'parameters':>12} {'in the paper':>12}  remarks")
    for row in rows:
        paper = row["paper"]
        printed = f"{paper['parameters']:,}" if paper else "-"
        remarks = "; ".join(paper["slips"]) if paper else "not in the paper: the baseline of k-means frames"
        figures = f"{row['frames']:8} {row['dimension']:7,} {row['parameters']:12,} {printed:>12}"
        say(f"{row['name']:19} {figures}  {remarks}".rstrip())


def extractor_row(entry: ExtractorEntry, parameters: int) -> dict[str, Any]:
    """One extractor as a mapping for ``--json``."""
    paper = entry.paper
    return {
        "name": entry.name,
        "title": entry.title,
        "frames": entry.frames,
        "dimension": entry.dimension,
        "parameters": parameters,
        "paper": None
        if paper is None
        else {
            "row": paper.number,
            "parameters": paper.parameters,
            "dimension": paper.dimension,
            "head_parameters": paper.head_parameters,
            "slips": list(paper.slips),
        },
    }
