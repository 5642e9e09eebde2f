"""Bilinear resizing without antialiasing, as PyTorch's ``interpolate``, of the part that a centre crop keeps.

Each value is ``(a (1 - d) + b d) (1 - r) + (c (1 - d) + e d) r`` in float32, rounded after every operation, rows first:
the bits are part of an embedding's meaning. Work is in blocks of rows that fit the processor's cache, over buffers that
are made once: new memory for every frame takes longer than the arithmetic.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

BLOCK_ROWS = 64  # of the result; with 256 columns of three colours, 200 kB in each buffer
Indices = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float32]


class BilinearScaler:
    """Resizes frames of one size. One thread at a time.

    ``source``: height and width of the frames; ``resized``: the same before the crop to ``size`` × ``size``.
    """

    def __init__(self, source: tuple[int, int], resized: tuple[int, int], size: int) -> None:
        upper, lower, down = _taps(source[0], resized[0], size)
        before, after, right = _taps(source[1], resized[1], size)
        self._size = size
        self._used = slice(int(before[0]), int(after[-1]) + 1)  # columns
        width = self._used.stop - self._used.start
        self._upper, self._lower = upper, lower
        self._up, self._down = (1 - down)[:, None], down[:, None]
        self._before, self._after = (_colours(columns - self._used.start) for columns in (before, after))
        self._towards, self._right = np.repeat(1 - right, 3), np.repeat(right, 3)
        # Where most columns are skipped, they are picked before the arithmetic.
        self._picked = np.concatenate([self._before, self._after]) if width > 2 * size else None
        rows, columns = min(BLOCK_ROWS, size), 3 * min(width, 2 * size)
        self._rows, self._other_rows = (np.empty((rows, columns), np.float32) for _ in range(2))
        self._block, self._other_block = (np.empty((rows, 3 * size), np.float32) for _ in range(2))

    def fractions(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """A frame uint8 [H, W, 3] as float32 [size, size, 3], values 0 to 255."""
        return self._resized(frame, np.dtype(np.float32))

    def whole_bytes(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The same rounded to uint8, halves to even."""
        return self._resized(frame, np.dtype(np.uint8))

    def _resized(self, frame: npt.NDArray[np.uint8], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        used = frame[:, self._used]
        result = np.empty((self._size, 3 * self._size), dtype)
        for start in range(0, self._size, BLOCK_ROWS):
            part = slice(start, min(start + BLOCK_ROWS, self._size))
            block = self._resized_rows(used, part)
            if dtype == np.uint8:
                np.rint(block, out=block)
            np.copyto(result[part], block, casting="unsafe")
        return result.reshape(self._size, self._size, 3)

    def _resized_rows(self, used: npt.NDArray[np.uint8], part: slice) -> npt.NDArray[np.float32]:
        """Rows ``part`` of the result, float32 [rows, 3 size]; overwritten by the next call."""
        count = part.stop - part.start
        rows, other = self._rows[:count], self._other_rows[:count]
        np.multiply(self._read(used, self._upper[part]), self._up[part], out=rows)
        np.multiply(self._read(used, self._lower[part]), self._down[part], out=other)
        rows += other
        if self._picked is not None:
            block, other = rows[:, : 3 * self._size], rows[:, 3 * self._size :]
        else:
            # "clip" checks nothing, as the indices are right, and lets NumPy write to ``out`` directly.
            block = rows.take(self._before, axis=1, out=self._block[:count], mode="clip")
            other = rows.take(self._after, axis=1, out=self._other_block[:count], mode="clip")
        block *= self._towards
        other *= self._right
        block += other
        return block

    def _read(self, used: npt.NDArray[np.uint8], rows: Indices) -> npt.NDArray[np.uint8]:
        """These rows of a frame, uint8 [rows, 3 columns]."""
        read = used[rows].reshape(len(rows), -1)
        return read if self._picked is None else read.take(self._picked, axis=1)


def crop_start(length: int, size: int) -> int:
    return round((length - size) / 2.0)  # torchvision's rounding: halves to even


def _colours(columns: Indices) -> Indices:
    """Index of each column's three values."""
    return (columns[:, None] * 3 + np.arange(3)).ravel()


def _taps(source: int, target: int, size: int) -> tuple[Indices, Indices, Weights]:
    """Per kept output position: the two source positions and the second one's weight."""
    start = crop_start(target, size)
    scale = np.float32(source / target)
    position = (np.arange(start, start + size, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    position = np.maximum(position, np.float32(0.0))
    first = np.minimum(position.astype(np.int64), source - 1)
    second = np.minimum(first + 1, source - 1)
    return first, second, (position - first).astype(np.float32)
