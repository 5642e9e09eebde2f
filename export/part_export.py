"""Export of one part of a bundle: its graphs in their precisions, and the comparisons that prove them."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from ..base.errors import DataError
from ..base.progress import Progress
from ..runtime.bundle.graph_records import Graph
from ..runtime.bundle.manifest import Source
from .parity.written_graphs import WrittenGraphs
from .parts import ComparedPart, Part, compare_part, total_parity
from .precision.calibration import CalibrationClips
from .precision.lowering import Lowering, draft_lowered, measure_fp16, write_lowered
from .precision.trial import write_int8

Record = TypeVar("Record")  # of the manifest
INT8_STEPS = 10  # of an export's progress: for the calibration of a graph, and for the measuring of a part's products


@dataclass(frozen=True)
class ExportedPart(Generic[Record]):
    """A part whose graphs are written and compared."""

    record: Record
    sources: Mapping[str, Source]
    graphs: dict[str, Graph]
    compared: ComparedPart


@dataclass(frozen=True)
class ExportContext:
    """The bundle's folder, its progress, and the settings that all parts share."""

    folder: Path
    progress: Progress
    threads: int | None
    lowering: Lowering
    clips: CalibrationClips  # for the comparison of whole chains
    notes: list[str] = dataclasses.field(default_factory=list)  # where a precision is not the one of the options

    def export(self, part: Part[Record]) -> ExportedPart[Record]:
        """Write the graphs of ``part`` in the precisions that were chosen for them, and compare them with PyTorch.

        A part that misses a limit in a precision that nobody asked for is fp32 instead, with a note.
        Raises DataError (``parity_failed``) when a graph is further off than its precision allows.
        """
        context = self._with_measured_fp16(part)
        try:
            return context._export(part)
        except DataError as error:
            half = [spec.name for spec in part.specs if context.lowering.choice.of(spec.name) != "fp32"]
            if error.code != "parity_failed" or not self.lowering.choice.by_default or not half:
                raise
            self.notes.append(f"{', '.join(half)} in fp32 after all: {error.message}")
            self.progress.describe(self.notes[-1])
        choice = self.lowering.choice.with_graphs(dict.fromkeys(half, "fp32"))
        lowering = dataclasses.replace(self.lowering, choice=choice)
        return dataclasses.replace(self, progress=_Described(self.progress), lowering=lowering)._export(part)

    def _with_measured_fp16(self, part: Part[Any]) -> ExportContext:
        """The settings after fp16 was measured in those graphs of ``part`` that it may be too small for."""
        lowering = self.lowering
        for spec in part.specs:
            if spec.name in lowering.choice.uncertain and part.feeds is not None:
                self.progress.describe(f"measure the largest values of graph '{spec.name}'")
                feeds = part.feeds(lowering.clips.calibration, (spec.name,))[spec.name]
                lowering, note = measure_fp16(spec, lowering, feeds)
                self.notes.append(note)
        return dataclasses.replace(self, lowering=lowering)

    def _export(self, part: Part[Record]) -> ExportedPart[Record]:
        int8 = [spec.name for spec in part.specs if self.lowering.choice.of(spec.name) == "int8"]
        graphs: dict[str, Graph] = {}
        for spec in part.specs:
            if spec.name not in int8:
                with phase(self.progress, f"write graph '{spec.name}'"):
                    graphs[spec.name] = write_lowered(spec, self.folder, self.lowering)
        graphs |= self._export_int8(part, graphs, int8)
        graphs = {spec.name: graphs[spec.name] for spec in part.specs}
        with phase(self.progress, f"compare {part.title} with PyTorch"):
            compared = compare_part(part, WrittenGraphs(self.folder, graphs, self.threads), self.clips)
            total_parity([compared])  # the chain's limit too
        return ExportedPart(part.record, part.sources, graphs, compared)

    def _export_int8(self, part: Part[Any], others: Mapping[str, Graph], names: Sequence[str]) -> dict[str, Graph]:
        """Write the graphs ``names`` in int8; ``others``: those of the part that are written."""
        if not names or part.feeds is None:
            return {}
        clips = self.lowering.clips
        with tempfile.TemporaryDirectory() as scratch:
            self.progress.describe(f"read calibration clips for {', '.join(names)}")
            feeds, held_out = part.feeds(clips.calibration, names), part.feeds(clips.held_out, names)
            drafts = {}
            for spec in part.specs:
                if spec.name in names:
                    with portions(self.progress, f"calibrate graph '{spec.name}'", INT8_STEPS) as tell:
                        given = feeds[spec.name], held_out[spec.name]
                        drafts[spec.name] = draft_lowered(spec, Path(scratch), self.lowering, *given, tell)

            def chain(graphs: Mapping[str, Graph]) -> float:
                if part.compare_chain is None:
                    return 1.0
                compared = part.compare_chain(WrittenGraphs(self.folder, graphs, self.threads), clips.held_out)
                return float(np.nan_to_num(compared.cosines.min(), nan=-1.0))

            for draft in drafts.values():
                self.notes.extend(draft.notes)
            with portions(self.progress, f"find what of {part.title} can be int8", INT8_STEPS) as tell:
                return write_int8(drafts, others, self.folder, chain, self.threads, tell)


@dataclass(frozen=True)
class _Described:
    """Progress of work that the steps of an export do not count."""

    of: Progress

    def advance(self, steps: int = 1) -> None:
        pass

    def describe(self, text: str) -> None:
        self.of.describe(text)


@contextlib.contextmanager
def phase(progress: Progress, text: str) -> Iterator[None]:
    """One step of long work: described when it begins, counted when it is done."""
    progress.describe(text)
    yield
    progress.advance()


@contextlib.contextmanager
def portions(progress: Progress, text: str, steps: int) -> Iterator[Callable[[float], None]]:
    """Several steps of long work, counted as shares of it are reported to the function that is given."""
    progress.describe(text)
    counted = 0

    def tell(share: float) -> None:
        nonlocal counted
        done = min(int(share * steps), steps)
        if done > counted:
            progress.advance(done - counted)
            counted = done

    yield tell
    if counted < steps:
        progress.advance(steps - counted)
