"""A measured table: rows of means over the seeds, with 95 % intervals, next to the paper's numbers.

The intervals are Student's t-intervals of the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean

import msgspec

from .jobs import Results, RunFailure, RunResult, finished
from .table_specs import RowSpec, TableSpec

SEEDS_ONLY = (
    "± is half of the 95 % t-interval over the seeds (partition, first model, shuffles) on one and the same test "
    "clips: it does not cover the effect of other test clips."
)
TOO_FEW_SEEDS = "A ± that reaches beyond 0 or 100 % says that there are too few seeds to tell: add --seeds 5."
# Settings that are printed under a table and in its CSV.
FACTS = ("Split", "Groups", "Clips left out")
MEASURED, EXTERNAL = "measured", "taken in"  # taken in: from a result file of another command
CONFIDENCE = 0.95
Value = float | int | str | None


class Estimate(msgspec.Struct, frozen=True):
    """A mean of ``count`` measurements; interval and standard deviation are None for a single one."""

    mean: float
    interval: float | None  # half of the 95 % interval of the mean
    deviation: float | None  # standard deviation with n − 1
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if self.interval is None else f"{self.mean:.2f} ± {self.interval:.2f}"


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and t-interval of independent measurements; None without any."""
    if not values:
        return None
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Estimate(mean, None, None, 1)
    from scipy.stats import t

    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    quantile = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return Estimate(mean, quantile * deviation / math.sqrt(len(values)), deviation, len(values))


def paired(values: Sequence[float], against: Sequence[float]) -> Estimate | None:
    """Mean and interval of the differences, seed by seed: what both sides share cancels."""
    return estimate([value - other for value, other in zip(values, against, strict=True)])


class Row(msgspec.Struct, frozen=True):
    """Accuracies in percent. ``paper`` is the printed number; a ``status`` other than MEASURED and EXTERNAL
    is the reason why there is no number of ours."""

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
    difference: Estimate | None = None  # of last from the baseline, in points, paired by seed


class TableResult(msgspec.Struct, frozen=True):
    """A table with its notes, as it is written to OUT/NAME.json."""

    name: str
    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()  # of Row.extra, in order
    unit: str = "%"  # of best, last and paper
    settings: dict[str, Value] = {}


# Extra columns: heading, and the value from a row's runs.
EXTRA: dict[str, tuple[str, Callable[[Sequence[RunResult]], Value]]] = {
    "train_accuracy": ("training accuracy, %", lambda runs: round(100 * fmean(run.train_last for run in runs), 2)),
    "parameters": ("trainable parameters", lambda runs: runs[0].parameters),
    "train_s": ("training, s", lambda runs: round(fmean(run.seconds for run in runs), 3)),
    "test_s": ("test, s", lambda runs: round(fmean(run.seconds_test for run in runs), 4)),
    "smallest_silo": ("smallest silo, clips", lambda runs: min(min(run.silo_rows) for run in runs)),
    "training_rows": ("clips trained on", lambda runs: round(fmean(sum(run.silo_rows) for run in runs))),
    "unused_rows": ("clips of no silo", lambda runs: round(fmean(run.unused_rows for run in runs))),
    "deviation": ("standard deviation", lambda runs: _standard_deviation([100 * run.last for run in runs])),
}
HEADINGS = {key: heading for key, (heading, _) in EXTRA.items()}


def build_table(table: TableSpec, results: Results) -> TableResult:
    """The table's rows from the results of its runs."""
    rows = tuple(_row(spec, table, results) for spec in table.rows)
    return TableResult(table.name, table.title, rows, (*table.notes, *interval_notes(rows)), table.columns)


def interval_notes(rows: Sequence[Row]) -> tuple[str, ...]:
    """The explanation of ±, where a row has an interval, and a caution where one leaves 0 to 100 %."""
    shown = [
        (value, interval)
        for row in rows
        for value, interval in ((row.best, row.best_interval), (row.last, row.last_interval))
        if value is not None and interval is not None
    ]
    if not shown:
        return ()
    beyond = any(value + interval > 100 or value < interval for value, interval in shown)
    return (SEEDS_ONLY, TOO_FEW_SEEDS) if beyond else (SEEDS_ONLY,)


def _row(spec: RowSpec, table: TableSpec, results: Results) -> Row:
    paper = spec.paper.value if spec.paper else None
    note = "; ".join(text for text in (spec.note, spec.paper.remark if spec.paper else "") if text)
    printed = str(spec.paper) if spec.paper else ""
    if spec.external is not None:
        extra: dict[str, Value] = {
            "train_s": spec.external.seconds_train,
            "test_s": spec.external.seconds_test,
            "parameters": spec.external.trainable_parameters,
        }
        best, last = 100 * spec.external.best, 100 * spec.external.last
        kept = {key: extra.get(key) for key in table.columns}
        return Row(spec.name, best, last, paper, EXTERNAL, seeds=1, paper_text=printed, note=note, extra=kept)
    if not spec.jobs:
        return Row(spec.name, None, None, paper, spec.status, paper_text=printed, note=note)
    runs = finished(results, spec.jobs)
    failures = [result for result in (results[job] for job in (*spec.jobs, *spec.against)) if result not in runs]
    failed = next((result for result in failures if isinstance(result, RunFailure)), None)
    if failed is not None:
        status = f"{len(spec.jobs) - len(runs)} of {len(spec.jobs)} failed: {failed.code}"
        return Row(spec.name, None, None, paper, status, paper_text=printed, note=failed.message)
    best_of = estimate([100 * run.best for run in runs])
    last_of = estimate([100 * run.last for run in runs])
    assert best_of is not None
    assert last_of is not None
    return Row(
        spec.name,
        best_of.mean,
        last_of.mean,
        paper,
        MEASURED,
        best_of.interval if table.independent else None,
        last_of.interval if table.independent else None,
        len(runs),
        printed,
        note,
        {key: EXTRA[key][1](runs) for key in table.columns},
        paired([100 * run.last for run in runs], [100 * run.last for run in finished(results, spec.against)])
        if spec.against
        else None,
    )


def _standard_deviation(values: Sequence[float]) -> float | None:
    found = estimate(values)
    return None if found is None or found.deviation is None else round(found.deviation, 2)
