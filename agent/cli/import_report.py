"""The outcome of ``import-labels``: as ``--json`` prints it, and as a person reads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...base.console import counted, say

if TYPE_CHECKING:
    from ...base.errors import DataError
    from ..annotations.import_files import ImportResult
    from ..annotations.import_plan import ImportPlan

MAX_SHOWN = 20  # lines of a kind


def nothing_taken(plan: ImportPlan, files: Sequence[Path]) -> DataError | None:
    """Return the error of an import of which nothing is in labels.csv, and None where something is."""
    from ...base.errors import DataError

    if plan.taken or plan.changes:
        return None
    which = "the file" if len(files) == 1 else "the files"
    if not plan.problems:
        return DataError(
            f"{which} {'has' if len(files) == 1 else 'have'} no label of a segment or of a whole video",
            fix="label videos in the tool, and export them again",
            code="no_annotations",
        )
    names = {"unknown_video", "ambiguous_video"} & {problem.code for problem in plan.problems}
    also = "; names of videos must be those of files below --videos" if names else ""
    return DataError(
        f"no label of {which} was taken over",
        fix=f"see 'not taken over', problems in --json: it has the reason of each{also}",
        code="no_annotations",
    )


def import_result(done: ImportResult, *, dry_run: bool) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    from ..annotations.import_plan import STATES

    plan = done.plan
    counts = plan.counts()
    matches = [
        {"file": name, "video": video, "path": match.path, "how": match.how}
        for (name, video), match in plan.matches.items()
        if match.path
    ]
    return {
        "labels": str(done.labels),
        "dry_run": dry_run,
        "written": done.written,
        "backup": str(done.backup) if done.backup else None,
        "rows": {
            "written": done.rows_written,
            "removed": done.rows_removed,
            "of_folders": done.rows_of_folders,
            "others": len(plan.others),
        },
        "classes": counts,
        "clips": {state: sum(states[state] for states in counts.values()) for state in STATES},
        "videos": matches,
        "problems": [problem._asdict() for problem in plan.problems],
        "overlaps": [problem._asdict() for problem in plan.overlaps],
        "notes": dict(plan.notes),
        "unlisted": list(done.unlisted),
    }


def show_import(done: ImportResult, result: dict[str, Any]) -> None:
    """Print the outcome for the person; ``result``: of ``import_result``."""
    plan = done.plan
    found = [match for match in result["videos"] if match["how"]]
    same = len(result["videos"]) - len(found)
    if result["videos"]:
        say(f"videos found: {same} by the same name, {len(found)} by another")
    show_lines("", [f"{match['video']} -> {match['path']} ({match['how']})" for match in found])
    if result["classes"]:
        width = max(len("label"), *(len(label) for label in result["classes"]))
        say(f"{'label':{width}}  {'new':>7} {'changed':>8} {'equal':>7} {'conflicting':>12}")
        for label, states in result["classes"].items():
            numbers = f"{states['new']:>7,} {states['changed']:>8,} {states['equal']:>7,} {states['conflicting']:>12,}"
            say(f"{label:{width}}  {numbers}")
    show_lines("not taken over:", [f"{where}: {reason}" for where, _, reason in plan.problems])
    show_lines("rows that share time:", [f"{where}: {reason}" for where, _, reason in plan.overlaps])
    show_lines("notes:", [f"{note} ({count}x)" if count > 1 else note for note, count in plan.notes.items()])
    show_lines("names that no table can have, not listed:", result["unlisted"])
    if not done.refused:
        say(_outcome(done, dry_run=result["dry_run"]))


def _outcome(done: ImportResult, *, dry_run: bool) -> str:
    """Return what was written, in a sentence."""
    rows = f"{counted(done.rows_written, 'row')}"
    removed = f", and {counted(done.rows_removed, 'row')} of other segments" if done.rows_removed else ""
    if dry_run:
        also = f"{removed} removed" if removed else ""
        return f"nothing was written (--dry-run); {rows} would be{also}"
    if not done.written:
        says_all = "nothing to write: labels.csv says all that could be used already"
        return says_all if done.plan.taken else "nothing was written: nothing of it could be used"
    before = f"; what was there is in {done.backup.name}" if done.backup else ""
    also = f"{removed} removed" if removed else ""
    sentence = f"{rows} written to {done.labels}{also}{before}."
    if not done.new_table:
        return sentence
    others = f"{counted(done.rows_of_folders, 'other clip')} of the folder" if done.rows_of_folders else "no other clip"
    return f"{sentence} It is new, and lists {others}: only listed clips are used, so add those that come later."


def show_lines(title: str, lines: Sequence[str]) -> None:
    """Print lines under a title: the first, and how many there are more."""
    if not lines:
        return
    if title:
        say(title)
    for line in lines[:MAX_SHOWN]:
        say(f"  {line}")
    if len(lines) > MAX_SHOWN:
        say(f"  and {len(lines) - MAX_SHOWN:,} more: --json lists all")
