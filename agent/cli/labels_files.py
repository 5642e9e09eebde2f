"""The commands ``import-labels`` and ``export-labels``: labels of other tools into labels.csv, and out of it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...base.console import command, counted, end_with, say
from ...base.options import JsonOption
from . import AGENT, ConfigOption, DirOption
from .import_report import import_result, nothing_taken, show_import, show_lines
from .own_settings import own_paths, own_rules

if TYPE_CHECKING:
    from ..annotations.import_files import Existing
    from ..extraction.groups import ClipRules


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


FormatOption = Annotated[
    ImportFormat, typer.Option("--format", help="Format of the files; auto recognises it by the content.")
]
FpsOption = Annotated[
    float | None,
    typer.Option(
        "--fps",
        min=0.01,
        max=10_000.0,
        help="Frames per second, where frames cannot be read as times: of a video without usable times, or the "
        "frameRate of a Label Studio project.",
    ),
]
LabelAttributeOption = Annotated[
    str,
    typer.Option(
        "--label-attribute",
        metavar="NAME",
        help="For CVAT: the attribute whose value is the label, such as action; by default the track's own label.",
    ),
]
VideoOption = Annotated[
    str, typer.Option("--video", metavar="NAME", help="For CVAT: the video of a file that names none.")
]
ChoicesOption = Annotated[
    str,
    typer.Option("--choices", metavar="NAME", help="For Label Studio's JSON-MIN: the key of whole videos' labels."),
]
FoldersOption = Annotated[
    Folders | None,
    typer.Option(
        "--folders",
        help="Where there is no labels.csv yet: keep lists the clips of the folders too, with the folders' names "
        "as their classes; ignore lists what is imported alone. By default they are kept, but for imported videos "
        "where no folder is called like a label of the file.",
    ),
]
ReplaceOption = Annotated[
    bool,
    typer.Option(
        "--replace",
        help="What the files say of a video takes the place of what labels.csv says: its other segments are removed, "
        "and a clip with another label gets the file's.",
    ),
]
AddOption = Annotated[
    bool,
    typer.Option("--add", help="Add new segments to videos that have other segments in labels.csv, and keep both."),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be written to labels.csv, and write nothing.")
]


@command
@AGENT.errors_name_the_place
def import_labels(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE…", help="Files that a labelling tool exported: .json, .csv, .xml or CVAT's .zip."),
    ],
    videos: VideosOption = None,
    format: FormatOption = ImportFormat.auto,
    fps: FpsOption = None,
    label_attribute: LabelAttributeOption = "",
    video: VideoOption = "",
    choices: ChoicesOption = "",
    folders: FoldersOption = None,
    replace: ReplaceOption = False,
    add: AddOption = False,
    dry_run: DryRunOption = False,
    config: ConfigOption = None,
    folder: DirOption = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Take labels of another tool into the labels.csv of a folder of videos.

    Reads ActivityNet's JSON, tables of video,label,start,end, CVAT's exports (CVAT for video 1.1 and CVAT for images
    1.1, .xml or .zip) and Label Studio's (JSON and JSON-MIN). Frames become seconds by the times in the videos
    themselves. Videos are found by name below the folder, with another path, an upload's prefix or in another case too:
    names that were not the same are listed.

    The import is a merge: no row is removed, and one that says something else stays, with a line. Where labels.csv has
    other segments of a video already, such as those of an earlier export, nothing is written until --replace or --add
    says what to do with them. What was there before is in labels.csv.bak. With --dry-run nothing is written.
    """
    from ..annotations.import_files import ImportRequest, import_files
    from ..annotations.reading import FORMATS, ReadingOptions

    existing = _existing(replace=replace, add=add)
    videos, rules = _place(videos, config, folder, say_so=not as_json)
    named = next((each for each in FORMATS if each == format.value), None)
    request = ImportRequest(
        files,
        videos,
        ReadingOptions(named, label_attribute, video, choices),
        rules,
        fps=fps,
        existing=existing,
        folders=folders.value if folders else "auto",
        dry_run=dry_run,
    )
    done = import_files(request)
    result = import_result(done, dry_run=dry_run)
    if not as_json:
        show_import(done, result)
    if error := done.refused or nothing_taken(done.plan, files):
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
    from ..annotations.video_timer import VideoTimer
    from ..extraction.clips import check_videos_folder

    videos, rules = _place(videos, config, folder, say_so=not as_json)
    check_videos_folder(videos)
    labels = LabelsFile.open(videos, rules=rules)
    with VideoTimer(videos) as timer:
        made = export(labels.rows, videos, format.value, timer)
    try:
        write_new(out, made.content)
    except FileExistsError as error:
        raise UsageError(f"{printable_path(out)} exists already", fix="name another file with --out") from error
    if not as_json:
        say(f"{counted(made.rows, 'clip')} of {counted(len(made.labels), 'label')} written to {out}")
        if made.unlabelled:
            say(f"{counted(made.unlabelled, 'clip')} without a label left out")
        show_lines("durations not known:", list(made.durations_unknown))
        show_lines("notes:", [made.note] if made.note else [])
    return {
        "file": str(out),
        "format": format.value,
        "clips": made.rows,
        "labels": made.labels,
        "unlabelled": made.unlabelled,
        "durations_unknown": list(made.durations_unknown),
        "notes": [made.note] if made.note else [],
    }


def _place(videos: Path | None, config: Path | None, folder: Path | None, *, say_so: bool) -> tuple[Path, ClipRules]:
    """Return the folder of videos, and the rules that hold for it."""
    place = AGENT.place(config, folder)
    if videos is None:
        settings, paths = own_paths(place, videos=None, say_so=say_so)
        return paths["videos"], settings.rules
    return videos, own_rules(place, videos, say_so=say_so)


def _existing(*, replace: bool, add: bool) -> Existing:
    from ...base.errors import UsageError

    if replace and add:
        raise UsageError(
            "--replace removes other segments of the videos, and --add keeps them", fix="give one of them, or none"
        )
    return "replace" if replace else "add" if add else "stop"
