"""Labels of other tools, taken into the labels.csv of a folder of videos."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from ..agent.annotations.annotation import EntryProblem
from ..base.errors import UsageError
from .checks import finite_number, path_of, shown

PathLike = str | os.PathLike[str]
LabelFormat = Literal["auto", "activitynet", "segments", "cvat", "label-studio"]
LIKE = "fl.import_labels('annotations.xml', videos='videos')"
MOST_NAMED = 5  # problems that an import shows of itself


@dataclass(frozen=True, repr=False)
class LabelsImport:
    """Result of ``import_labels``. It shows its counts and first problems.

    Attributes:
        classes: By label, the number of clips that are ``new`` in labels.csv, ``changed`` (a gap of a row was filled),
            ``equal`` to what was there, or ``conflicting`` with it and so not taken over.
        problems: Entries of the files that are not used: ``where``, ``code`` and ``reason`` of each.
        overlaps: Clips that were taken over and share time with another one, in the same form.
        notes: Sentences on how the files were read.
        written: Whether labels.csv was changed.
    """

    classes: dict[str, dict[str, int]]
    problems: tuple[EntryProblem, ...]
    overlaps: tuple[EntryProblem, ...]
    notes: tuple[str, ...]
    written: bool

    def __repr__(self) -> str:
        rows = [
            f"{label}: {', '.join(f'{count} {state}' for state, count in states.items() if count)}"
            for label, states in self.classes.items()
        ]
        rows += [f"{where}: {reason}" for where, _, reason in self.problems[:MOST_NAMED]]
        more = len(self.problems) - MOST_NAMED
        rows += [f"and {more:,} more: see problems"] if more > 0 else []
        return "\n".join(["Labels written to labels.csv" if self.written else "Labels, nothing written", *rows])


def import_labels(
    files: PathLike | Sequence[PathLike],
    *,
    videos: PathLike,
    format: LabelFormat = "auto",
    fps: float | None = None,
    label_attribute: str = "",
    choices: str = "",
    dry_run: bool = False,
) -> LabelsImport:
    """Take labels of another tool into the ``labels.csv`` of a folder of videos.

    As ``flamest-agent import-labels`` does. The import is a merge: no row is removed, and one that says something else
    stays.

    Args:
        files: A file that a tool exported, or several: ActivityNet's JSON, a table of ``video,label,start,end``, CVAT's
            XML (or .zip), Label Studio's JSON.
        videos: The folder of the videos, which are found by name.
        format: ``auto`` recognises it by the content.
        fps: Frames per second, where frames cannot be read as times.
        label_attribute: For CVAT, the attribute whose value is the label; by default the track's own label.
        choices: For Label Studio's JSON-MIN, the key of whole videos' labels.
        dry_run: Write nothing.

    Returns:
        Counts by class, and what was not taken over.

    Raises:
        UsageError: An argument is of another type.
        DataError: A file is of no known format, or ``labels.csv`` is no table.
        StorageError: A file cannot be read, or ``labels.csv`` not written.
    """
    from ..agent.annotations.frame_spans import SpanReader
    from ..agent.annotations.importing import Importer
    from ..agent.annotations.labels_file import LabelsFile
    from ..agent.annotations.reading import FORMATS, ReadingOptions, read_annotations
    from ..agent.extraction.clips import check_videos_folder
    from ..agent.extraction.groups import DEFAULT_RULES
    from ..base.files import printable_path
    from ..runtime.video.decoder import DecodeLimits, VideoDecoder

    if format not in get_args(LabelFormat):
        raise UsageError(
            f"there is no format {shown(format)}; known: {', '.join(get_args(LabelFormat))}", fix="leave format out"
        )
    fps = None if fps is None else finite_number("fps", fps, like=25.0)
    folder = path_of("videos", videos, like=LIKE)
    paths = [
        path_of("a file", path, like=LIKE) for path in ([files] if isinstance(files, str | os.PathLike) else files)
    ]
    check_videos_folder(folder)
    options = ReadingOptions(next((each for each in FORMATS if each == format), None), label_attribute, choices=choices)
    sources = [(printable_path(path), read_annotations(path, options)) for path in paths]
    labels = LabelsFile.open(folder, rules=DEFAULT_RULES)
    with VideoDecoder(None, DecodeLimits(inside=folder.resolve())) as decoder:
        plan = Importer(labels, SpanReader(decoder, fps), DEFAULT_RULES).plan(sources)
    written = False
    if plan.changes and not dry_run:
        done = labels.apply(plan.changes)
        plan.settle(done)
        written = done.written
    return LabelsImport(plan.counts(), tuple(plan.problems), tuple(plan.overlaps), tuple(sorted(plan.notes)), written)
