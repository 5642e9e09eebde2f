"""Changes of many rows of many tensors at once: a frame's keys and values are rows of two tensors in every layer.

Where the rows are on a device, all changes of a call are put on its stream together, neighbours as one piece; elsewhere
they are made row by row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeGuard

from .session import Rows, Value


class Move(NamedTuple):
    """``length`` rows from ``row`` on become those of a value from ``source`` on."""

    row: int
    source: int
    length: int


class ManyRows(Protocol):
    """Rows that change together with others of their session (tensorrt/device_rows.py): with all ``targets``."""

    def put_all(self, targets: Sequence[tuple[Rows, Value]], moves: Sequence[Move]) -> None: ...

    def clear_all(self, targets: Sequence[Rows], moves: Sequence[Move]) -> None: ...


def moves_of(pairs: Iterable[tuple[int, int]]) -> list[Move]:
    """Moves that copy the second of each pair of rows to the first, neighbours together."""
    moves: list[Move] = []
    for row, index in pairs:
        last = moves[-1] if moves else None
        if last is not None and (row, index) == (last.row + last.length, last.source + last.length):
            moves[-1] = last._replace(length=last.length + 1)
        else:
            moves.append(Move(row, index, 1))
    return moves


def put_rows(targets: Mapping[str, Rows], values: Mapping[str, Value], moves: Sequence[Move]) -> None:
    """Copy rows of ``values`` to the ``targets`` of the same names, which are of one session."""
    pairs = [(rows, values[name]) for name, rows in targets.items()]
    if not pairs or not moves:
        return
    if _change_together(first := pairs[0][0]):
        first.put_all(pairs, moves)
        return
    for rows, value in pairs:
        for move in moves:
            for offset in range(move.length):
                rows.put(move.row + offset, value, move.source + offset)


def clear_rows(targets: Iterable[Rows], moves: Sequence[Move]) -> None:
    """Fill the rows that ``moves`` change with zeros."""
    every = list(targets)
    if not every or not moves:
        return
    if _change_together(first := every[0]):
        first.clear_all(every, moves)
        return
    for rows in every:
        for move in moves:
            for offset in range(move.length):
                rows.clear(move.row + offset)


def _change_together(rows: object) -> TypeGuard[ManyRows]:
    return hasattr(rows, "put_all")
