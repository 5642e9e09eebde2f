"""HTML pages of the experiments: the report with all tables and figures, and the page of errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

from ...base.html import Child, definitions, image, node, scroll, table, write_document
from .findings import Finding
from .table_output import paper_number, row_numbers, shown, signed
from .tables import HEADINGS, MEASURED, Row, TableResult

MORE_STYLE = """
.figures { margin-top: 1.25rem; }
.drawing img { display: block; width: 100%; max-width: 55rem; min-width: 36rem; height: auto; background: #fff;
  border-radius: 8px; padding: 0.5rem; }
@media print { .drawing img { min-width: 0; } }
.failure { border-top: 1px solid var(--line); padding: 1rem 0; }
td.text, td.note { white-space: normal; text-align: left; color: var(--muted); font-size: 0.85rem; min-width: 12rem; }
"""


@dataclass(frozen=True)
class Part:
    """A table and its picture (PNG bytes; empty: none)."""

    result: TableResult
    picture: bytes = b""


def write_report(
    path: Path, title: str, facts: Sequence[tuple[str, str]], parts: Sequence[Part], found: Sequence[Finding]
) -> None:
    """Write everything into one file, without scripts and without anything to load. Raises StorageError."""
    sections = [_section(part) for part in parts]
    if found:
        lines = [node("li", f"{finding.claim}: {finding.text}") for finding in found]
        sections.insert(0, node("section", node("h2", "The paper's claims"), node("ul", *lines, cls="verdicts")))
    sections.append(node("section", node("h2", "Data and settings"), definitions(facts)))
    write_page(path, title, sections)


def write_page(path: Path, title: str, sections: Sequence[Element]) -> None:
    """Write a page with the report's style around ``sections``. Raises StorageError."""
    header = node("header", node("p", "FLAMeST experiments", cls="eyebrow"), node("h1", title))
    write_document(path, title, [header, *sections], MORE_STYLE)


def picture(png: bytes, alt: str) -> Element:
    """A figure in a box that scrolls sideways where the page is narrow: its text stays readable."""
    return scroll(node("div", image(png, alt), cls="drawing"), alt, cls="scroll figures")


def _section(part: Part) -> Element:
    result = part.result
    notes = [node("p", note, cls="note") for note in result.notes]
    drawn = picture(part.picture, f"picture of {result.name}") if part.picture else None
    return node("section", node("h2", result.title), scroll(_table(result), f"table {result.name}"), drawn, *notes)


def _table(result: TableResult) -> Element:
    differs = any(row.difference for row in result.rows)
    ours = [f"best, {result.unit}", f"last, {result.unit}"] if result.unit == "%" else [result.unit]
    heads: list[Child] = ["", *ours, "paper", *(HEADINGS.get(column, column) for column in result.columns)]
    heads += [*(["difference, points"] if differs else []), "note"]
    return table([heads, *(_cells(row, result, len(ours), differs) for row in result.rows)])


def _cells(row: Row, result: TableResult, ours: int, differs: bool) -> list[Child]:
    numbers: list[Child] = [*row_numbers(row, result)] if row.last is not None else [row.status, *[""] * (ours - 1)]
    extra = (shown(row.extra.get(column)) for column in result.columns)
    cells: list[Child] = [row.name, *numbers, paper_number(row), *extra]
    if differs:
        cells.append(signed(row.difference) if row.difference else "–")
    note = row.note if row.status == MEASURED or row.last is None else f"{row.status}; {row.note}".strip("; ")
    return [*cells, node("span", note, cls="note")]
