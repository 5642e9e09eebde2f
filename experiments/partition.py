"""Split of a data set over silos: non-IID by a Dirichlet draw, IID, or by the paper's scaling approach 2.

The first two give every row to exactly one silo, the third leaves some rows unused; the same seed gives
the same split. Whole groups are held out for the test with
``flamest.agent.training.holdout.hold_out_groups`` before the rest is split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..base.errors import DataError, UsageError

MAX_DRAWS = 10_000  # of a Dirichlet split until no silo is too small
IMPOSSIBLE = "impossible_split"  # code of every DataError here: the same clips would fail again

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LabelSkew:
    """Parameters of the paper's scaling approach 2 (section 6.4), which are in a supplement that we do not have.

    A class of n rows has u = n // ``most_silos`` rows for each silo, for any number of silos: samples per class
    and silo stay fixed as silos are added.
    """

    most_silos: int = 10  # the largest federation of the comparison
    base: float = 0.5  # share of u that every silo gets of every class
    alpha: float = 2.0  # the class's proportion of the rest is drawn from Beta(alpha, beta)
    beta: float = 2.0
    takers: float = 0.5  # probability that a silo takes a part of a class's rest (Bernoulli)


@dataclass(frozen=True, eq=False)
class Partition:
    """Rows of each silo, and the parameters that give the same split again."""

    silos: tuple[Rows, ...]  # each int64 [n_i], ascending; no row twice, and none missing except by label_skew
    scheme: Literal["dirichlet", "iid", "label-skew"]
    beta: float | None  # of the Dirichlet distribution; None for iid
    seed: int
    smallest: int  # minimum number of rows of every silo
    draws: int  # number of draws until every silo had them
    skew: LabelSkew | None = None  # of label-skew
    unused: int = 0  # rows of no silo

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
    """Non-IID split: each class is divided over the silos by its own p ~ Dir(beta · 1).

    Hsu et al. 2019, https://arxiv.org/abs/1909.06335, drawn per class as in the paper's
    experiments (docs/paper.md, reading 7). A small ``beta`` gives most of a class to one silo; a large one
    gives nearly equal shares. The whole split is drawn again, from the seed's next stream, until every silo
    has ``smallest`` rows.

    ``labels``: the class of each of N rows. Raises UsageError on ``silos`` or ``beta`` not above
    0, DataError when N rows cannot give every silo ``smallest`` (at all, or in MAX_DRAWS draws).
    """
    if not beta > 0:
        raise UsageError(
            f"beta of the Dirichlet split is {beta}, expected a number above 0", fix="choose a beta like 0.6"
        )
    classes = np.unique(np.asarray(labels), return_inverse=True)[1]
    _check_enough(len(classes), silos, smallest)
    for draw in range(MAX_DRAWS):
        parts = _draw_dirichlet(classes, silos, beta, _stream(seed, draw))
        if min(len(part) for part in parts) >= smallest:
            return Partition(parts, "dirichlet", beta, seed, smallest, draw + 1)
    raise DataError(
        f"no Dirichlet split with beta {beta} in {MAX_DRAWS} draws gave each of {silos} silos {smallest} of the "
        f"{len(classes)} clips",
        fix="use fewer silos, a larger beta or a lower minimum",
        code=IMPOSSIBLE,
    )


def eighth_of_even_share(rows: int, silos: int) -> int:
    """Return the fewest rows of a silo where nothing else is set: an eighth of an even share, and at least 2."""
    return max(2, rows // (8 * silos))


def iid(rows: int, *, silos: int, seed: int, smallest: int = 1) -> Partition:
    """IID split of ``rows`` shuffled row numbers; silo sizes differ by one at most.

    Raises UsageError on ``silos`` not above 0, DataError when a silo would get fewer than
    ``smallest`` rows.
    """
    _check_enough(rows, silos, smallest)
    parts = np.array_split(_stream(seed, 0).permutation(rows), silos)
    return Partition(tuple(np.sort(part).astype(np.int64) for part in parts), "iid", None, seed, smallest, 1)


def label_skew(
    labels: Sequence[str] | Sequence[int] | npt.NDArray[np.generic],
    *,
    silos: int,
    seed: int,
    skew: LabelSkew = LabelSkew(),
) -> Partition:
    """Non-IID split with a fixed size per class and silo: the paper's scaling approach 2 (section 6.4).

    Each silo first gets b = base · u rows of every class, u = n // most_silos. If b is not a whole number, a
    silo has b rounded down and, with the probability of the remainder, one row more. Of the remaining
    silos · u − (rows given) a share p ~ Beta goes in equal parts to the class's takers: the silos with a
    positive Bernoulli draw (a random one if there is none). So a silo has on average b + E[p] · (u − b) rows of a
    class, for 4 silos as for 10; further rows stay unused. A silo may lack a class where b is below 1; every silo
    has at least 1 row in all. docs/guides/experiments.md says why.

    ``labels``: the class of each of N rows. Raises UsageError on parameters out of range and on more silos
    than ``most_silos``, DataError when a class is too small (u is 0) or a silo gets no row.
    """
    _check_skew(skew, silos)
    classes = np.unique(np.asarray(labels), return_inverse=True)[1]
    random = _stream(seed, 0)
    shares: list[list[Rows]] = [[] for _ in range(silos)]
    for number in range(int(classes.max(initial=-1)) + 1):
        rows = random.permutation(np.flatnonzero(classes == number))
        unit = len(rows) // skew.most_silos
        if unit < 1:
            raise DataError(
                f"a class of {len(rows)} clips cannot give each of {skew.most_silos} silos one",
                fix="use more clips, or fewer silos at most",
                code=IMPOSSIBLE,
            )
        whole, part_of_row = divmod(skew.base * unit, 1)
        sizes = int(whole) + (random.random(silos) < part_of_row).astype(np.int64)
        quota = round(random.beta(skew.alpha, skew.beta) * (silos * unit - int(sizes.sum())))
        takers = np.flatnonzero(random.random(silos) < skew.takers)
        takers = takers if len(takers) else random.integers(silos, size=1)
        sizes[takers] += quota // len(takers)
        sizes[takers[: quota % len(takers)]] += 1
        for share, part in zip(shares, np.split(rows, np.cumsum(sizes))[:-1], strict=True):
            share.append(part)
    parts = tuple(np.sort(np.concatenate([*share, np.empty(0, np.int64)])).astype(np.int64) for share in shares)
    _check_enough(len(classes), silos, 1)
    if not all(len(part) for part in parts):
        raise DataError(
            f"the label-skew split with base {skew.base} left one of {silos} silos without a clip",
            fix="use a larger base, more clips or another seed",
            code=IMPOSSIBLE,
        )
    unused = len(classes) - sum(len(part) for part in parts)
    return Partition(parts, "label-skew", None, seed, 1, 1, skew, unused)


def _check_skew(skew: LabelSkew, silos: int) -> None:
    if not 1 <= silos <= skew.most_silos:
        raise UsageError(
            f"{silos} silos, expected 1 to {skew.most_silos} (most_silos of the label-skew split)",
            fix="choose fewer silos, or a larger most_silos",
        )
    if not (0 <= skew.base <= 1 and 0 < skew.takers <= 1 and skew.alpha > 0 and skew.beta > 0):
        raise UsageError(
            f"label-skew split with base {skew.base}, takers {skew.takers}, Beta({skew.alpha}, {skew.beta}): expected "
            "base 0 to 1, takers above 0 to 1, and both numbers of Beta above 0",
            fix="leave these numbers out for those of the paper",
        )


def _draw_dirichlet(
    classes: npt.NDArray[np.int64], silos: int, beta: float, random: np.random.Generator
) -> tuple[Rows, ...]:
    shares: list[list[Rows]] = [[] for _ in range(silos)]
    for number in range(int(classes.max()) + 1):
        rows = random.permutation(np.flatnonzero(classes == number))
        # Without the last cut: the remainder of rounding belongs to the last silo.
        cuts = np.rint(np.cumsum(random.dirichlet(np.full(silos, beta)))[:-1] * len(rows)).astype(np.int64)
        for share, part in zip(shares, np.split(rows, cuts), strict=True):
            share.append(part)
    return tuple(np.sort(np.concatenate(share)).astype(np.int64) for share in shares)


def _check_enough(rows: int, silos: int, smallest: int) -> None:
    if silos < 1:
        raise UsageError(
            f"a data set cannot be split over {silos} silos, expected at least 1", fix="choose 1 or more silos"
        )
    if rows < max(silos * smallest, 1):
        raise DataError(
            f"{rows} clips cannot give each of {silos} silos {smallest} or more",
            fix="use fewer silos, more clips or a lower minimum",
            code=IMPOSSIBLE,
        )


def _stream(seed: int, draw: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(draw,))))
