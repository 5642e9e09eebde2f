"""int8 that finds its way under the limit: drafts are written with ever more in higher precision, until all is well.

Well means twice as close to fp32 as the limit asks, on clips that were not calibrated on: the outputs of each graph by
themselves, and the embedding of the whole chain. A bundle that reaches this is far enough from its limit that another
machine, whose sums have another order, finds it under the limit too. What that machine would keep in higher precision
itself can differ (selection.py; docs/explanation/precision.md).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ...runtime.bundle.graph_records import Graph
from ...runtime.bundle.limits import COSINES
from ..parity.written_graphs import WrittenGraphs
from .draft import Int8Draft
from .selection import STEPS

MARGIN = 0.5  # of the distance from 1 that the limit allows
TARGET = 1.0 - MARGIN * (1.0 - COSINES["int8"])


@dataclass(frozen=True)
class _Attempt:
    steps: Mapping[str, int]  # of STEPS, by graph
    cosines: Mapping[str, float]  # by graph, of its own outputs
    chain: float

    @property
    def worst(self) -> float:
        return min(self.chain, *self.cosines.values())


def write_int8(
    drafts: Mapping[str, Int8Draft],
    others: Mapping[str, Graph],
    folder: Path,
    chain: Callable[[Mapping[str, Graph]], float],
    threads: int | None = None,
    tell: Callable[[float], None] = lambda share: None,
) -> dict[str, Graph]:
    """Write the drafts to ``folder`` with the smallest of STEPS that reaches TARGET; the best one where none does.

    ``others``: the graphs of the part that are not int8, already written. ``chain``: smallest cosine of the embedding
    that the part's graphs make, on the clips that were held out. ``tell``: called with the share of the products of all
    drafts that are measured; never where none has to be. A graph whose own outputs miss the target goes a step on;
    where only the chain misses it, all do.
    """
    written: dict[str, Graph] = {}
    steps, tried = dict.fromkeys(drafts, 0), []
    on_disk: dict[str, int] = {}
    shares = dict.fromkeys(drafts, 0.0)

    def measured(name: str, share: float) -> None:
        shares[name] = share
        tell(sum(shares.values()) / len(shares))

    def write(wanted: Mapping[str, int]) -> None:
        for name, draft in drafts.items():
            if on_disk.get(name) != wanted[name]:
                written[name] = draft.write(wanted[name], folder, functools.partial(measured, name))
                on_disk[name] = wanted[name]

    while True:
        write(steps)
        graphs = WrittenGraphs(folder, {**others, **written}, threads)
        cosines = {name: draft.smallest_cosine(graphs.open(name)) for name, draft in drafts.items()}
        attempt = _Attempt(dict(steps), cosines, chain(graphs.graphs))
        tried.append(attempt)
        behind = [name for name in drafts if cosines[name] < TARGET] or list(drafts)
        behind = [name for name in behind if steps[name] + 1 < len(STEPS)]
        if attempt.worst >= TARGET or not behind:
            break
        steps |= {name: steps[name] + 1 for name in behind}
    best = attempt if attempt.worst >= TARGET else max(tried, key=lambda each: each.worst)
    write(best.steps)
    return {name: _with_cosine(graph, min(best.cosines[name], best.chain)) for name, graph in written.items()}


def _with_cosine(graph: Graph, cosine: float) -> Graph:
    if graph.int8 is None:
        return graph
    record = msgspec.structs.replace(graph.int8, held_out_cosine=round(cosine, 6))
    return msgspec.structs.replace(graph, int8=record)
