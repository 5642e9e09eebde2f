"""An attacker's beliefs about a clip: before asking (``Prior``), and of one number while reports come in (``Belief``).

Directions are orthonormal and the clip's values along them are taken as independent, so each has a belief of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
POINTS = 241  # of a belief's grid
REACH = 5.0  # standard deviations to either side of the mean that a grid covers


@dataclass(frozen=True, eq=False)
class Prior:
    """Mean and spread of clips, from clips of the attacker's own."""

    mean: Array  # float64 [D]
    directions: Array  # float64 [D, D], orthonormal rows, the widest first
    deviations: Array  # float64 [D], standard deviation along each direction
    floor: Array  # float64 [D], the smallest value that any dimension takes

    @classmethod
    def of(cls, x: Array, *, rotated: bool) -> Prior:
        """Learn from clips ``x`` [n, D]; ``rotated``: principal components, otherwise the dimensions as they are."""
        x = x.astype(np.float64)
        mean, floor = x.mean(axis=0), x.min(axis=0)
        if not rotated:
            order = np.argsort(-x.std(axis=0), kind="stable")
            return cls(mean, np.eye(x.shape[1])[order], x.std(axis=0)[order], floor)
        _, sizes, directions = np.linalg.svd(x - mean, full_matrices=True)
        deviations = np.zeros(x.shape[1])
        deviations[: len(sizes)] = sizes / np.sqrt(len(x))
        # Clips of one's own span few directions: what others have beyond them is guessed from the narrowest ones.
        narrow = np.sqrt(np.mean(deviations[len(sizes) // 2 : len(sizes)] ** 2))
        return cls(mean, directions, np.maximum(deviations, narrow / 2), floor)


class Belief:
    """Probabilities of one number, on a grid that narrows as reports come in."""

    def __init__(self, grid: Array, weights: Array) -> None:
        self._grid, self._weights = grid, weights / weights.sum()
        self.mean = float(grid @ self._weights)
        self.deviation = float(np.sqrt(max((grid - self.mean) ** 2 @ self._weights, 0.0)))

    @classmethod
    def normal(cls, mean: float, deviation: float) -> Belief:
        grid = np.linspace(mean - REACH * deviation, mean + REACH * deviation, POINTS)
        return cls(grid, np.exp(-0.5 * ((grid - mean) / deviation) ** 2))

    @classmethod
    def above(cls, bound: float, scale: float) -> Belief:
        """Belief that the number is above ``bound``, by about ``scale``."""
        grid = np.linspace(bound, bound + 4 * scale, POINTS)
        return cls(grid, np.exp(-(grid - bound) / scale))

    @classmethod
    def certain(cls, value: float) -> Belief:
        return cls(np.array([value]), np.ones(1))

    def after(self, likelihood: Callable[[Array], Array]) -> Belief:
        """Return the belief after a report of that likelihood; unchanged when the report fits nothing believed."""
        weights = self._weights * likelihood(self._grid)
        if not weights.sum() > 0 or len(self._grid) < 2:
            return self
        seen = Belief(self._grid, weights)
        reach = max(REACH * seen.deviation, self._grid[1] - self._grid[0])
        fine = np.linspace(max(seen.mean - reach, self._grid[0]), min(seen.mean + reach, self._grid[-1]), POINTS)
        before = np.interp(fine, self._grid, self._weights)
        found = before * likelihood(fine)
        return Belief(fine, found) if found.sum() > 0 else seen
