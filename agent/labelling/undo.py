"""Steps that a tab can undo: each is the changes of one save. In memory, by the tab's own name; a reload keeps them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from ..annotations.labels_file import AppliedChange, Change, PutRow, RemoveRow, row_key

MAX_TABS = 64  # the one that was used longest ago is forgotten
MAX_STEPS = 1000  # of a tab

Step = tuple[AppliedChange, ...]


@dataclass
class TabSteps:
    """Steps of one tab, the last at the end."""

    undo: list[Step] = field(default_factory=list)
    redo: list[Step] = field(default_factory=list)

    def note(self, step: Step) -> None:
        """Keep a new step, after which nothing can be redone."""
        if step:
            self.undo = [*self.undo, step][-MAX_STEPS:]
            self.redo.clear()


class UndoSteps:
    """Steps of every tab. Not for more than one thread at a time."""

    def __init__(self) -> None:
        self._tabs: OrderedDict[str, TabSteps] = OrderedDict()

    def of(self, tab: str) -> TabSteps:
        """Return the steps of a tab, none of a new one."""
        steps = self._tabs.setdefault(tab, TabSteps())
        self._tabs.move_to_end(tab)
        while len(self._tabs) > MAX_TABS:
            self._tabs.popitem(last=False)
        return steps

    def counts(self, tab: str) -> tuple[int, int]:
        """Return how many steps the tab can undo and redo. Makes no entry for an unknown tab."""
        steps = self._tabs.get(tab, TabSteps())
        return len(steps.undo), len(steps.redo)


def inverse(step: Step) -> list[Change]:
    """Return the changes that undo a step, the last one first; each expects the row that the step left."""
    changes: list[Change] = []
    for applied in reversed(step):
        before, after = applied.before, applied.after
        if before is not None:
            changes.append(PutRow(before, row_key(after) if after else None, after))
        elif after is not None:
            changes.append(RemoveRow(after.path, after.segment, after))
    return changes
