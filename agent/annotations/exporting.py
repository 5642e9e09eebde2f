"""The labels of a folder as a file of another tool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ...base.errors import DataError, StorageError
from ..extraction.labels_table import LabelRow
from ..extraction.listed_files import ListedFiles
from .activitynet import write_activitynet
from .formulas import formula_note
from .frame_spans import FrameTimer
from .segments_table import write_segments

ExportFormat = Literal["activitynet", "segments"]


@dataclass(frozen=True)
class Export:
    """A written document."""

    content: bytes
    rows: int  # that it has
    labels: dict[str, int]  # rows of each label
    unlabelled: int  # rows without a label, which it leaves out
    durations_unknown: tuple[str, ...] = ()  # videos that could not be opened, with the reason
    note: str = ""  # for the person


def export_labels(rows: Sequence[LabelRow], folder: Path, format: ExportFormat, timer: FrameTimer) -> Export:
    """Return the labelled rows as a document; for ActivityNet's, the durations are read from the videos.

    Paths are those of the files, however the rows write them: with backslashes, or in another case.

    Raises DataError ``no_annotations`` when no row has a label.
    """
    files = ListedFiles(folder, folder.resolve())
    labelled = [replace(row, path=_file_path(files, folder, row.path)) for row in rows if row.label is not None]
    if not labelled:
        raise DataError(
            "no clip of the folder has a label", fix="label some first: flamest-agent label", code="no_annotations"
        )
    unknown: tuple[str, ...] = ()
    note = ""
    if format == "activitynet":
        durations, unknown = _durations(labelled, folder, timer)
        content = write_activitynet(labelled, durations)
    else:
        content, note = write_segments(labelled), formula_note(labelled)
    labels = Counter(row.label or "" for row in labelled)
    unlabelled = len(rows) - len(labelled)
    return Export(content, len(labelled), dict(sorted(labels.items())), unlabelled, unknown, note)


def _file_path(files: ListedFiles, folder: Path, written: str) -> str:
    """Return the path of the file that a row means, relative to the folder; as it is written where there is none."""
    path, _ = files.find(written)
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else written


def _durations(rows: Sequence[LabelRow], folder: Path, timer: FrameTimer) -> tuple[dict[str, float], tuple[str, ...]]:
    """Return seconds by path, and the videos that cannot be read."""
    durations: dict[str, float] = {}
    unknown = []
    for path in dict.fromkeys(row.path for row in rows):
        try:
            durations[path] = timer.frame_times(folder / path).end_us / 1e6
        except (DataError, StorageError) as error:
            unknown.append(f"{path}: {error.message}")
    return durations, tuple(unknown)
