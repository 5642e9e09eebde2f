"""Hold out clips for evaluation by whole groups, so that no scene or person is on both sides."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...base.errors import InvariantError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Rows = npt.NDArray[np.int64]

Key = tuple[str, str]  # "group" and its name, or "clip" and its row number


def hold_out_groups(
    groups: Sequence[str | None],
    fraction: float,
    seed: int,
    labels: Sequence[str] | None = None,
) -> tuple[Rows, Rows]:
    """Split N clips into (train, test): two int64 arrays of row numbers, ascending, each row in one.

    ``groups``: every clip's group; a clip whose group is None is a group of its own.
    ``fraction``: the approximate share of every label's clips to hold out: 0 (nothing) to below 1.
    ``labels``: every clip's class; None treats all clips as of one class.

    - A group is on one side only.
    - Every label is in train, and in test too if whole groups allow it. (The one exception: when
      no group can be held out without removing a label from train, one is held out nevertheless.)
    - With two groups or more neither side is empty; with one, test is empty.
    - The split depends on the seed and on all groups' names and clips, not on the order of the
      clips (those without a group go by their row number). So a clip that comes or goes may move
      other groups to the other side.

    Raises UsageError on a fraction below 0 or not below 1, InvariantError when labels and groups
    differ in number.
    """
    import numpy as np

    _check(fraction)
    if labels is not None and len(labels) != len(groups):
        raise InvariantError(f"hold_out_groups got {len(groups)} groups and {len(labels)} labels")
    keys = [("clip", str(row)) if group is None else ("group", group) for row, group in enumerate(groups)]
    counts: dict[tuple[str, str], Counter[str]] = {}
    for row, key in enumerate(keys):
        counts.setdefault(key, Counter())[labels[row] if labels is not None else ""] += 1
    order = sorted(counts, key=lambda key: _drawn(seed, key))
    chosen = _choose([counts[key] for key in order], fraction) if fraction else frozenset()
    held_out = {order[place] for place in chosen}
    in_test = np.fromiter((key in held_out for key in keys), dtype=bool, count=len(keys))
    return _sides(in_test)


def hold_out_groups_independently(groups: Sequence[str], fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Split N clips into (train, test) like ``hold_out_groups``, each group by its name alone.

    A group is held out when the hash of seed and name, as a number from 0 to 1, is below ``fraction``: no clip that is
    added or removed moves another one to the other side, as differential privacy for every clip requires.

    The cost: the share is met on average only (with G groups of one size its standard deviation is
    √(fraction·(1 − fraction)/G)), and no label is certain to be on either side. With few groups a side may be empty,
    even train, so the caller has to check its size.

    Raises UsageError on a fraction below 0 or not below 1.
    """
    import numpy as np

    _check(fraction)
    below = fraction * 2.0**64
    held_out = {group for group in set(groups) if int.from_bytes(_drawn(seed, ("group", group))[:8]) < below}
    return _sides(np.fromiter((group in held_out for group in groups), dtype=bool, count=len(groups)))


def _check(fraction: float) -> None:
    if not 0.0 <= fraction < 1.0:
        raise UsageError(
            f"the share of clips to hold out is {fraction}, expected 0 or more and less than 1",
            fix="choose a share like 0.2",
        )


def _drawn(seed: int, key: Key) -> bytes:
    """Return 32 bytes that depend only on the seed and the group."""
    return hashlib.sha256(f"{seed}:{key[0]}:{key[1]}".encode()).digest()


def _sides(in_test: npt.NDArray[np.bool_]) -> tuple[Rows, Rows]:
    import numpy as np

    return np.flatnonzero(~in_test).astype(np.int64), np.flatnonzero(in_test).astype(np.int64)


def _choose(groups: Sequence[Counter[str]], fraction: float) -> frozenset[int]:
    """Choose the groups (by place) to hold out."""
    selection = _Selection(groups, fraction)
    # First towards the wanted number of clips per label, in the order given ...
    for place in range(len(groups)):
        if selection.leaves_every_label(place) and selection.overshoot(place) < 0:
            selection.add(place)
    # ... then a group for each label that is not there yet, the one that overshoots least.
    for label in sorted(selection.total):
        if not selection.held[label]:
            with_label = [place for place, group in enumerate(groups) if group[label]]
            able = [place for place in with_label if selection.leaves_every_label(place)]
            if able:
                selection.add(min(able, key=selection.overshoot))
    if not selection.chosen and len(groups) > 1:
        return frozenset({min(range(len(groups)), key=lambda place: groups[place].total())})
    return frozenset(selection.chosen)


class _Selection:
    """The groups chosen so far, and the clips by label: of all groups, wanted in the test set, and in it now."""

    def __init__(self, groups: Sequence[Counter[str]], fraction: float) -> None:
        self._groups = groups
        self.total: Counter[str] = Counter()
        for group in groups:
            self.total.update(group)
        self._wanted = {label: fraction * count for label, count in self.total.items()}
        self.held: Counter[str] = Counter()
        self.chosen: set[int] = set()

    def add(self, place: int) -> None:
        self.chosen.add(place)
        self.held.update(self._groups[place])

    def leaves_every_label(self, place: int) -> bool:
        """True when train still has every label if this group is held out too."""
        return all(self.held[label] + count < self.total[label] for label, count in self._groups[place].items())

    def overshoot(self, place: int) -> float:
        """Return by how many clips the test set moves away from the wanted number per label (negative: nearer)."""
        return sum(
            abs(self.held[label] + count - self._wanted[label]) - abs(self.held[label] - self._wanted[label])
            for label, count in self._groups[place].items()
        )
