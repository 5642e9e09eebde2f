"""Labels of other tools, taken into the labels.csv of a folder of videos."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from ..agent.annotations.annotation import EntryProblem
from ..base.console import counted
from ..base.errors import DataError, UsageError
from .checks import finite_number, path_of, shown

PathLike = str | os.PathLike[str]
LabelFormat = Literal["auto", "activitynet", "segments", "cvat", "label-studio"]
Existing = Literal["stop", "replace", "add"]
LIKE = "fl.import_labels('annotations.xml', videos='videos')"
MOST_NAMED = 5  # problems that an import shows of itself


@dataclass(frozen=True, repr=False)
class LabelsImport:
    """Result of ``import_labels``. It shows its counts and first problems.

    Attributes:
        classes: By label, the number of clips that are ``new`` in labels.csv, ``changed`` (a gap of a row was filled),
            ``equal`` to what was there, or ``conflicting`` with it and so not taken over. With ``existing="replace"``
            a clip that had another label is ``changed``.
        problems: Entries of the files that are not used: ``where``, ``code`` and ``reason`` of each.
        overlaps: Clips that were taken over and share time with another one, in the same form.
        notes: Sentences on how the files were read.
        written: Whether labels.csv was changed.
        rows_written: Rows that the files gave labels.csv, new and changed ones; with ``dry_run``, that they would give.
        rows_removed: Rows of other segments that ``existing="replace"`` removed.
    """

    classes: dict[str, dict[str, int]]
    problems: tuple[EntryProblem, ...]
    overlaps: tuple[EntryProblem, ...]
    notes: tuple[str, ...]
    written: bool
    rows_written: int = 0
    rows_removed: int = 0

    def __repr__(self) -> str:
        rows = [
            f"{label}: {', '.join(f'{count} {state}' for state, count in states.items() if count)}"
            for label, states in self.classes.items()
        ]
        rows += [f"{where}: {reason}" for where, _, reason in self.problems[:MOST_NAMED]]
        more = len(self.problems) - MOST_NAMED
        rows += [f"and {more:,} more: see problems"] if more > 0 else []
        removed = f", {counted(self.rows_removed, 'row')} removed" if self.rows_removed else ""
        wrote = f"Labels: {counted(self.rows_written, 'row')} written to labels.csv{removed}"
        return "\n".join([wrote if self.written else "Labels, nothing written", *rows])


def import_labels(
    files: PathLike | Sequence[PathLike],
    *,
    videos: PathLike,
    format: LabelFormat = "auto",
    fps: float | None = None,
    label_attribute: str = "",
    choices: str = "",
    existing: Existing = "stop",
    dry_run: bool = False,
) -> LabelsImport:
    """Take labels of another tool into the ``labels.csv`` of a folder of videos.

    As ``flamest-agent import-labels`` does. The import is a merge: no row is removed, and one that says something else
    stays. What was there before is in ``labels.csv.bak``.

    Args:
        files: A file that a tool exported, or several: ActivityNet's JSON, a table of ``video,label,start,end``, CVAT's
            XML (or .zip), Label Studio's JSON.
        videos: The folder of the videos, which are found by name.
        format: ``auto`` recognises it by the content.
        fps: Frames per second, where frames cannot be read as times.
        label_attribute: For CVAT, the attribute whose value is the label; by default the track's own label.
        choices: For Label Studio's JSON-MIN, the key of whole videos' labels.
        existing: Where ``labels.csv`` has other segments of a video already, as of an earlier export: ``stop`` writes
            nothing and raises, ``replace`` removes them, and gives clips with another label the files', ``add`` keeps
            both.
        dry_run: Write nothing.

    Returns:
        Counts by class, and what was not taken over.

    Raises:
        UsageError: An argument is of another type.
        DataError: No file is of a known format, ``labels.csv`` is no table, or (``already_segmented``) it has other
            segments of the videos.
        StorageError: A file cannot be read, or ``labels.csv`` not written.
    """
    from ..agent.annotations.import_files import ImportRequest, import_files
    from ..agent.annotations.reading import FORMATS, ReadingOptions

    for name, value, known in (("format", format, get_args(LabelFormat)), ("existing", existing, get_args(Existing))):
        if value not in known:
            raise UsageError(f"there is no {name} {shown(value)}; known: {', '.join(known)}", fix=f"leave {name} out")
    fps = None if fps is None else finite_number("fps", fps, like=25.0)
    folder = path_of("videos", videos, like=LIKE)
    paths = [
        path_of("a file", path, like=LIKE) for path in ([files] if isinstance(files, str | os.PathLike) else files)
    ]
    options = ReadingOptions(next((each for each in FORMATS if each == format), None), label_attribute, choices=choices)
    done = import_files(ImportRequest(paths, folder, options, fps=fps, existing=existing, dry_run=dry_run))
    if done.refused:
        raise DataError(
            done.refused.message,
            fix="give existing='replace', which removes them, or existing='add', which keeps both",
            code=done.refused.code,
        )
    plan = done.plan
    return LabelsImport(
        plan.counts(),
        tuple(plan.problems),
        tuple(plan.overlaps),
        tuple(sorted(plan.notes)),
        done.written,
        done.rows_written,
        done.rows_removed,
    )
