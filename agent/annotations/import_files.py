"""An import of annotation files into the ``labels.csv`` of a folder: read, merged, written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...base.console import counted
from ...base.errors import DataError, StorageError, printable
from ...base.files import printable_path
from ..extraction.clips import check_videos_folder
from ..extraction.groups import DEFAULT_RULES, ClipRules
from .annotation import AnnotationFile, EntryProblem
from .frame_spans import SpanReader
from .import_plan import ImportPlan
from .importing import UNLIKE_FOLDERS_NOTE, Importer, folders_are_no_labels, imported_videos
from .labels_file import LabelsFile
from .reading import DEFAULT_OPTIONS, ReadingOptions, read_annotations
from .video_timer import VideoTimer

Existing = Literal["stop", "replace", "add"]
FolderUse = Literal["auto", "keep", "ignore"]
Source = tuple[str, AnnotationFile]  # with the file's name for messages


@dataclass(frozen=True)
class ImportRequest:
    """An import that is wanted.

    ``existing``: segments that labels.csv has of an imported video, and the files lack, next to new ones: ``stop``
    writes nothing, ``replace`` removes them, ``add`` keeps them. ``folders``: where there is no labels.csv yet,
    ``keep`` lists the folders' clips as their folders say, ``ignore`` lists none, ``auto`` keeps them but for imported
    videos where no folder is called like a label.
    """

    files: Sequence[Path]
    videos: Path
    reading: ReadingOptions = DEFAULT_OPTIONS
    rules: ClipRules = DEFAULT_RULES
    fps: float | None = None
    existing: Existing = "stop"
    folders: FolderUse = "auto"
    dry_run: bool = False


@dataclass(frozen=True)
class ImportResult:
    """Outcome of an import."""

    labels: Path  # labels.csv
    plan: ImportPlan
    refused: DataError | None = None  # why nothing was written, though something would be
    new_table: bool = False  # there was no labels.csv before
    written: bool = False
    rows_written: int = 0  # of the files; in a trial: that would be
    rows_removed: int = 0
    rows_of_folders: int = 0  # clips that a new table lists next to those of the files
    backup: Path | None = None  # the labels.csv that was there, under a number of its own
    unlisted: tuple[str, ...] = ()  # clips whose names no table can have


def import_files(request: ImportRequest) -> ImportResult:
    """Merge the files into labels.csv. One of several files that cannot be read is a problem, and stops no other.

    Raises DataError where no file is of a known format, or labels.csv is no table; StorageError where no file can be
    read, or labels.csv cannot be written; UsageError for a rate that is not above 0.
    """
    check_videos_folder(request.videos)
    sources, unread = _read_files(request.files, request.reading)
    labels, unlike_folders = _open_labels(request, sources)
    new_table = not labels.revision
    with VideoTimer(request.videos) as timer:
        spans = SpanReader(timer, request.fps)
        plan = Importer(labels, spans, request.rules, replaces=request.existing == "replace").plan(sources)
    plan.problems[:0] = unread
    if unlike_folders:
        plan.notes[UNLIKE_FOLDERS_NOTE] += 1
    if request.fps is not None and not spans.used_fps:
        plan.notes["--fps is not used: no frames had to be read at a rate"] += 1
    table = labels.folder / "labels.csv"
    if plan.others and request.existing == "stop":
        return ImportResult(table, plan, refused=_already_segmented(plan, table), new_table=new_table)
    done = None
    if plan.changes and not request.dry_run:
        done = labels.apply(plan.changes)
        plan.settle(done)
    written = done is not None and done.written
    rows = len({(change.row.path, change.row.segment) for change in plan.puts})
    return ImportResult(
        table,
        plan,
        new_table=new_table,
        written=written,
        rows_written=rows,
        rows_removed=len(plan.removals),
        rows_of_folders=len(labels.rows) - rows if written and new_table else 0,
        backup=labels.backup,
        unlisted=done.unlisted if done else (),
    )


def _read_files(files: Sequence[Path], options: ReadingOptions) -> tuple[list[Source], list[EntryProblem]]:
    """Read the files; one of several that cannot be read is a problem. Raises the error where none can."""
    sources: list[Source] = []
    unread = []
    for path in files:
        try:
            sources.append((printable_path(path), read_annotations(path, options)))
        except (DataError, StorageError) as error:
            if len(files) == 1 or (path is files[-1] and not sources):
                raise
            unread.append(EntryProblem(printable_path(path), error.code, error.with_fix))
    return sources, unread


def _open_labels(request: ImportRequest, sources: Sequence[Source]) -> tuple[LabelsFile, bool]:
    """Return labels.csv, and True where videos of the import do not get the class of their folder."""

    def opened(listed: Callable[[str], bool] = lambda _: True) -> LabelsFile:
        return LabelsFile.open(request.videos, rules=request.rules, listed=listed, numbered_backup=True)

    if request.folders == "ignore":
        return opened(lambda _: False), False
    labels = opened()
    if labels.revision or request.folders == "keep" or not folders_are_no_labels(labels.rows, sources):
        return labels, False
    imported = imported_videos(request.videos, sources)
    return opened(lambda path: path not in imported), True


def _already_segmented(plan: ImportPlan, table: Path) -> DataError:
    """Return the error for videos that have other segments already: of an earlier import, or by hand."""
    others, videos = len(plan.others), len({row.path for row in plan.others})
    sharing = plan.others_sharing
    has = f"{printable_path(table)} has {counted(others, 'labelled segment')}"
    of = f"of {videos:,} of these videos" if videos > 1 else f"of {printable(plan.others[0].path)}"
    share = "none of them at the time of a new one" if not sharing else f"{sharing:,} at the time of new ones"
    return DataError(
        f"{has} {of} that the import does not have, {share}: nothing was written, since a second import of changed "
        "labels would keep both",
        fix="--replace removes them, and the import's take their place; --add keeps both; with --dry-run each shows "
        "what it would do",
        code="already_segmented",
    )
