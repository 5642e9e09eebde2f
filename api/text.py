"""Text that objects show of themselves: tables of columns, and a curve in one line."""

from __future__ import annotations

from collections.abc import Sequence

from ..base.console import counted

LEVELS = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 60  # characters


def counted_classes(number: int) -> str:
    """Return ``1 class`` or ``20 classes``."""
    return counted(number, "class") if number == 1 else counted(number, "classe")


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows under their header, numbers to the right and texts to the left."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    right = [all(isinstance(row[column], int | float) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    ]
    return "\n".join(lines)


def curve(values: Sequence[float]) -> str:
    """Return values from 0 to 1 as a line of blocks, at most ``CURVE_WIDTH`` of them."""
    step = max(1, -(-len(values) // CURVE_WIDTH))
    shown = [values[index] for index in range(len(values) - 1, -1, -step)][::-1]  # the last one always
    return "".join(LEVELS[min(int(value * len(LEVELS)), len(LEVELS) - 1)] for value in shown)
