"""Output of a table: files (JSON, CSV, picture), text for a terminal, and the cells that the report shares."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import msgspec

from ...base.files import write_atomic
from .plots import table_figure, write_figure
from .tables import FACTS, HEADINGS, Estimate, Row, TableResult, Value


def write_table(result: TableResult, folder: Path) -> None:
    """``folder``/NAME.json, NAME.csv, NAME.png and NAME.svg. Raises StorageError."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f"{result.name}.json", msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    write_atomic(folder / f"{result.name}.csv", as_csv(result).encode())
    write_figure(table_figure(result), folder / result.name)


def as_csv(result: TableResult) -> str:
    """A header and a line per row; cells without a value are empty. The last columns, FACTS, repeat on each row."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    differs = any(row.difference for row in result.rows)
    head = ["name", "status", "best", "best_interval", "last", "last_interval", "seeds", "paper", *result.columns]
    names, facts = fact_columns(result)
    writer.writerow([*head, *(["difference", "difference_interval"] if differs else []), "note", *names])
    for row in result.rows:
        cells: list[Value] = [row.name, row.status, row.best, row.best_interval, row.last, row.last_interval, row.seeds]
        cells += [row.paper_text, *(row.extra.get(column) for column in result.columns)]
        if differs:
            cells += [row.difference.mean, row.difference.interval] if row.difference else [None, None]
        writer.writerow(["" if cell is None else _short(cell) for cell in (*cells, row.note, *facts)])
    return out.getvalue()


def fact_columns(result: TableResult) -> tuple[list[str], list[Value]]:
    """Headings and cells of the columns that repeat on every line of a CSV: FACTS, where they are known."""
    facts = [name for name in FACTS if name in result.settings]
    return [name.lower().replace(" ", "_") for name in facts], [result.settings[name] for name in facts]


def _short(cell: Value) -> Value:
    return f"{cell:.4f}".rstrip("0").rstrip(".") if isinstance(cell, float) else cell


def as_text(result: TableResult) -> str:
    """The table for a terminal, without colour; notes on single rows follow below it."""
    headings = [HEADINGS.get(column, column) for column in result.columns]
    lines = [["", *_numbers_head(result), "paper", *headings]]
    for row in result.rows:
        numbers = row_numbers(row, result) if row.last is not None else [row.status]
        numbers += [""] * (len(_numbers_head(result)) - len(numbers))
        lines.append([row.name, *numbers, paper_number(row), *(shown(row.extra.get(key)) for key in result.columns)])
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
    """The printed number as text."""
    return row.paper_text or ("–" if row.paper is None else f"{row.paper:,.10g}")


def cell(value: float | None, interval: float | None) -> str:
    """``93.20 ± 0.40``, or a dash."""
    if value is None:
        return "–"
    return f"{value:.2f}" if interval is None else f"{value:.2f} ± {interval:.2f}"


def signed(change: Estimate) -> str:
    """``+1.20 ± 0.40``; without interval for one seed."""
    return f"{'+' if change.mean >= 0 else ''}{change}"


def shown(value: Value) -> str:
    """A cell of an extra column, with thousands separators."""
    return "–" if value is None else f"{value:,}" if isinstance(value, int | float) else str(value)
