"""A table as it came out: rows of means and intervals beside the paper's numbers, as JSON, CSV and a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import msgspec

from ...base.files import write_atomic
from .estimates import Estimate, estimate, paired
from .jobs import Results, RunFailure, RunResult, finished
from .plans import Line, Plan

SEEDS_ONLY = (
    "± is half of the 95 % t-interval over the seeds (partition, first model, shuffles) on one and the same test "
    "clips: it does not hold what other test clips would change."
)
# Of a table's settings, what is said under it and in its CSV.
FACTS = ("Split", "Groups", "Clips left out")
MEASURED, GIVEN = "measured", "taken in"
Value = float | int | str | None


class Row(msgspec.Struct, frozen=True):
    """Accuracies in percent. ``paper`` is the printed number; a ``status`` other than MEASURED says why
    there is none of ours (GIVEN: from a result file)."""

    name: str
    best: float | None  # mean over seeds of the best round
    last: float | None  # mean over seeds of the final model
    paper: float | None
    status: str = MEASURED
    best_interval: float | None = None  # half of the 95 % t-interval
    last_interval: float | None = None
    seeds: int = 0
    paper_text: str = ""
    note: str = ""
    extra: dict[str, Value] = {}
    difference: Estimate | None = None  # of last to the baseline, in points, seed by seed


class TableResult(msgspec.Struct, frozen=True):
    name: str
    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()  # of Row.extra, in order
    unit: str = "%"  # of best, last and paper
    settings: dict[str, Value] = {}


# What a column shows of a row's runs, and its heading.
EXTRA: dict[str, tuple[str, Callable[[Sequence[RunResult]], Value]]] = {
    "train_accuracy": ("training accuracy, %", lambda runs: round(100 * fmean(run.train_last for run in runs), 2)),
    "parameters": ("trainable parameters", lambda runs: runs[0].parameters),
    "train_s": ("training, s", lambda runs: round(fmean(run.seconds for run in runs), 3)),
    "test_s": ("test, s", lambda runs: round(fmean(run.seconds_test for run in runs), 4)),
    "smallest_silo": ("smallest silo, clips", lambda runs: min(min(run.silo_rows) for run in runs)),
    "training_rows": ("clips trained on", lambda runs: round(fmean(sum(run.silo_rows) for run in runs))),
    "unused_rows": ("clips of no silo", lambda runs: round(fmean(run.unused_rows for run in runs))),
    "deviation": ("standard deviation", lambda runs: _deviation([100 * run.last for run in runs])),
}
HEADINGS = {key: heading for key, (heading, _) in EXTRA.items()}


def build_table(plan: Plan, results: Results) -> TableResult:
    """The plan's rows from the results of its jobs."""
    rows = tuple(_row(line, plan, results) for line in plan.lines)
    return TableResult(plan.name, plan.title, rows, (*plan.notes, *interval_notes(rows)), plan.columns)


def interval_notes(rows: Sequence[Row]) -> tuple[str, ...]:
    """What ± means, where a row has one."""
    return (SEEDS_ONLY,) if any(row.last_interval is not None for row in rows) else ()


def _row(line: Line, plan: Plan, results: Results) -> Row:
    paper = line.paper.value if line.paper else None
    note = "; ".join(text for text in (line.note, line.paper.remark if line.paper else "") if text)
    printed = str(line.paper) if line.paper else ""
    if line.given is not None:
        extra: dict[str, Value] = {
            "train_s": line.given.seconds_train,
            "test_s": line.given.seconds_test,
            "parameters": line.given.trainable_parameters,
        }
        best, last = 100 * line.given.best, 100 * line.given.last
        kept = {key: extra.get(key) for key in plan.columns}
        return Row(line.name, best, last, paper, GIVEN, seeds=1, paper_text=printed, note=note, extra=kept)
    if not line.jobs:
        return Row(line.name, None, None, paper, line.status, paper_text=printed, note=note)
    runs = finished(results, line.jobs)
    failures = [result for result in (results[job] for job in (*line.jobs, *line.against)) if result not in runs]
    failed = next((result for result in failures if isinstance(result, RunFailure)), None)
    if failed is not None:
        status = f"{len(line.jobs) - len(runs)} of {len(line.jobs)} failed: {failed.code}"
        return Row(line.name, None, None, paper, status, paper_text=printed, note=failed.message)
    best_of = estimate([100 * run.best for run in runs])
    last_of = estimate([100 * run.last for run in runs])
    assert best_of is not None
    assert last_of is not None
    return Row(
        line.name,
        best_of.mean,
        last_of.mean,
        paper,
        MEASURED,
        best_of.interval if plan.independent else None,
        last_of.interval if plan.independent else None,
        len(runs),
        printed,
        note,
        {key: EXTRA[key][1](runs) for key in plan.columns},
        paired([100 * run.last for run in runs], [100 * run.last for run in finished(results, line.against)])
        if line.against
        else None,
    )


