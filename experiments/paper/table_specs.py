"""Specification of a table: the runs behind each row, and the paper's number for it.

A specification reads the inputs only. It trains nothing, and two that ask for the same run share it.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from .external_runs import ExternalRun
from .features import FLAMEST, READY, table_name
from .inputs import ExperimentInputs
from .jobs import Job
from .printed_values import KD, PaperValue

TABLE_ORDER = (
    "blip", "clip", KD, "resnet3d", "slow", "slow-uniform", "i3d", "videomae", "blip-text", "blip-text+resnet3d",
    "blip-text+slow", "blip-text+i3d", "blip+resnet3d", "blip+i3d", "blip+slow",
)  # fmt: skip
NOT_RUN = "not run"


@dataclass(frozen=True)
class RowSpec:
    """A row before it is measured: its runs (one per seed), or the reason why there are none."""

    name: str
    jobs: tuple[Job, ...] = ()
    paper: PaperValue | None = None
    status: str = ""  # why there are no runs
    note: str = ""
    against: tuple[Job, ...] = ()  # runs of the same seeds from which the difference is taken
    external: ExternalRun | None = None  # measured by another command


@dataclass(frozen=True)
class TableSpec:
    """Rows, notes and columns of a table."""

    name: str  # the command's
    title: str
    rows: tuple[RowSpec, ...]
    notes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()  # keys of tables.EXTRA, shown after best, last and paper
    independent: bool = True  # a row's runs are independent, so that their mean has an interval

    @property
    def jobs(self) -> list[Job]:
        """All runs of the table; the same run may occur more than once."""
        return [job for row in self.rows for job in (*row.jobs, *row.against)]


def seeded(inputs: ExperimentInputs, job: Job) -> tuple[Job, ...]:
    """The same job once per seed."""
    return tuple(msgspec.structs.replace(job, seed=seed) for seed in range(inputs.settings.seeds))


def row_spec(inputs: ExperimentInputs, name: str, job: Job, paper: PaperValue | None = None, note: str = "") -> RowSpec:
    """A row of ``job`` over all seeds, or with the reason why its features are missing."""
    state = inputs.data.state(job.extractor)
    return RowSpec(name, seeded(inputs, job) if state == READY else (), paper, "" if state == READY else state, note)


def on_main(inputs: ExperimentInputs, printed: PaperValue | None) -> PaperValue | None:
    """``printed`` where the main extractor is BLIP+Slow, on which the paper's ablations run; else None."""
    return printed if inputs.data.main == FLAMEST else None


def extractor_rows(inputs: ExperimentInputs, printed: dict[str, PaperValue], job: Job) -> tuple[RowSpec, ...]:
    """A row of ``job`` for every extractor in the paper's order, and KD's among them."""
    rows = []
    for extractor in TABLE_ORDER:
        if extractor == KD:
            rows.append(external_row(inputs, inputs.external.kd, KD, printed.get(KD)))
            continue
        name = table_name(extractor)
        rows.append(row_spec(inputs, name, msgspec.structs.replace(job, extractor=extractor), printed.get(name)))
    if inputs.data.main not in TABLE_ORDER:
        rows.append(row_spec(inputs, table_name(inputs.data.main), job))
    return tuple(rows)


def external_row(inputs: ExperimentInputs, run: ExternalRun | None, name: str, printed: PaperValue | None) -> RowSpec:
    """A row of a result file, or "not run"."""
    note = inputs.external_note(run) if run else ""
    return RowSpec(name, paper=printed, status="" if run else NOT_RUN, note=note, external=run)
