"""The command ``predict``: labels for new videos."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...base.console import command, end_with, say
from ...base.options import JsonOption, ThreadsOption, TrustedKeyOption
from . import AGENT, ConfigOption, DirOption
from .backend_options import BackendOption, PredictPrecisionOption, RequireOption, notice, show_placements
from .following import check_follow_options, record_path, run_follow
from .own_settings import BundleOption, ModelOption, model_in_use, own_settings
from .prediction_output import csv_header, csv_lines, prediction_entry, prediction_lines
from .timelines import PredictWith, Shown, show_timelines

if TYPE_CHECKING:
    from ...base.errors import DataError
    from ...base.place import Place
    from ...runtime.backends.opening import GraphPlacement
    from ...runtime.backends.options import BackendOptions
    from ...runtime.bundle.signature import TrustedKeys
    from ..predict import Prediction
    from ..timeline.windows import WindowPlan


@command
@AGENT.errors_name_the_place
def predict(
    videos: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Video files, segments of them as VIDEO#t=START,END in seconds, and folders.", metavar="VIDEO…"
        ),
    ] = None,
    segments: Annotated[
        bool, typer.Option("--segments", help="Of folders the clips that their labels.csv lists, not all files.")
    ] = False,
    bundle: BundleOption = None,
    model: ModelOption = None,
    config: ConfigOption = None,
    folder: DirOption = None,
    top: Annotated[int, typer.Option("--top", min=1, metavar="N", help="How many labels to show.")] = 5,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            min=0.0,
            max=1.0,
            metavar="P",
            help="Answer unknown where no label's probability, 0 to 1, reaches it; with 0 never. Otherwise the model's "
            "own thresholds decide, if it has any.",
        ),
    ] = None,
    timeline: Annotated[
        bool,
        typer.Option(
            "--timeline",
            help="Of each video the actions in it, with start and end: for videos longer than one action.",
        ),
    ] = False,
    window: Annotated[
        float | None,
        typer.Option(
            "--window",
            metavar="SECONDS",
            help="With --timeline: the length of the parts that are answered, by default 2; at most that of the clips "
            "that the model was trained on.",
        ),
    ] = None,
    stride: Annotated[
        float | None,
        typer.Option(
            "--stride",
            metavar="SECONDS",
            help="With --timeline: how far each part begins after the one before, by default half a window. Smaller "
            "finds starts and ends more closely, and takes more time.",
        ),
    ] = None,
    follow: Annotated[
        Path | None,
        typer.Option(
            "--follow",
            metavar="DIR",
            help="Run on: answer every video that is in DIR or comes into it, as --timeline does, with a JSON line for "
            "each event.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="With --follow: append the lines to FILE, instead of stdout."),
    ] = None,
    answered: Annotated[
        Path | None,
        typer.Option(
            "--answered",
            metavar="FILE",
            help="With --follow: remembers which videos were answered; by default in the state folder of agent.toml, "
            "or next to --out.",
        ),
    ] = None,
    every: Annotated[
        float | None,
        typer.Option(
            "--every",
            metavar="SECONDS",
            min=0.2,
            max=3600.0,
            help="With --follow: from one look at DIR to the next, by default 5. A file that did not change from one "
            "to the next is finished.",
        ),
    ] = None,
    threads: ThreadsOption = None,
    trusted_key: TrustedKeyOption = None,
    backend: BackendOption = None,
    require_backend: RequireOption = False,
    precision: PredictPrecisionOption = None,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print a table instead of text: one row for each video, with a header.")
    ] = False,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Name the action in new videos: the likeliest labels and the caption of a keyframe.

    Next to agent.toml no option is needed: after a run, bundle and model are the daemon's.
    Folders are searched for video files, also those inside; with --segments the clips of their labels.csv are taken,
    segments and whole files. clip.mp4#t=12.5,17 is the part of clip.mp4 from 12.5 s until 17 s. A video that cannot be
    read is shown with the reason and the others follow; exit code 65 when none could be read.
    The answer is unknown where the model is not sure enough: by thresholds that were measured on held-out clips, or by
    --threshold P. The likeliest labels are shown all the same.
    With --timeline a long video becomes a list of actions: overlapping windows are answered and smoothed over time; a
    stretch that shows no action of the model is unknown, one that cannot be read is shown with the reason.
    With --follow it is a daemon: it answers every video once, known by its content, also after a crash; uses the newest
    model whenever the daemon of this silo has adopted one; and ends with exit code 0 at SIGTERM.
    """
    from ...base.errors import UsageError
    from ...runtime.backends.opening import OpeningOptions
    from ...runtime.backends.options import parse_backend_options
    from ...runtime.bundle.packaged import resolve_bundle
    from ...runtime.bundle.signature import read_trusted_keys
    from ..named_videos import find_videos
    from ..predict import Prediction, predict_videos

    if as_csv and as_json:
        raise UsageError("--csv and --json: expected one of them", fix="leave one out")
    check_follow_options(
        follow,
        videos,
        other={"--timeline": timeline, "--segments": segments, "--csv": as_csv},
        own={"--out": out, "--answered": answered, "--every": every},
    )
    videos = videos or []
    plan = _window_plan(window, stride, timeline=timeline or follow is not None, segments=segments)
    if segments:
        _require_folder(videos)
    backend_options = parse_backend_options(backend or (), require=require_backend, precision=precision)
    opening = OpeningOptions(backend_options, threads, notice=notice)
    trusted = read_trusted_keys(trusted_key or (), where="--trusted-key")
    if bundle is None or model is None:
        bundle, model, own = _of_settings(AGENT.place(config, folder), bundle, model, may_wait=follow is not None)
        trusted = (*trusted, *own)
    placements: list[GraphPlacement] = []
    if follow is not None and plan is not None:
        given = PredictWith(resolve_bundle(bundle), model, top, threshold, opening, trusted)
        record = record_path(AGENT.place(config, folder), answered, out)
        return run_follow(follow, given, backend_options, plan, record=record, out=out, every_s=every or 5.0)
    if plan is not None:
        given = PredictWith(resolve_bundle(bundle), model, top, threshold, opening, trusted)
        entries, files = show_timelines(given, videos, plan, Shown(as_csv, as_json), placements.extend)
        return _ended("timelines", entries, placements, Shown(as_csv, as_json), backend_options, files=files)
    found, unusable = find_videos(videos, segments=segments)
    problems = [Prediction(each.path, reason=each.reason) for each in unusable]
    predicted: Iterator[Prediction] = iter(())
    if found:  # otherwise there is nothing to open the networks for
        predicted = predict_videos(
            resolve_bundle(bundle),
            model,
            found,
            top=top,
            threshold=threshold,
            opening=opening,
            trusted=trusted,
            on_open=placements.extend,
        )
    predictions = []
    if as_csv:
        print(csv_header(top))
    for prediction in itertools.chain(predicted, problems):
        predictions.append(prediction_entry(prediction))
        for line in csv_lines(prediction, top) if as_csv else () if as_json else prediction_lines(prediction):
            say(line)
    shown = Shown(as_csv, as_json)
    files = sum(video.path.exists() for video in found)
    return _ended("predictions", predictions, placements, shown, backend_options, files=files, named=len(found))


