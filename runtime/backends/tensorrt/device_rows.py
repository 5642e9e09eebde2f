"""Rows of a batch on a GPU that are replaced one by one."""

from __future__ import annotations

from typing import Protocol

from ....base.errors import InvariantError
from ..element_types import ElementType
from ..session import Feed, Shape
from .cuda_device import DeviceValue, HeldBlock
from .cuda_memory import Block


class RowMemory(Protocol):
    """The part of SessionMemory that rows need."""

    def value(self, of: Feed, dtype: ElementType | None, what: str) -> DeviceValue: ...

    def zero(self, block: Block, offset: int, size: int) -> None: ...

    def copy(self, to: Block, to_offset: int, source: Block, source_offset: int, size: int) -> None: ...


class DeviceRows:
    """Rows of one input, or of an output of the same shape, on the device (session.Rows). Zeroed at first.

    ``put``, ``copy`` and ``clear`` are work on the session's stream: they come after the runs that were started
    before, and before those that are started later. A value of ``first`` shows the rows as they are when a run reads
    them.
    """

    def __init__(self, memory: RowMemory, held: HeldBlock, shape: Shape, dtype: ElementType) -> None:
        self._memory = memory
        self.held = held
        self.shape = shape
        self.dtype = dtype
        self._row_bytes = dtype.size_of(shape[1:])
        self._first: dict[int, DeviceValue] = {}
        memory.zero(held.block, 0, self._row_bytes * shape[0])

    def first(self, count: int) -> DeviceValue:
        """Rows [0, count), without a copy."""
        if count not in self._first:
            if not 0 <= count <= self.shape[0]:
                raise InvariantError(f"{count} rows of {self.shape[0]}")
            self._first[count] = DeviceValue(self.held, (count, *self.shape[1:]), self.dtype)
        return self._first[count]

    def put(self, row: int, value: Feed, index: int) -> None:
        """Replace a row by row ``index`` of a value; one of another device or the host goes there first."""
        here = self._memory.value(value, self.dtype, "a row")
        if here.shape[1:] != self.shape[1:]:
            raise InvariantError(f"a row of {list(here.shape[1:])} was put into rows of {list(self.shape[1:])}")
        self._copy_row(row, here.held.block, index, here.shape[0])

    def copy(self, row: int, source: int) -> None:
        """Replace a row by another one of these rows."""
        if row != source:
            self._copy_row(row, self.held.block, source, self.shape[0])

    def clear(self, row: int) -> None:
        """Set a row to zero."""
        self._memory.zero(self.held.block, self._offset(row, self.shape[0]), self._row_bytes)

    def _copy_row(self, row: int, block: Block, source: int, source_rows: int) -> None:
        to, begin = self._offset(row, self.shape[0]), self._offset(source, source_rows)
        self._memory.copy(self.held.block, to, block, begin, self._row_bytes)

    def _offset(self, row: int, rows: int) -> int:
        if not 0 <= row < rows:
            raise InvariantError(f"row {row} of {rows}")
        return row * self._row_bytes
