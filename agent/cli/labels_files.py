"""The commands ``import-labels`` and ``export-labels``: labels of other tools into labels.csv, and out of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...base.console import command, counted, end_with, say
from ...base.options import JsonOption
from . import AGENT, SETTINGS_FILE, ConfigOption, DirOption
from .own_settings import own_paths

if TYPE_CHECKING:
    from ...runtime.clip_records import FrameTimes
    from ..annotations.annotation import EntryProblem
    from ..annotations.importing import ImportPlan
    from ..annotations.labels_file import LabelsFile
    from ..extraction.groups import ClipRules

MAX_SHOWN = 20  # lines of a kind


class ImportFormat(StrEnum):
    """Formats that are read."""

    auto = "auto"
    activitynet = "activitynet"
    segments = "segments"
    cvat = "cvat"
    label_studio = "label-studio"


class Folders(StrEnum):
    """Use of the folders' names where there is no labels.csv yet."""

    keep = "keep"
    ignore = "ignore"


class WrittenFormat(StrEnum):
    """Formats that are written."""

    activitynet = "activitynet"
    segments = "segments"


VideosOption = Annotated[
    Path | None,
    typer.Option("--videos", help="Folder of the videos, where labels.csv is or will be; by default agent.toml's."),
]


@command
@AGENT.errors_name_the_place
def import_labels(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE…", help="Files that a labelling tool exported: .json, .csv, .xml or CVAT's .zip."),
    ],
    videos: VideosOption = None,
    format: Annotated[
        ImportFormat, typer.Option("--format", help="Format of the files; auto recognises it by the content.")
    ] = ImportFormat.auto,
    fps: Annotated[
        float | None,
        typer.Option(
            "--fps",
            min=0.01,
            max=10_000.0,
            help="Frames per second, where frames cannot be read as times: of a video without usable times, or the "
            "frameRate of a Label Studio project.",
        ),
    ] = None,
    label_attribute: Annotated[
        str,
        typer.Option(
            "--label-attribute",
            metavar="NAME",
            help="For CVAT: the attribute whose value is the label, such as action; by default the track's own label.",
        ),
    ] = "",
    video: Annotated[
        str, typer.Option("--video", metavar="NAME", help="For CVAT: the video of a file that names none.")
    ] = "",
    choices: Annotated[
        str,
        typer.Option("--choices", metavar="NAME", help="For Label Studio's JSON-MIN: the key of whole videos' labels."),
    ] = "",
    folders: Annotated[
        Folders | None,
        typer.Option(
            "--folders",
            help="Where there is no labels.csv yet: keep lists the clips of the folders too, with the folders' names "
            "as their classes; ignore lists what is imported alone. By default they are kept, but for imported videos "
            "where no folder is called like a label of the file.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be written to labels.csv, and write nothing.")
    ] = False,
    config: ConfigOption = None,
    folder: DirOption = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Take labels of another tool into the labels.csv of a folder of videos.

    Reads ActivityNet's JSON, tables of video,label,start,end, CVAT's exports (CVAT for video 1.1 and CVAT for images
    1.1, .xml or .zip) and Label Studio's (JSON and JSON-MIN). Frames become seconds by the times in the videos
    themselves. Videos are found by name below the folder, with another path, an upload's prefix or in another case too:
    names that were not the same are listed.

    The import is a merge. No row is removed: a row that says something else stays, and the difference is a line.
    What was there before is in labels.csv.bak. With --dry-run nothing is written.
    """
    from ...base.errors import DataError
    from ..annotations.frame_spans import SpanReader
    from ..annotations.importing import UNLIKE_FOLDERS_NOTE, Importer
    from ..annotations.reading import FORMATS, ReadingOptions
    from ..extraction.clips import check_videos_folder

    videos, rules = _place(videos, config, folder, say_so=not as_json)
    check_videos_folder(videos)
    options = ReadingOptions(
        next((each for each in FORMATS if each == format.value), None), label_attribute, video, choices
    )
    sources, unread = _read_files(files, options)
    labels, unlike_folders = _open_labels(videos, rules, folders, sources)
    was_there = bool(labels.revision)
    with _timer(videos) as timer:
        spans = SpanReader(timer, fps)
        plan = Importer(labels, spans, rules).plan(sources)
    if unlike_folders:
        plan.notes[UNLIKE_FOLDERS_NOTE] += 1
    if fps is not None and not spans.used_fps:
        plan.notes["--fps is not used: no frames had to be read at a rate"] += 1
    plan.problems[:0] = unread
    unlisted: tuple[str, ...] = ()
    written = False
    if not dry_run and plan.changes:
        done = labels.apply(plan.changes)
        plan.settle(done)
        written, unlisted = done.written, done.unlisted
    result = _result(plan, labels.folder, dry_run=dry_run, written=written, unlisted=unlisted)
    if not as_json:
        _show_import(plan, result, new_table=not was_there)
    if not any(merged.state != "conflicting" for merged in plan.merged) and not plan.changes:
        error = DataError(
            "no label of the file was taken over" if len(files) == 1 else "no label of the files was taken over",
            fix="see the lines above; names of videos must be those of files below --videos",
            code="no_annotations",
        )
        end_with(error, result, as_json=as_json)
    return result


@command
@AGENT.errors_name_the_place
def export_labels(
    format: Annotated[WrittenFormat, typer.Option("--format", help="Format of the written file.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The file to write; it must not exist.")],
    videos: VideosOption = None,
    config: ConfigOption = None,
    folder: DirOption = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Write the labels of a folder of videos as a file that other tools read: ActivityNet's JSON, or a table.

    The labels are those of labels.csv, or without one those that the folders give. import-labels makes the same rows
    of the written file again. Rows without a label are left out. Paths are relative to the folder.
    """
    from ...base.errors import UsageError
    from ...base.files import printable_path, write_new
    from ..annotations.exporting import export_labels as export
    from ..annotations.labels_file import LabelsFile
    from ..extraction.clips import check_videos_folder

    videos, rules = _place(videos, config, folder, say_so=not as_json)
    check_videos_folder(videos)
    labels = LabelsFile.open(videos, rules=rules)
    with _timer(videos) as timer:
        made = export(labels.rows, videos, format.value, timer)
    try:
        write_new(out, made.content)
    except FileExistsError as error:
        raise UsageError(f"{printable_path(out)} exists already", fix="name another file with --out") from error
    if not as_json:
        say(f"{counted(made.rows, 'clip')} of {counted(len(made.labels), 'label')} written to {out}")
        if made.unlabelled:
            say(f"{counted(made.unlabelled, 'clip')} without a label left out")
        _show_lines("durations not known:", list(made.durations_unknown))
        _show_lines("notes:", [made.note] if made.note else [])
    return {
        "file": str(out),
        "format": format.value,
        "clips": made.rows,
        "labels": made.labels,
        "unlabelled": made.unlabelled,
        "durations_unknown": list(made.durations_unknown),
        "notes": [made.note] if made.note else [],
    }