def _ended(
    what: str,
    entries: list[dict[str, Any]],
    placements: Sequence[GraphPlacement],
    shown: Shown,
    backend_options: BackendOptions,
    *,
    files: int,
    named: int = 1,
) -> dict[str, Any]:
    """Return the command's result, and say how many videos were read. Ends with exit code 65 when none was."""
    unread = sum("reason" in entry for entry in entries)
    if shown.as_text and unread < len(entries):
        show_placements(placements, backend_options)
    if shown.as_text and unread and len(entries) > 1:
        say(f"{len(entries) - unread} of {len(entries)} videos read, {unread} could not be")
    backends = {placement.graph: placement.as_json() for placement in placements}
    result = {what: entries, "backends": backends, "unread": unread}
    if unread == len(entries):
        end_with(_nothing_read(unread, files, named), result, as_json=shown.as_json)
    return result


def _window_plan(window: float | None, stride: float | None, *, timeline: bool, segments: bool) -> WindowPlan | None:
    """Return the windows of ``--timeline``, None without it. Raises UsageError for options that do not fit."""
    from ...base.errors import UsageError
    from ..timeline.windows import window_plan

    if not timeline:
        if window is not None or stride is not None:
            raise UsageError("--window and --stride are for --timeline", fix="add --timeline")
        return None
    if segments:
        raise UsageError("--timeline and --segments: expected one of them", fix="leave --segments out")
    return window_plan(window, stride)


def _require_folder(videos: Sequence[Path]) -> None:
    """Raise UsageError where ``--segments`` has no folder to be about."""
    from ...base.errors import UsageError

    if not any(path.is_dir() for path in videos):
        raise UsageError(
            "--segments: none of these is a folder, expected one with a labels.csv",
            fix="give the folder, or name the segment: VIDEO#t=12.5,17",
        )


def _nothing_read(unread: int, files: int, named: int) -> DataError:
    from ...base.errors import DataError

    fix = "check the path: there is no such file" if named else "give video files, or folders that hold some"
    if files:
        fix = "the reasons are above; flamest-agent doctor shows if this machine can decode video"
    return DataError(
        "the video could not be read" if unread == 1 else f"none of the {unread} videos could be read",
        fix=fix,
        code="all_clips_failed",
    )


def _of_settings(
    place: Place, bundle: Path | None, model: Path | None, *, may_wait: bool
) -> tuple[Path, Path, TrustedKeys]:
    """Return bundle, model and trusted keys, those that were not given from the silo's settings.

    ``may_wait``: the model need not be there yet.
    """
    from ...base.errors import SettingsError
    from ..end_of_run import FINAL_MODEL

    options = (("--bundle DIR", bundle), ("--model MODEL.safetensors", model))
    settings = own_settings(place, *(option for option, given in options if given is None))
    bundle = bundle or settings.bundle
    if bundle is None:
        raise SettingsError(f"{place.path} names no bundle", fix="set bundle in it, or give --bundle DIR")
    return bundle, model or (settings.state / FINAL_MODEL if may_wait else model_in_use(settings)), settings.trust()
