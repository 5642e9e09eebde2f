"""Each experiment from features to files: plan, run what is missing, write, and the row objects of ``--json``."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ...base.errors import DataError
from ...base.files import write_atomic
from ...base.process import Shutdown
from . import figures, plans
from .failures import failure_sections, failures_job, find_failures
from .features import table_name
from .figures import CurvePlan
from .findings import Finding, finding_jobs, findings
from .jobs import Job, Results
from .plan_beyond import beyond
from .plans import Plan
from .plots import confusion_figure, curves_figure, figure_bytes, scatter_figure, write_figure
from .pool import WorkerConfig, run_jobs
from .report import Part, picture, write_page, write_report
from .resources import resources, table1
from .settings import Context
from .splits import split_data
from .tables import TableResult, as_csv, build_table, write_table

TABLES: dict[str, Callable[[Context], Plan]] = {
    "table2": plans.table2,
    "table3": plans.table3,
    "table4": plans.table4,
    "table5": plans.table5,
    "table6": plans.table6,
    "table7": plans.table7,
    "table8": plans.table8,
    "table9": plans.table9,
    "cross-validation": plans.cross_validation,
    "beyond": beyond,
}
CURVES: dict[str, Callable[[Context], CurvePlan]] = {"figure2": figures.figure2, "figure3": figures.figure3}
EXPERIMENTS = (
    "table1", *(name for name in TABLES if name.startswith("table")), *CURVES, "figure4", "cross-validation",
    "failures", "resources", "beyond",
)  # fmt: skip


@dataclass(frozen=True)
class ExperimentContext:
    """Where an experiment works."""

    context: Context
    place: WorkerConfig
    out: Path
    stop: Shutdown
    project: figures.Projection = figures.umap_projection


def run_experiment(name: str, desk: ExperimentContext) -> Part:
    """Run, and write OUT/NAME.{json,csv,png,svg}. Raises Stopped, and DataError as reading does."""
    desk.out.mkdir(parents=True, exist_ok=True)
    if name in TABLES:
        plan = TABLES[name](desk.context)
        return _written(build_table(plan, _run(desk, plan.jobs)), desk)
    if name in CURVES:
        return _curves(CURVES[name](desk.context), desk)
    if name == "table1":
        return _written(table1(len(desk.context.data.labels)), desk)
    if name == "resources":
        return _written(resources(desk.context), desk)
    if name == "figure4":
        return _embeddings(desk)
    return _failures(desk)


def run_all(desk: ExperimentContext) -> tuple[dict[str, TableResult], tuple[Finding, ...], Path]:
    """Every experiment and one page. The trainings of all are run together, so that no process waits."""
    started = time.perf_counter()
    left_out = _not_drawn(desk.context)
    jobs: list[Job] = [*finding_jobs(desk.context), failures_job(desk.context)]
    for make in TABLES.values():
        jobs += make(desk.context).jobs
    for draw in CURVES.values():
        jobs += draw(desk.context).jobs
    results = _run(desk, jobs)
    parts = {name: run_experiment(name, desk) for name in EXPERIMENTS if name not in left_out}
    found = findings(desk.context, results)
    write_atomic(desk.out / "findings.json", msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    page = desk.out / "report.html"
    facts = [*_facts(desk.context), *left_out.items(), ("This command took", f"{time.perf_counter() - started:.0f} s")]
    write_report(page, f"The paper's tables on {_title(desk.context)}", facts, list(parts.values()), found)
    return {name: part.result for name, part in parts.items()}, found, page


def _not_drawn(context: Context) -> dict[str, str]:
    """Figure 4 and why, where its classes have too few clips. Raises UsageError on --classes that cannot be."""
    try:
        figures.check_classes(context)
    except DataError as error:
        return {"figure4": f"not drawn: {error.message}"}
    return {}


def as_rows(result: TableResult) -> list[dict[str, Any]]:
    """The ``rows`` of ``--json``."""
    rows: list[dict[str, Any]] = msgspec.to_builtins(result.rows)
    return rows


def summary(context: Context) -> Mapping[str, Any]:
    """What the numbers were measured on."""
    return dict(_facts(context))


def _run(desk: ExperimentContext, jobs: list[Job]) -> Results:
    return run_jobs(jobs, desk.context.data, desk.place, stop=desk.stop)


def _written(result: TableResult, desk: ExperimentContext) -> Part:
    known = dict(_facts(desk.context))
    result = msgspec.structs.replace(result, settings=known)
    write_table(result, desk.out)
    png = desk.out / f"{result.name}.png"
    return Part(result, png.read_bytes())


def _curves(plan: CurvePlan, desk: ExperimentContext) -> Part:
    result, curves = figures.curve_table(plan, _run(desk, plan.jobs))
    result = msgspec.structs.replace(result, settings=dict(_facts(desk.context)))
    figure = curves_figure(result.title, curves, plan.across)
    write_figure(figure, desk.out / plan.name)
    body = {"result": result, "curves": curves}
    write_atomic(desk.out / f"{plan.name}.json", msgspec.json.format(msgspec.json.encode(body)) + b"\n")
    write_atomic(desk.out / f"{plan.name}.csv", figures.curve_csv(plan.across, result, curves).encode())
    return Part(result, figure_bytes(figure, "png"))


def _embeddings(desk: ExperimentContext) -> Part:
    data = desk.context.data
    figures.check_classes(desk.context)
    pairs = figures.classes_to_show(desk.context)
    found = [(pair, figures.embedding_panels(data, pair, desk.project)) for pair in pairs]
    panels = [
        (f"{table_name(panel.extractor)}, {panel.silhouette:.2f}", panel.points, panel.labels)
        for _, shown in found
        for panel in shown
    ]
    result = msgspec.structs.replace(figures.panel_table(found), settings=dict(_facts(desk.context)))
    figure = scatter_figure(result.title, panels)
    write_figure(figure, desk.out / result.name)
    points = [{"extractor": name, "labels": labels, "points": np.round(xy, 5).tolist()} for name, xy, labels in panels]
    body = {"result": result, "panels": points}
    write_atomic(desk.out / f"{result.name}.json", msgspec.json.format(msgspec.json.encode(body)) + b"\n")
    write_atomic(desk.out / f"{result.name}.csv", as_csv(result).encode())
    return Part(result, figure_bytes(figure, "png"))


def _failures(desk: ExperimentContext) -> Part:
    results = _run(desk, [failures_job(desk.context)])
    found = find_failures(desk.context, results)
    table = msgspec.structs.replace(found.table, settings=dict(_facts(desk.context)))
    figure = confusion_figure(f"{table_name(desk.context.data.main)}, seed 0", found.confusion, found.labels)
    write_figure(figure, desk.out / "failures")
    write_atomic(desk.out / "failures.csv", as_csv(table).encode())
    body = {"result": table, "labels": found.labels, "confusion": found.confusion.tolist()}
    write_atomic(desk.out / "failures.json", msgspec.json.format(msgspec.json.encode(body)) + b"\n")
    png = figure_bytes(figure, "png")
    sections = list(failure_sections(found, picture(png, "confusion matrix")))
    write_page(desk.out / "failures.html", "Where the model is wrong", sections)
    return Part(table, png)


def _title(context: Context) -> str:
    return {"ucf101": "UCF101", "hmdb51": "HMDB51", "miniworld": "the mini-world"}.get(
        context.settings.dataset, "stored features"
    )


def _facts(context: Context) -> list[tuple[str, str]]:
    settings, data = context.settings, context.data
    split = split_data(data, settings.split, dataset=settings.dataset, videos=settings.videos)
    train = settings.train
    return [
        ("Data", f"{_title(context)}: {len(data.clips):,} clips, {len(data.labels)} classes"),
        ("Split", f"{settings.split.kind}: {len(split.train):,} to train on, {len(split.test):,} to test on"),
        ("Groups", str(split.leakage)),
        ("Clips left out", f"{data.dropped}, which some extractor lacks"),
        ("Rounds", f"{settings.rounds}, {train.epochs} local epochs, batch {train.batch_size}"),
        ("Optimiser", f"Adam {train.learning_rate:g}, weight decay {train.weight_decay:g}"),
        ("Seeds", f"{settings.seeds}; ± is half of the 95 % t-interval of the mean"),
        ("Machine", f"{platform.machine()}, Python {platform.python_version()}"),
    ]
