"""Holding out clips for evaluation: whole groups, so that no scene or person is on both sides."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..base.errors import InvariantError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Counts = Mapping[str, int]  # clips by label


def hold_out_groups(
    groups: Sequence[str | None],
    fraction: float,
    seed: int,
    labels: Sequence[str] | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Split N clips into (train, test): two int64 arrays of row numbers, ascending, each row in one.

    ``groups``: every clip's group; a clip whose group is None is a group of its own.
    ``fraction``: how much of every label's clips to hold out, about: 0 (nothing) to below 1.
    ``labels``: every clip's class; None treats all clips as of one class.

    - A group is on one side only.
    - Every label is in train, and in test too if whole groups allow it. (The one exception: when
      no group at all can be held out without taking a label from train, one is held out still.)
    - With two groups or more neither side is empty; with one, test is empty.
    - The split depends on the seed and on the groups' names and clips, not on the order of the
      clips (those without a group go by their row number).

    Raises UsageError on a fraction below 0 or not below 1, InvariantError when labels and groups
    differ in number.
    """
    import numpy as np

    if not 0.0 <= fraction < 1.0:
        raise UsageError(f"the share of clips to hold out is {fraction}, expected 0 or more and less than 1")
    if labels is not None and len(labels) != len(groups):
        raise InvariantError(f"hold_out_groups got {len(groups)} groups and {len(labels)} labels")
    keys = [("clip", str(row)) if group is None else ("group", group) for row, group in enumerate(groups)]
    counts: dict[tuple[str, str], Counter[str]] = {}
    for row, key in enumerate(keys):
        counts.setdefault(key, Counter())[labels[row] if labels is not None else ""] += 1
    order = sorted(counts, key=lambda key: hashlib.sha256(f"{seed}:{key[0]}:{key[1]}".encode()).digest())
    chosen = _choose([counts[key] for key in order], fraction) if fraction else frozenset()
    held_out = {order[place] for place in chosen}
    in_test = np.fromiter((key in held_out for key in keys), dtype=bool, count=len(keys))
    return np.flatnonzero(~in_test).astype(np.int64), np.flatnonzero(in_test).astype(np.int64)


def _choose(groups: Sequence[Counter[str]], fraction: float) -> frozenset[int]:
    """Which groups (by place) to hold out."""
    total: Counter[str] = Counter()
    for group in groups:
        total.update(group)
    wanted = {label: fraction * count for label, count in total.items()}
    held: Counter[str] = Counter()
    chosen: set[int] = set()
    # First towards the wanted number of clips per label, in the order given ...
    for place, group in enumerate(groups):
        if _leaves_every_label(group, held, total) and _overshoot(group, held, wanted) < 0:
            chosen.add(place)
            held.update(group)
    # ... then a group for each label that is not there yet, the one that overshoots least.
    for label in sorted(total):
        if held[label]:
            continue
        with_label = [place for place, group in enumerate(groups) if group[label]]
        able = [place for place in with_label if _leaves_every_label(groups[place], held, total)]
        if able:
            place = min(able, key=lambda place: _overshoot(groups[place], held, wanted))
            chosen.add(place)
            held.update(groups[place])
    if not chosen and len(groups) > 1:
        chosen = {min(range(len(groups)), key=lambda place: groups[place].total())}
    return frozenset(chosen)


def _leaves_every_label(group: Counts, held: Counts, total: Counts) -> bool:
    """Whether train still has every label when ``group`` is held out too."""
    return all(held[label] + count < total[label] for label, count in group.items())


def _overshoot(group: Counts, held: Counts, wanted: Mapping[str, float]) -> float:
    """By how many clips the test moves away from the wanted number per label (negative: nearer)."""
    return sum(
        abs(held[label] + count - wanted[label]) - abs(held[label] - wanted[label]) for label, count in group.items()
    )