def _deviation(values: Sequence[float]) -> float | None:
    found = estimate(values)
    return None if found is None or found.deviation is None else round(found.deviation, 2)


def write_table(result: TableResult, folder: Path) -> None:
    """``folder``/NAME.json, NAME.csv, NAME.png and NAME.svg. Raises StorageError."""
    from .plots import table_figure, write_figure

    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f"{result.name}.json", msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    write_atomic(folder / f"{result.name}.csv", as_csv(result).encode())
    write_figure(table_figure(result), folder / result.name)


def as_csv(result: TableResult) -> str:
    """A header and a line per row; empty where there is nothing. The last columns, alike in all rows, are FACTS."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    differs = any(row.difference for row in result.rows)
    head = ["name", "status", "best", "best_interval", "last", "last_interval", "seeds", "paper", *result.columns]
    names, said = fact_columns(result)
    writer.writerow([*head, *(["difference", "difference_interval"] if differs else []), "note", *names])
    for row in result.rows:
        cells: list[Value] = [row.name, row.status, row.best, row.best_interval, row.last, row.last_interval, row.seeds]
        cells += [row.paper_text, *(row.extra.get(column) for column in result.columns)]
        if differs:
            cells += [row.difference.mean, row.difference.interval] if row.difference else [None, None]
        writer.writerow(["" if cell is None else _short(cell) for cell in (*cells, row.note, *said)])
    return out.getvalue()


def fact_columns(result: TableResult) -> tuple[list[str], list[Value]]:
    """Headings and cells of the columns that are alike in all lines of a CSV: FACTS, where they are known."""
    facts = [name for name in FACTS if name in result.settings]
    return [name.lower().replace(" ", "_") for name in facts], [result.settings[name] for name in facts]


def _short(cell: Value) -> Value:
    return f"{cell:.4f}".rstrip("0").rstrip(".") if isinstance(cell, float) else cell


def as_text(result: TableResult) -> str:
    """The table for a terminal, without colour; what is to be said of a row's numbers stands below."""
    headings = [HEADINGS.get(column, column) for column in result.columns]
    lines = [["", *_numbers_head(result), "paper", *headings]]
    for row in result.rows:
        ours = row_numbers(row, result) if row.last is not None else [row.status]
        ours += [""] * (len(_numbers_head(result)) - len(ours))
        lines.append([row.name, *ours, paper_number(row), *(shown(row.extra.get(key)) for key in result.columns)])
        if row.difference is not None:
            lines[-1].append(f"{signed(row.difference)} points")
    widths = [max(len(line[place]) for line in lines if place < len(line)) for place in range(max(map(len, lines)))]
    body = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=False)).rstrip() for line in lines]
    remarks = [f"  {row.name}: {row.note}" for row in result.rows if row.note]
    facts = [f"  {name}: {result.settings[name]}" for name in FACTS if name in result.settings]
    return "\n".join([result.title, *body, *remarks, *(f"  {note}" for note in result.notes), *facts])


def _numbers_head(result: TableResult) -> list[str]:
    return ["best", "last"] if result.unit == "%" else [result.unit]


def row_numbers(row: Row, result: TableResult) -> list[str]:
    """Best and last with their intervals; one number where the table is not of accuracies."""
    if result.unit == "%":
        return [cell(row.best, row.best_interval), cell(row.last, row.last_interval)]
    return ["–" if row.last is None else f"{row.last:,.{0 if row.last == int(row.last) else 1}f}"]


def paper_number(row: Row) -> str:
    return row.paper_text or ("–" if row.paper is None else f"{row.paper:,.10g}")


def cell(value: float | None, interval: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if interval is None else f"{value:.2f} ± {interval:.2f}"


def signed(change: Estimate) -> str:
    """``+1.20 ± 0.40``; no interval of one seed."""
    return f"{'+' if change.mean >= 0 else ''}{change}"


def shown(value: Value) -> str:
    return "–" if value is None else f"{value:,}" if isinstance(value, int | float) else str(value)
