"""A bounded queue between two stages of an extraction (stages.py)."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class QueueClosed(Exception):
    """The stages are ending."""


class BoundedQueue(Generic[T]):
    """A bounded queue between two threads. Closed, it wakes both with QueueClosed."""

    def __init__(self, size: int) -> None:
        self._items: list[T] = []
        self._size = size
        self._changed = threading.Condition()
        self._waits = self._closed = False

    @property
    def starving(self) -> bool:
        """True when the receiver waits and there is nothing for it."""
        return self._waits and not self._items

    def put(self, item: T) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._size)
            self._check_open()
            self._items.append(item)
            self._changed.notify_all()

    def get(self) -> T:
        with self._changed:
            self._waits = True
            self._changed.wait_for(lambda: self._closed or self._items)
            self._waits = False
            self._check_open()
            self._changed.notify_all()
            return self._items.pop(0)

    def poll(self) -> T | None:
        """An item if there is one."""
        with self._changed:
            self._check_open()
            if not self._items:
                return None
            self._changed.notify_all()
            return self._items.pop(0)

    def wait(self, timeout_s: float) -> None:
        """Wait for an item, or for ``timeout_s``."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._items, timeout_s)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _check_open(self) -> None:
        if self._closed:
            raise QueueClosed
