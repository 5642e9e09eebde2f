"""The proof of an export: the written graphs compute the same as the reference libraries.

The references are the libraries' networks as they are, not the modules that were exported; the graphs
run through the runtime's own session and decoder. The limits are those of ``runtime/bundle/limits.py``. blip.py and
single_graphs.py make the comparisons, chain.py compares whole chains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...base.errors import DataError, InvariantError
from ...runtime.bundle.graph_records import GraphParity
from ...runtime.bundle.limits import COSINES, RELATIVE
from ...runtime.similarity import row_cosines
from ..precision.calibration import seeded_frames
from .written_graphs import WrittenGraphs

BATCHES = (1, 3)
SEED = 20_260_101  # of the frames compared: not those that random weights were measured on

Arrays = Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Comparison:
    """One run of one graph: its outputs and the reference's, by name."""

    graph: str
    batch: int
    got: Arrays
    expected: Arrays


@dataclass(frozen=True)
class PartParity:
    """Figures of one part of a bundle; captions are counted where it makes or retrieves some."""

    graphs: dict[str, GraphParity]
    captions: int = 0  # compared with PyTorch's
    captions_equal: int = 0


def pictures(count: int, size: int) -> npt.NDArray[np.uint8]:
    """Seeded frames: uint8 [count, size, size, 3]."""
    return seeded_frames(SEED, clips=count, frames=1, size=size)[:, 0]


def summarise(written: WrittenGraphs, graph: str, runs: list[Comparison]) -> GraphParity:
    """The largest differences of ``graph`` over ``runs``; raises DataError (``parity_failed``) beyond the
    limit of its precision."""
    precision = written.compared_as(graph)
    mine = [run for run in runs if run.graph == graph]
    if not mine:
        raise InvariantError(f"graph '{graph}' was never compared with PyTorch")
    max_abs = max_rel = 0.0
    min_cosine = 1.0
    for run in mine:
        for name, expected in run.expected.items():
            largest = float(np.abs(expected).max())
            if largest == 0.0:
                raise _failed(
                    f"graph '{graph}', output {name}: the reference output is zero and proves nothing",
                    "export weights that are set",
                )
            difference = float(np.abs(run.got[name] - expected).max())
            relative = difference / largest
            cosine = float(row_cosines(run.got[name], expected).min())
            if precision == "fp32":
                if not relative <= RELATIVE:  # a NaN fails too
                    raise _failed(
                        f"graph '{graph}', output {name}, batch {run.batch}: relative error {relative:.2e} "
                        f"against PyTorch, expected at most {RELATIVE:.0e}",
                        "report this with the versions that flamest-export doctor prints",
                    )
            elif not cosine >= COSINES[precision]:
                raise _failed(
                    f"graph '{graph}' in {precision}, output {name}, batch {run.batch}: cosine {cosine:.5f} to "
                    f"PyTorch's fp32, expected at least {COSINES[precision]}",
                    f"choose another precision for it: --precision {graph}=fp32",
                )
            max_abs, max_rel = max(max_abs, difference), max(max_rel, relative)
            min_cosine = min(min_cosine, cosine)
    return GraphParity(
        max_abs=max_abs, max_rel=max_rel, min_cosine=min_cosine, batches=BATCHES, ran_on=written.ran_on(graph)
    )


def _failed(message: str, fix: str) -> DataError:
    return DataError(message, fix=fix, code="parity_failed")
