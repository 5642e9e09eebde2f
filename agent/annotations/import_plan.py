"""The outcome of an import before anything is written, and after it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from ...runtime.clip_records import seconds_text
from ..extraction.labels_table import LabelRow
from .annotation import EntryProblem
from .row_changes import AppliedChanges, Change, PutRow, RemoveRow
from .video_names import NameMatch

STATES = ("new", "changed", "equal", "conflicting")


@dataclass(frozen=True)
class Merged:
    """A clip of an annotation file, compared with the rows that there are."""

    state: str  # one of STATES
    row: LabelRow
    change: PutRow | None = None  # where it is new or changed


@dataclass
class ImportPlan:
    """Outcome of an import, before anything is written."""

    merged: list[Merged] = field(default_factory=list)
    matches: dict[tuple[str, str], NameMatch] = field(default_factory=dict)  # by annotation file and its video's name
    problems: list[EntryProblem] = field(default_factory=list)  # entries that are not used
    overlaps: list[EntryProblem] = field(default_factory=list)  # rows that are used, and share time with others
    notes: Counter[str] = field(default_factory=Counter)
    removals: list[RemoveRow] = field(default_factory=list)  # rows in whose place the file's are put
    others: list[LabelRow] = field(default_factory=list)  # labelled segments that the files lack, next to new ones
    others_sharing: int = 0  # those of ``others`` that share time with new segments

    @property
    def puts(self) -> list[PutRow]:
        """The rows that are written."""
        return [merged.change for merged in self.merged if merged.change is not None]

    @property
    def changes(self) -> list[Change]:
        """All changes, in the order in which they are applied."""
        return [*self.puts, *self.removals]

    @property
    def taken(self) -> bool:
        """True where labels.csv says, or will say, something that the files say."""
        return any(merged.state != "conflicting" for merged in self.merged)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the numbers of clips by label and state."""
        counts: dict[str, dict[str, int]] = {}
        for merged in self.merged:
            states = counts.setdefault(merged.row.label or "", dict.fromkeys(STATES, 0))
            states[merged.state] += 1
        return dict(sorted(counts.items()))

    def settle(self, done: AppliedChanges) -> None:
        """Note changes that were not applied, since someone changed the table after the plan was made."""
        refused = {id(conflict.change): conflict for conflict in done.conflicts}
        for number, merged in enumerate(self.merged):
            conflict = refused.get(id(merged.change))
            if conflict is not None:
                self.merged[number] = replace(merged, state="conflicting", change=None)
                self.problems.append(EntryProblem(shown_clip(merged.row), "conflict", conflict.reason))
        for removal in self.removals:
            if id(removal) in refused and removal.expected is not None:
                where = shown_clip(removal.expected)
                self.problems.append(
                    EntryProblem(where, "conflict", f"{refused[id(removal)].reason}: it is not removed")
                )
        self.removals = [removal for removal in self.removals if id(removal) not in refused]


def shown_clip(row: LabelRow) -> str:
    """Return the row's video and times for a message."""
    if row.segment is None:
        return row.path
    return f"{row.path} {seconds_text(row.segment.start_us)}–{seconds_text(row.segment.end_us)} s"


def who_says(row: LabelRow) -> str:
    """Return the place that gives the row its label, before that label in a message."""
    return f"labels.csv, line {row.line} is" if row.line else "the folder says"