class _Timer:
    """Frame times by a decoder process, which starts with the first video that is asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self._decoder: Any = None

    def frame_times(self, path: Path) -> FrameTimes:
        from ...runtime.video.decoder import DecodeLimits, VideoDecoder

        if self._decoder is None:
            self._decoder = self._stack.enter_context(
                contextlib.closing(VideoDecoder(None, DecodeLimits(inside=self._folder.resolve())))
            )
        times: FrameTimes = self._decoder.frame_times(path)
        return times

    def close(self) -> None:
        self._stack.close()


@contextlib.contextmanager
def _timer(folder: Path) -> Iterator[_Timer]:
    with contextlib.closing(_Timer(folder)) as timer:
        yield timer


def _place(videos: Path | None, config: Path | None, folder: Path | None, *, say_so: bool) -> tuple[Path, ClipRules]:
    """Return the folder of videos, and the rules of agent.toml where there is one."""
    from ..extraction.groups import DEFAULT_RULES

    place = AGENT.place(config, folder)
    if videos is None:
        settings, paths = own_paths(place, videos=None, say_so=say_so)
        return paths["videos"], settings.rules
    if config is None and folder is None and not Path(SETTINGS_FILE).exists():
        return videos, DEFAULT_RULES
    from ..settings import load_agent_settings

    return videos, load_agent_settings(place.path).rules


def _open_labels(videos: Path, rules: ClipRules, folders: Folders | None, sources: Any) -> tuple[LabelsFile, bool]:
    """Return labels.csv, and True where videos of the import do not get the class of their folder."""
    from ..annotations.importing import folders_are_no_labels, imported_videos
    from ..annotations.labels_file import LabelsFile

    if folders is Folders.ignore:
        return LabelsFile.open(videos, rules=rules, listed=lambda _: False), False
    labels = LabelsFile.open(videos, rules=rules)
    if labels.revision or folders is Folders.keep or not folders_are_no_labels(labels.rows, sources):
        return labels, False
    imported = imported_videos(videos, sources)
    return LabelsFile.open(videos, rules=rules, listed=lambda path: path not in imported), True


def _read_files(files: Sequence[Path], options: Any) -> tuple[list[tuple[str, Any]], list[EntryProblem]]:
    """Read the files; one of several that cannot be read is a problem. Raises the error where none can."""
    from ...base.errors import DataError, StorageError
    from ...base.files import printable_path
    from ..annotations.annotation import EntryProblem
    from ..annotations.reading import read_annotations

    sources, unread = [], []
    for path in files:
        try:
            sources.append((printable_path(path), read_annotations(path, options)))
        except (DataError, StorageError) as error:
            if len(files) == 1 or (path is files[-1] and not sources):
                raise
            unread.append(EntryProblem(printable_path(path), error.code, error.with_fix))
    return sources, unread


def _result(
    plan: ImportPlan, folder: Path, *, dry_run: bool, written: bool, unlisted: tuple[str, ...]
) -> dict[str, Any]:
    from ..annotations.importing import STATES

    counts = plan.counts()
    matches = [
        {"file": name, "video": video, "path": match.path, "how": match.how}
        for (name, video), match in plan.matches.items()
        if match.path
    ]
    return {
        "labels": str(folder / "labels.csv"),
        "dry_run": dry_run,
        "written": written,
        "classes": counts,
        "clips": {state: sum(states[state] for states in counts.values()) for state in STATES},
        "videos": matches,
        "problems": [problem._asdict() for problem in plan.problems],
        "overlaps": [problem._asdict() for problem in plan.overlaps],
        "notes": dict(plan.notes),
        "unlisted": list(unlisted),
    }


def _show_import(plan: ImportPlan, result: dict[str, Any], *, new_table: bool) -> None:
    found = [match for match in result["videos"] if match["how"]]
    same = len(result["videos"]) - len(found)
    if result["videos"]:
        say(f"videos found: {same} by the same name, {len(found)} by another")
    _show_lines("", [f"{match['video']} -> {match['path']} ({match['how']})" for match in found])
    if result["classes"]:
        width = max(len("label"), *(len(label) for label in result["classes"]))
        say(f"{'label':{width}}  {'new':>7} {'changed':>8} {'equal':>7} {'conflicting':>12}")
        for label, states in result["classes"].items():
            numbers = f"{states['new']:>7,} {states['changed']:>8,} {states['equal']:>7,} {states['conflicting']:>12,}"
            say(f"{label:{width}}  {numbers}")
    _show_lines("not taken over:", [f"{where}: {reason}" for where, _, reason in plan.problems])
    _show_lines("shared time:", [f"{where}: {reason}" for where, _, reason in plan.overlaps])
    _show_lines("notes:", [f"{note} ({count}x)" if count > 1 else note for note, count in plan.notes.items()])
    _show_lines("names that no table can have, not listed:", result["unlisted"])
    if result["dry_run"]:
        say(f"nothing was written (--dry-run); {counted(len(plan.changes), 'row')} would be")
    elif not result["written"] and not any(merged.state == "equal" for merged in plan.merged):
        say("nothing was written: nothing of it could be used")
    elif not result["written"]:
        say("nothing to write: labels.csv says all that could be used already")
    else:
        made = " It is new, and lists all clips of the folder: add those that you put there later." if new_table else ""
        say(f"{counted(len(plan.changes), 'row')} written to {result['labels']}.{made}")


def _show_lines(title: str, lines: Sequence[str]) -> None:
    if not lines:
        return
    if title:
        say(title)
    for line in lines[:MAX_SHOWN]:
        say(f"  {line}")
    if len(lines) > MAX_SHOWN:
        say(f"  and {len(lines) - MAX_SHOWN:,} more: --json lists all")
