"""Splitting a data set over silos: non-IID by a Dirichlet draw, or IID.

Both give every row to exactly one silo, and the same seed gives the same split. Whole groups are
held out for the test with ``flamest.agent.holdout.hold_out_groups`` before the rest is split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..base.errors import DataError, UsageError

MOST_DRAWS = 10_000  # of a Dirichlet split that shall leave no silo too small

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Partition:
    """Who got which rows, and all that is needed to make the same split again."""

    silos: tuple[Rows, ...]  # each int64 [n_i], ascending; together 0 … N - 1, each once
    scheme: Literal["dirichlet", "iid"]
    beta: float | None  # of the Dirichlet distribution; None for iid
    seed: int
    smallest: int  # rows that every silo was to have at least
    draws: int  # how often the split was drawn until every silo had them

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows per silo."""
        return tuple(len(rows) for rows in self.silos)


def dirichlet(
    labels: Sequence[str] | Sequence[int] | npt.NDArray[np.generic],
    *,
    silos: int,
    beta: float = 0.6,
    seed: int,
    smallest: int = 1,
) -> Partition:
    """Non-IID: each class is shared out by its own p ~ Dir(beta · 1) over the silos.

    Hsu et al. 2019, https://arxiv.org/abs/1909.06335, drawn per class as in the paper's
    experiments (NOTES decision 7). A small ``beta`` gives most of a class to one silo; a large one
    comes near equal shares. The whole split is drawn again, from the seed's next stream, until
    every silo has ``smallest`` rows.

    ``labels``: the class of each of N rows. Raises UsageError on ``silos`` or ``beta`` not above
    0, DataError when N rows cannot give every silo ``smallest`` (at all, or in MOST_DRAWS draws).
    """
    if not beta > 0:
        raise UsageError(f"beta of the Dirichlet split is {beta}, expected a number above 0")
    classes = np.unique(np.asarray(labels), return_inverse=True)[1]
    _check_enough(len(classes), silos, smallest)
    for draw in range(MOST_DRAWS):
        parts = _draw_dirichlet(classes, silos, beta, _stream(seed, draw))
        if min(len(part) for part in parts) >= smallest:
            return Partition(parts, "dirichlet", beta, seed, smallest, draw + 1)
    raise DataError(
        f"no Dirichlet split with beta {beta} in {MOST_DRAWS} draws gave each of {silos} silos {smallest} of the "
        f"{len(classes)} clips",
        fix="use fewer silos, a larger beta or a lower minimum",
    )


def iid(rows: int, *, silos: int, seed: int, smallest: int = 1) -> Partition:
    """IID: ``rows`` row numbers shuffled and dealt out, silo sizes differing by one at most.

    Raises UsageError on ``silos`` not above 0, DataError when a silo would get fewer than
    ``smallest`` rows.
    """
    _check_enough(rows, silos, smallest)
    dealt = np.array_split(_stream(seed, 0).permutation(rows), silos)
    return Partition(tuple(np.sort(part).astype(np.int64) for part in dealt), "iid", None, seed, smallest, 1)


def _draw_dirichlet(
    classes: npt.NDArray[np.int64], silos: int, beta: float, random: np.random.Generator
) -> tuple[Rows, ...]:
    shares: list[list[Rows]] = [[] for _ in range(silos)]
    for number in range(int(classes.max()) + 1):
        rows = random.permutation(np.flatnonzero(classes == number))
        # The last cut is left out: what rounding leaves over belongs to the last silo.
        cuts = np.rint(np.cumsum(random.dirichlet(np.full(silos, beta)))[:-1] * len(rows)).astype(np.int64)
        for share, part in zip(shares, np.split(rows, cuts), strict=True):
            share.append(part)
    return tuple(np.sort(np.concatenate(share)).astype(np.int64) for share in shares)


def _check_enough(rows: int, silos: int, smallest: int) -> None:
    if silos < 1:
        raise UsageError(f"a data set cannot be split over {silos} silos, expected at least 1")
    if rows < max(silos * smallest, 1):
        raise DataError(
            f"{rows} clips cannot give each of {silos} silos {smallest} or more",
            fix="use fewer silos, more clips or a lower minimum",
        )


def _stream(seed: int, draw: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(draw,))))
