"""Each experiment from features to files: run what is missing, build the table or figure, write it."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ...base.errors import DataError
from ...base.files import write_atomic
from ...base.process import Shutdown
from . import figures, paper_tables
from .failures import failure_sections, failures_job, find_failures
from .features import table_name
from .figures import CurveSpec
from .findings import Finding, finding_jobs, findings
from .grid import GridInputs, grid_table
from .inputs import ExperimentInputs
from .jobs import Job, Results
from .plots import confusion_figure, curves_figure, figure_bytes, scatter_figure, write_figure
from .pool import WorkerConfig, run_jobs
from .report import Part, picture, write_page, write_report
from .resources import resources, table1
from .table_output import as_csv, write_table
from .table_specs import TableSpec
from .tables import TableResult, build_table

TABLES: dict[str, Callable[[ExperimentInputs], TableSpec]] = {
    "table2": paper_tables.table2,
    "table3": paper_tables.table3,
    "table4": paper_tables.table4,
    "table5": paper_tables.table5,
    "table6": paper_tables.table6,
    "table7": paper_tables.table7,
    "table8": paper_tables.table8,
    "table9": paper_tables.table9,
    "cross-validation": paper_tables.cross_validation,
    "beyond": paper_tables.beyond,
    "grid": paper_tables.grid,
}
CURVES: dict[str, Callable[[ExperimentInputs], CurveSpec]] = {"figure2": figures.figure2, "figure3": figures.figure3}
EXPERIMENTS = (
    "table1", *(name for name in TABLES if name.startswith("table")), *CURVES, "figure4", "cross-validation",
    "failures", "resources", "beyond", "grid",
)  # fmt: skip
ON_ITS_OWN = "grid"  # no part of ``all``: without lists it is a row of the other tables


@dataclass(frozen=True)
class ExperimentContext:
    """Inputs, worker processes and output folder of an experiment."""

    inputs: ExperimentInputs
    worker: WorkerConfig
    out: Path
    stop: Shutdown
    project: figures.Projection = figures.umap_projection
    grid: tuple[GridInputs, ...] = ()  # every combination of the lists that were given; empty: ``inputs`` alone
    changed: tuple[str, ...] = ()  # settings that are not the data set's defaults, for titles

    def table(self, name: str) -> TableSpec:
        """The specification of a table, with the rows of every combination."""
        return grid_table(TABLES[name], self.grid or (GridInputs({}, self.inputs),))

    def described(self, result: TableResult) -> TableResult:
        """The result with the settings that it was measured with, the unusual ones in its title."""
        unusual = [text for text in self.changed if text not in result.title]
        title = f"{result.title} ({', '.join(unusual)})" if unusual else result.title
        return msgspec.structs.replace(result, title=title, settings=dict(_facts(self.inputs, self.changed)))


def run_experiment(name: str, context: ExperimentContext) -> Part:
    """Run the experiment and write OUT/NAME.{json,csv,png,svg}. Raises Interrupted, and DataError as reading does."""
    context.out.mkdir(parents=True, exist_ok=True)
    if name in TABLES:
        table = context.table(name)
        return _write(build_table(table, _run(context, table.jobs)), context)
    if name in CURVES:
        return _curves(CURVES[name](context.inputs), context)
    if name == "table1":
        return _write(table1(len(context.inputs.data.labels)), context)
    if name == "resources":
        return _write(resources(context.inputs), context)
    if name == "figure4":
        return _embeddings(context)
    return _failures(context)


def run_all(context: ExperimentContext) -> tuple[dict[str, TableResult], tuple[Finding, ...], Path]:
    """Run every experiment and write one page. All trainings run together, so that no process waits."""
    started = time.perf_counter()
    left_out = _skipped_figures(context.inputs)
    jobs: list[Job] = [*finding_jobs(context.inputs), failures_job(context.inputs)]
    for name in TABLES:
        if name != ON_ITS_OWN:
            jobs += context.table(name).jobs
    for figure in CURVES.values():
        jobs += figure(context.inputs).jobs
    results = _run(context, jobs)
    parts = {name: run_experiment(name, context) for name in EXPERIMENTS if name not in (*left_out, ON_ITS_OWN)}
    found = findings(context.inputs, results)
    write_atomic(context.out / "findings.json", msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    page = context.out / "report.html"
    facts = [
        *_facts(context.inputs, context.changed),
        *left_out.items(),
        ("This command took", f"{time.perf_counter() - started:.0f} s"),
    ]
    write_report(
        page,
        ", ".join([f"The paper's tables on {_title(context.inputs)}", *context.changed]),
        facts,
        list(parts.values()),
        found,
    )
    return {name: part.result for name, part in parts.items()}, found, page


def _skipped_figures(inputs: ExperimentInputs) -> dict[str, str]:
    """Figure 4 with the reason, where its classes have too few clips. Raises UsageError on impossible --classes."""
    try:
        figures.check_classes(inputs)
    except DataError as error:
        return {"figure4": f"not drawn: {error.message}"}
    return {}


def as_rows(result: TableResult) -> list[dict[str, Any]]:
    """The ``rows`` of ``--json``."""
    rows: list[dict[str, Any]] = msgspec.to_builtins(result.rows)
    return rows


def summary(context: ExperimentContext) -> Mapping[str, Any]:
    """Data, split and settings that the numbers were measured with."""
    return dict(_facts(context.inputs, context.changed))


def _run(context: ExperimentContext, jobs: list[Job]) -> Results:
    return run_jobs(jobs, context.inputs.data, context.worker, stop=context.stop)


def _write(result: TableResult, context: ExperimentContext) -> Part:
    result = context.described(result)
    write_table(result, context.out)
    png = context.out / f"{result.name}.png"
    return Part(result, png.read_bytes())


def _curves(spec: CurveSpec, context: ExperimentContext) -> Part:
    result, curves = figures.curve_table(spec, _run(context, spec.jobs))
    result = context.described(result)
    figure = curves_figure(result.title, curves, spec.across)
    write_figure(figure, context.out / spec.name)
    body = {"result": result, "curves": curves}
    write_atomic(context.out / f"{spec.name}.json", msgspec.json.format(msgspec.json.encode(body)) + b"\n")
    write_atomic(context.out / f"{spec.name}.csv", figures.curve_csv(spec.across, result, curves).encode())
    return Part(result, figure_bytes(figure, "png"))


def _embeddings(context: ExperimentContext) -> Part:
    data = context.inputs.data
    figures.check_classes(context.inputs)
    pairs = figures.classes_to_show(context.inputs)
    found = [(pair, figures.embedding_panels(data, pair, context.project)) for pair in pairs]
    panels = [
        (f"{table_name(panel.extractor)}, {panel.silhouette:.2f}", panel.points, panel.labels)
        for _, shown in found
        for panel in shown
    ]
    result = context.described(figures.panel_table(found))
    figure = scatter_figure(result.title, panels)
    write_figure(figure, context.out / result.name)
    points = [{"extractor": name, "labels": labels, "points": np.round(xy, 5).tolist()} for name, xy, labels in panels]
    body = {"result": result, "panels": points}
    write_atomic(context.out / f"{result.name}.json", msgspec.json.format(msgspec.json.encode(body)) + b"\n")
    write_atomic(context.out / f"{result.name}.csv", as_csv(result).encode())
    return Part(result, figure_bytes(figure, "png"))


def _failures(context: ExperimentContext) -> Part:
    results = _run(context, [failures_job(context.inputs)])
    found = find_failures(context.inputs, results)
    table = context.described(found.table)
    figure = confusion_figure(
        ", ".join([table_name(context.inputs.data.main), "seed 0", *context.changed]), found.confusion, found.labels
    )
    write_figure(figure, context.out / "failures")
    write_atomic(context.out / "failures.csv", as_csv(table).encode())
    body = {"result": table, "labels": found.labels, "confusion": found.confusion.tolist()}
    write_atomic(context.out / "failures.json", msgspec.json.format(msgspec.json.encode(body)) + b"\n")
    png = figure_bytes(figure, "png")
    sections = list(failure_sections(found, picture(png, "confusion matrix")))
    write_page(context.out / "failures.html", "Clips that the model gets wrong", sections)
    return Part(table, png)


def _title(inputs: ExperimentInputs) -> str:
    return {"ucf101": "UCF101", "hmdb51": "HMDB51", "miniworld": "the mini-world"}.get(
        inputs.settings.dataset, "stored features"
    )


def _facts(inputs: ExperimentInputs, changed: Sequence[str] = ()) -> list[tuple[str, str]]:
    settings, data = inputs.settings, inputs.data
    split, train = inputs.split(), settings.train
    return [
        ("Data", f"{_title(inputs)}: {len(data.clips):,} clips, {len(data.labels)} classes"),
        ("Split", f"{settings.split.kind}: {len(split.train):,} to train on, {len(split.test):,} to test on"),
        ("Groups", str(split.leakage)),
        ("Clips left out", f"{data.dropped}, which some extractor lacks"),
        ("Rounds", f"{settings.rounds}, {train.epochs} local epochs, batch {train.batch_size}"),
        ("Optimiser", f"Adam {train.learning_rate:g}, weight decay {train.weight_decay:g}"),
        ("Seeds", f"{settings.seeds}; ± is half of the 95 % t-interval of the mean"),
        *([("Not the defaults", ", ".join(changed))] if changed else []),
        ("Machine", f"{platform.machine()}, Python {platform.python_version()}"),
    ]
