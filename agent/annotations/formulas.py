"""Cells of a table that spreadsheets read as formulas: they are written as they are, with a note."""

from __future__ import annotations

from collections.abc import Iterable

from ...base.errors import printable
from ..extraction.labels_table import LabelRow

FORMULA_MARKS = ("=", "+", "-", "@")  # https://owasp.org/www-community/attacks/CSV_Injection
SHOWN = 3


def formula_note(rows: Iterable[LabelRow]) -> str:
    """Return a sentence on cells that begin as a formula does; empty when there is none."""
    cells = dict.fromkeys(
        cell
        for row in rows
        for cell in (row.label or "", row.path, row.group, row.person, row.camera)
        if cell.startswith(FORMULA_MARKS)
    )
    if not cells:
        return ""
    names = ", ".join(printable(cell)[:40] for cell in list(cells)[:SHOWN]) + (", …" if len(cells) > SHOWN else "")
    return (
        f"names that begin with = + - or @: a spreadsheet reads them as formulas ({names}); import the table there as "
        "text, or rename them"
    )
