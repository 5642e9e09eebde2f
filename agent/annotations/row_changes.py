"""Changes of rows of a ``labels.csv``, and what each of them does to the table.

A change that meets another row than its caller saw is a conflict: it is returned, never applied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...base.errors import printable
from ...runtime.clip_records import Segment
from ..extraction.labels_table import LabelRow
from .table_text import Record, RowKey, TableText, clean_path, row_key


def same_row(one: LabelRow | None, other: LabelRow | None) -> bool:
    """Return True for rows that say the same, wherever in the file they are."""
    if one is None or other is None:
        return one is other
    return replace(one, line=0, path=clean_path(one.path)) == replace(other, line=0, path=clean_path(other.path))


@dataclass(frozen=True)
class PutRow:
    """Add ``row``, or write it in the place of the row known by ``replaces``."""

    row: LabelRow  # its line is not used
    replaces: RowKey | None = None  # None: there is no row of this path and segment yet
    expected: LabelRow | None = None  # with ``replaces``: the row that is there, as the caller saw it; None: any


@dataclass(frozen=True)
class RemoveRow:
    """Remove the row of this path and segment."""

    path: str
    segment: Segment | None
    expected: LabelRow | None = None  # the row as the caller saw it; None: any


Change = PutRow | RemoveRow


@dataclass(frozen=True)
class AppliedChange:
    """A change that is in the file now; ``before`` and ``after`` are what an undo needs."""

    change: Change
    before: LabelRow | None  # None: the row is new
    after: LabelRow | None  # None: the row was removed


@dataclass(frozen=True)
class ChangeConflict:
    """A change that was not applied.

    ``code``: ``missing`` (the row that it replaces or removes is not there), ``changed`` (it is another one than
    ``expected``), ``exists`` (another row has this path and segment), ``invalid`` (the row cannot be in a table).
    """

    change: Change
    code: str
    reason: str  # a sentence for the person
    found: LabelRow | None  # the row that is there


@dataclass(frozen=True)
class AppliedChanges:
    """The result of ``LabelsFile.apply``."""

    revision: str  # of the file as it is now
    applied: tuple[AppliedChange, ...]  # changes to what the file says already are among them
    conflicts: tuple[ChangeConflict, ...]
    written: bool  # False where the file says all of it already
    unlisted: tuple[str, ...] = ()  # clips whose names cannot be in a table, when the file was made


def paths_with_segments(changes: Sequence[Change]) -> set[str]:
    """Return the files that get segments, but those whose row a change replaces itself."""
    puts = [change for change in changes if isinstance(change, PutRow)]
    replaced = {clean_path(change.replaces[0]) for change in puts if change.replaces is not None}
    return {clean_path(change.row.path) for change in puts if change.row.segment is not None} - replaced


def change_table(
    table: TableText, changes: Sequence[Change]
) -> tuple[tuple[AppliedChange, ...], tuple[ChangeConflict, ...]]:
    """Apply the changes to the table, in their order; return those that are in it now, and those that are not."""
    applied: list[AppliedChange] = []
    conflicts: list[ChangeConflict] = []
    for change in changes:
        result = _put(table, change) if isinstance(change, PutRow) else _remove(table, change)
        if isinstance(result, ChangeConflict):
            conflicts.append(result)
        else:
            applied.append(result)
    return tuple(applied), tuple(conflicts)


def _put(table: TableText, change: PutRow) -> AppliedChange | ChangeConflict:
    found = table.find(row_key(change.row))
    if problem := table.problem(change.row):
        return ChangeConflict(change, "invalid", problem, None)
    done = found is not None and same_row(found.row, change.row)  # by a call whose answer was lost, for one
    if found is not None and done and (not change.replaces or table.find(_clean(change.replaces)) in (None, found)):
        return AppliedChange(change, found.row, found.row)
    if change.replaces is None:
        return _exists(change, found) if found else AppliedChange(change, None, table.insert(change.row).row)
    key = _clean(change.replaces)
    old = table.find(key)
    if old is None:
        return ChangeConflict(change, "missing", f"the row {_shown(key)} is no longer there", None)
    if change.expected is not None and not same_row(old.row, change.expected):
        return ChangeConflict(change, "changed", f"the row {_shown(key)} was changed meanwhile", old.row)
    if found is not None and found is not old:
        return _exists(change, found)
    return AppliedChange(change, old.row, table.rewrite(old, change.row).row)


def _remove(table: TableText, change: RemoveRow) -> AppliedChange | ChangeConflict:
    key = _clean((change.path, change.segment))
    found = table.find(key)
    if found is None:
        return ChangeConflict(change, "missing", f"the row {_shown(key)} is no longer there", None)
    if change.expected is not None and not same_row(found.row, change.expected):
        return ChangeConflict(change, "changed", f"the row {_shown(key)} was changed meanwhile", found.row)
    row = found.row
    table.remove(found)
    return AppliedChange(change, row, None)


def _clean(key: RowKey) -> RowKey:
    return clean_path(key[0]), key[1]


def _exists(change: PutRow, found: Record) -> ChangeConflict:
    label = found.row.label if found.row else None
    there = f"with the label {printable(label)}" if label else "without a label"
    return ChangeConflict(change, "exists", f"{_shown(row_key(change.row))} has a row already, {there}", found.row)


def _shown(key: RowKey) -> str:
    path, segment = key
    return printable(path if segment is None else f"{path}#{segment}")
