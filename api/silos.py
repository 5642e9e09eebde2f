"""Features split over silos, with a test set of whole groups."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from ..agent.training.shared_frames import joined_groups
from ..base.errors import DataError, UsageError
from ..experiments.partition import LabelSkew, Partition, dirichlet, iid, label_skew
from ..experiments.recordings import silo_units, smallest_share, split_units
from .checks import finite_number, labelled_features, shown, whole_number
from .features import UNKNOWN, Features, union
from .text import table

PartitionName = Literal["dirichlet", "iid", "label-skew"]
PARTITIONS: tuple[PartitionName, ...] = get_args(PartitionName)
DEFAULT_BETA = 0.6
# A partition that is handed in: rows of each silo, from the features without the test, the number of silos and a
# random generator of the seed.
PartitionFunction = Callable[
    [Features, int, np.random.Generator], Sequence[Sequence[int] | npt.NDArray[np.integer[Any]]]
]


class Silos(Mapping[str, Features]):
    """Features of each silo by its name: a mapping, in order. ``silos[0]`` is the first one.

    Attributes:
        partition: The rows of each silo and the parameters of the split; None for a split of one's own.
    """

    def __init__(self, silos: Mapping[str, Features], partition: Partition | None = None) -> None:
        self._silos = dict(silos)
        self.partition = partition

    def __getitem__(self, name: str | int) -> Features:
        try:
            return self._silos[list(self._silos)[name] if isinstance(name, int) else name]
        except (KeyError, IndexError):
            raise UsageError(
                f"there is no silo {name!r}; there are {', '.join(self._silos)}", fix="choose one of those"
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._silos

    def __iter__(self) -> Iterator[str]:
        return iter(self._silos)

    def __len__(self) -> int:
        return len(self._silos)

    @property
    def union(self) -> Features:
        """All clips of all silos: the rows of centralised training."""
        return union(list(self._silos.values()))

    def __repr__(self) -> str:
        rows: list[tuple[object, ...]] = []
        for name, features in self._silos.items():
            counts = features.counts()
            most = max(counts, key=lambda label: counts[label], default="")
            share = f"{most} ({counts[most] / max(len(features), 1):.0%})" if most else ""
            rows.append((name, len(features), sum(count > 0 for count in counts.values()), share))
        return table(("silo", "clips", "classes", "largest class"), rows)


class Split(NamedTuple):
    """The result of ``split``: ``silos, test = fl.split(f)``.

    Attributes:
        silos: The training rows of each silo, called ``silo-1``, ``silo-2``, …
        test: The clips that were held out, by whole groups. No silo trains on them.
    """

    silos: Silos
    test: Features

    def __repr__(self) -> str:
        return f"{self.silos!r}\ntest: {self.test!r}"


def split(
    features: Features,
    silos: int = 4,
    *,
    beta: float | None = None,
    seed: int = 0,
    test: float = 0.2,
    partition: PartitionName | LabelSkew | PartitionFunction = "dirichlet",
    smallest: int | None = None,
) -> Split:
    """Hold out a test set by whole groups, and split the other clips over silos.

    Clips without a label are left out. The same arguments give the same split. Groups whose clips share frames of a
    recording count as one. The segments of a recording that are of one group go to one silo together; they are split
    as one row of their most frequent class, except by a function of one's own.

    Args:
        features: All clips.
        silos: The number of silos.
        beta: How alike the silos are with ``dirichlet``: each class is divided by shares from Dir(beta), so that a
            small number gives most of a class to one silo and a large one gives equal shares. 0.6 unless given.
        seed: Seed of the test set and of the split.
        test: About this share of each class is held out; 0 holds out nothing. A group is held out only if each class
            keeps clips in another one; where no group can be, one is nevertheless, with a warning.
        partition: ``dirichlet``; ``iid``: equal shares of shuffled rows; ``label-skew``: the paper's scaling
            approach 2, or a ``LabelSkew`` with its parameters. Or a function of one's own: it gets the features that
            are left, the number of silos and a ``numpy.random.Generator``, and returns the row numbers of each silo,
            or a mask for each.
        smallest: With ``dirichlet`` and ``iid``, the fewest rows of a silo (recordings, where they are segments).
            Unless given, an eighth of an equal share
            and at least 2 with ``dirichlet``, and 1 with ``iid``.

    Returns:
        Silos and test set.

    Raises:
        UsageError: An argument is of another type, out of range, or does not go with the partition.
        DataError: The clips cannot be split like this, or a partition of one's own returns rows that do not exist,
            gives a row twice or leaves a silo empty.
    """
    labelled_features("features", features, Features)
    silos, seed = whole_number("silos", silos, least=1, like=4), whole_number("seed", seed, least=0, like=0)
    test = finite_number("test", test, like=0.2)
    beta = None if beta is None else finite_number("beta", beta, like=DEFAULT_BETA)
    smallest = None if smallest is None else whole_number("smallest", smallest, least=1, like=2)
    labelled = features[features.y != UNKNOWN]
    if not len(labelled):
        raise DataError("no clip has a label", fix="label them by folder or labels.csv, and extract again")
    rest, held_out = _hold_out(labelled, test, seed)
    made: Partition | None = None
    if callable(partition):
        if beta is not None or smallest is not None:
            raise UsageError(
                f"{'smallest' if beta is None else 'beta'}: not with a partition of one's own",
                fix="leave it out, or use it in the function",
            )
        parts = _own_parts(partition, rest, silos, seed)
    else:
        made = _known_partition(partition, rest, silos, beta=beta, seed=seed, smallest=smallest)
        parts = list(made.silos)
    named = {f"silo-{number}": rest[rows] for number, rows in enumerate(parts, start=1)}
    return Split(Silos(named, made), held_out)


def _hold_out(features: Features, share: float, seed: int) -> tuple[Features, Features]:
    from ..agent.training.holdout import hold_out_groups

    groups = joined_groups(features.groups, features.extents)
    rest, held_out = hold_out_groups(groups, share, seed, labels=features.names)
    names = np.array(features.names)
    if lost := sorted(set(names[held_out]) - set(names[rest])):
        warnings.warn(
            f"all clips of {', '.join(lost)} are in the test set, because no group could be held out without that: "
            "no silo can learn them",
            stacklevel=3,
        )
    if share > 0 and not len(held_out):
        raise DataError(
            "all clips are of one group, so none can be held out",
            fix="use clips of two or more groups (scenes or persons), or test=0",
            code="one_group",
        )
    return features[rest], features[held_out]


def _known_partition(
    partition: PartitionName | LabelSkew,
    rest: Features,
    silos: int,
    *,
    beta: float | None,
    seed: int,
    smallest: int | None,
) -> Partition:
    name = "label-skew" if isinstance(partition, LabelSkew) else partition
    if not isinstance(name, str) or name not in PARTITIONS:
        raise UsageError(
            f"there is no partition {shown(name)}; known: {', '.join(PARTITIONS)}",
            fix="or hand in a function: partition=my_partition (docs/guides/python-api.md)",
        )
    if beta is not None and name != "dirichlet":
        raise UsageError(f"beta is a parameter of the partition dirichlet, not of {name}", fix="leave it out")
    if smallest is not None and name == "label-skew":
        raise UsageError("the partition label-skew has no smallest silo", fix="leave it out")

    def over_silos(y: npt.NDArray[np.int64]) -> Partition:
        if name == "label-skew":
            skew = partition if isinstance(partition, LabelSkew) else LabelSkew(most_silos=max(silos, 10))
            return label_skew(y, silos=silos, seed=seed, skew=skew)
        if name == "iid":
            return iid(len(y), silos=silos, seed=seed, smallest=1 if smallest is None else smallest)
        least = smallest_share(len(y), len(rest), silos) if smallest is None else smallest
        return dirichlet(y, silos=silos, beta=DEFAULT_BETA if beta is None else beta, seed=seed, smallest=least)

    return split_units(silo_units(rest.groups, rest.extents), rest.y, over_silos)


def _own_parts(partition: PartitionFunction, rest: Features, silos: int, seed: int) -> list[npt.NDArray[np.int64]]:
    """Return the rows of each silo from a function that was handed in, checked."""
    given = partition(rest, silos, np.random.Generator(np.random.PCG64(seed)))
    try:
        parts = [_row_numbers(np.asarray(rows), len(rest)) for rows in given]
    except (TypeError, ValueError) as error:
        raise _bad_partition(f"it returned {type(given).__name__}, expected the row numbers of each silo") from error
    if len(parts) != silos:
        raise _bad_partition(f"it returned {len(parts)} silos, expected {silos}")
    for number, rows in enumerate(parts, start=1):
        if rows.ndim != 1 or not rows.size or not np.issubdtype(rows.dtype, np.integer):
            raise _bad_partition(f"silo {number} got {rows.dtype}{list(rows.shape)}, expected one or more row numbers")
        if rows.min() < 0 or rows.max() >= len(rest):
            raise _bad_partition(f"silo {number} got rows {rows.min()} to {rows.max()}, expected 0 to {len(rest) - 1}")
    if len(np.unique(np.concatenate(parts))) < sum(map(len, parts)):
        raise _bad_partition("a row is in it twice")
    return [np.sort(rows).astype(np.int64) for rows in parts]


def _row_numbers(rows: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    """Return the row numbers of a mask over all rows, and anything else as it is."""
    return np.flatnonzero(rows) if rows.dtype == bool and rows.shape == (count,) else rows


def _bad_partition(problem: str) -> DataError:
    return DataError(
        f"the partition that was handed in: {problem}",
        fix="return one list of row numbers for each silo, [[0, 2], [1, 3]], or one mask over all rows",
        code="bad_partition",
    )
