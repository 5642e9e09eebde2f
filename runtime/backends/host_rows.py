"""Rows in host memory, for the sessions that compute there (session.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .session import Array, Shape, Value


class HostRows:
    """Rows (session.py) over one array. ``borrow``: the session's, a Value over an array's own memory.

    ``view``: an array of a Value of the session, without a copy where there is a way.
    """

    def __init__(
        self,
        shape: Shape,
        dtype: npt.DTypeLike,
        *,
        borrow: Callable[[Array], Value],
        view: Callable[[Value], npt.NDArray[Any]] = lambda value: value.numpy(),
    ) -> None:
        self.array = np.zeros(shape, dtype)
        self._borrow, self._view = borrow, view
        self._first: dict[int, Value] = {}

    @property
    def shape(self) -> Shape:
        return self.array.shape

    def first(self, count: int) -> Value:
        if count not in self._first:
            self._first[count] = self._borrow(self.array[:count])
        return self._first[count]

    def only(self, row: int) -> Value:
        """One row without a copy, as a batch of one. Valid as long as this object."""
        return self._borrow(self.array[row : row + 1])

    def put(self, row: int, value: Value, index: int) -> None:
        self.array[row] = self._view(value)[index]

    def copy(self, row: int, source: int) -> None:
        self.array[row] = self.array[source]

    def clear(self, row: int) -> None:
        self.array[row] = 0
