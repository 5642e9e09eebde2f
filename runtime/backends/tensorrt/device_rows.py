"""Rows of a batch on a GPU: replaced one by one, or many of several tensors at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ....base.errors import InvariantError
from ..element_types import ElementType
from ..row_moves import Move
from ..session import Feed, Rows, Shape
from .cuda_device import DeviceValue, HeldBlock
from .cuda_memory import Block


class Span(NamedTuple):
    """Bytes of a block."""

    block: Block
    offset: int
    size: int


class Copy(NamedTuple):
    """Bytes that come from ``source``, at ``begin`` of it."""

    to: Span
    source: Block
    begin: int


class RowMemory(Protocol):
    """The part of SessionMemory that rows need."""

    def value(self, of: Feed, dtype: ElementType | None, what: str) -> DeviceValue: ...

    def zero(self, spans: Sequence[Span]) -> None: ...

    def copy(self, copies: Sequence[Copy]) -> None: ...


class DeviceRows:
    """Rows of one input, or of an output of the same shape, on the device (session.Rows). Zeroed at first.

    All changes are work on the session's stream: they come after the runs that were started before, and before those
    that are started later. A value of ``first`` shows the rows as they are when a run reads them.
    """

    def __init__(self, memory: RowMemory, held: HeldBlock, shape: Shape, dtype: ElementType) -> None:
        self._memory = memory
        self.held = held
        self.shape = shape
        self.dtype = dtype
        self._row_bytes = dtype.size_of(shape[1:])
        self._first: dict[int, DeviceValue] = {}
        memory.zero([Span(held.block, 0, self._row_bytes * shape[0])])

    def first(self, count: int) -> DeviceValue:
        """Rows [0, count), without a copy."""
        if count not in self._first:
            if not 0 <= count <= self.shape[0]:
                raise InvariantError(f"{count} rows of {self.shape[0]}")
            self._first[count] = DeviceValue(self.held, (count, *self.shape[1:]), self.dtype)
        return self._first[count]

    def put(self, row: int, value: Feed, index: int) -> None:
        """Replace a row by row ``index`` of a value; one of another device or the host goes there first."""
        self.put_all([(self, value)], [Move(row, index, 1)])

    def copy(self, row: int, source: int) -> None:
        """Replace a row by another one of these rows."""
        if row != source:
            self.put(row, self.first(self.shape[0]), source)

    def clear(self, row: int) -> None:
        """Set a row to zero."""
        self.clear_all([self], [Move(row, 0, 1)])

    def put_all(self, targets: Sequence[tuple[Rows, Feed]], moves: Sequence[Move]) -> None:
        """Change the rows of all ``targets``, each with its value, at once. No move reads what another one writes."""
        every = [(self._mate(rows), value) for rows, value in targets]
        # Held until the copies are on the stream: a block that is given back may be written by someone else.
        values = [rows._source(value) for rows, value in every]
        self._memory.copy(
            [
                Copy(
                    rows._span(move.row, move.length),
                    here.held.block,
                    rows._begin(move.source, move.length, here.shape[0]),
                )
                for (rows, _), here in zip(every, values, strict=True)
                for move in moves
            ]
        )

    def clear_all(self, targets: Sequence[Rows], moves: Sequence[Move]) -> None:
        """Set the rows that ``moves`` name to zero in all ``targets``, at once."""
        every = [self._mate(rows) for rows in targets]
        self._memory.zero([rows._span(move.row, move.length) for rows in every for move in moves])

    def _mate(self, rows: Rows) -> DeviceRows:
        if not isinstance(rows, DeviceRows) or rows._memory is not self._memory:
            raise InvariantError("rows of two sessions were to be changed at once")
        return rows

    def _source(self, value: Feed) -> DeviceValue:
        here = self._memory.value(value, self.dtype, "a row")
        if here.shape[1:] != self.shape[1:]:
            raise InvariantError(f"a row of {list(here.shape[1:])} was put into rows of {list(self.shape[1:])}")
        return here

    def _span(self, row: int, count: int) -> Span:
        return Span(self.held.block, self._begin(row, count, self.shape[0]), count * self._row_bytes)

    def _begin(self, row: int, count: int, rows: int) -> int:
        if not 0 <= row <= rows - count:
            raise InvariantError(f"row {row if row < 0 else row + count - 1} of {rows}")
        return row * self._row_bytes
