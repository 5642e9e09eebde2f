"""The commands ``train`` and ``predict``: a model of this silo alone, and labels for new videos."""

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
from .own_settings import BundleOption, ModelOption, OwnStoreOption, own_aliases, own_paths, own_settings

if TYPE_CHECKING:
    from ...base.errors import DataError
    from ...base.place import Place
    from ...runtime.bundle.signature import TrustedKeys
    from ..named_videos import NamedVideo
    from ..predict import Prediction


@command
@AGENT.errors_name_the_place
def train(
    out: Annotated[Path, typer.Option("--out", help="Where the model goes, MODEL.safetensors.")],
    store: OwnStoreOption = None,
    passes: Annotated[int, typer.Option(min=1, help="Rounds of local epochs, as a federated run has.")] = 80,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs in one round.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips per step of training.")] = 128,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Learning rate of Adam.")] = 0.01,
    weight_decay: Annotated[float, typer.Option(min=0.0, help="Adam's L2 term.")] = 1e-4,
    hidden: Annotated[str, typer.Option(help="Widths of the hidden layers.")] = "512,256",
    hold_out: Annotated[float, typer.Option(min=0.0, max=0.9, help="Share of the groups to evaluate on.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Seed of initialisation, shuffles and split.")] = 0,
    fingerprint: Annotated[str | None, typer.Option(help="Which features, where the store holds several.")] = None,
    precision: Annotated[str | None, typer.Option(help="Which precision, where the store holds several.")] = None,
    threads: ThreadsOption = None,
    config: ConfigOption = None,
    folder: DirOption = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Train the classifier on this machine alone, without a coordinator.

    Next to agent.toml --store is not needed, and the classes are the run's words: [labels.alias] applies.
    """
    from ...base.errors import UsageError
    from ...fedproto.records import TrainSettings
    from ..training.local import LocalRequest, train_from_store

    try:
        widths = tuple(int(width) for width in hidden.split(",") if width.strip())
    except ValueError as error:
        raise UsageError(
            f"--hidden {hidden}: expected whole numbers with commas, like 512,256", fix="--hidden 512,256"
        ) from error
    if any(width < 1 for width in widths):
        raise UsageError(f"--hidden {hidden}: expected widths of 1 or more", fix="--hidden 512,256")
    place = AGENT.place(config, folder)
    if store is None:
        settings, paths = own_paths(place, store=store, say_so=not as_json)
        store, precision = paths["store"], precision or settings.precision
    request = LocalRequest(
        store=store,
        fingerprint=fingerprint,
        precision=precision,
        hidden=widths,
        settings=TrainSettings(
            epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, weight_decay=weight_decay
        ),
        rounds=passes,
        hold_out=hold_out,
        seed=seed,
        threads=threads,
        aliases=own_aliases(place, store),
    )
    result = train_from_store(request, out)
    if not as_json:
        say(f"{out}: {result['classes']} classes, {result['examples']} clips, {result['epochs']} epochs")
        if result["accuracy"] is None:
            say("no clips were held out, so no accuracy was measured")
        else:
            say(
                f"accuracy on {result['held_out']} held-out clips: {result['accuracy']:.3f} "
                f"(best {result['best_accuracy']:.3f}, chance {result['chance']:.3f})"
            )
    return result


@command
@AGENT.errors_name_the_place
def predict(
    videos: Annotated[
        list[Path],
        typer.Argument(
            help="Video files, segments of them as VIDEO#t=START,END in seconds, and folders.", metavar="VIDEO…"
        ),
    ],
    segments: Annotated[
        bool, typer.Option("--segments", help="Of folders the clips that their labels.csv lists, not all files.")
    ] = False,
    bundle: BundleOption = None,
    model: ModelOption = None,
    config: ConfigOption = None,
    folder: DirOption = None,
    top: Annotated[int, typer.Option(min=1, help="How many labels to show.")] = 5,
    threads: ThreadsOption = None,
    trusted_key: TrustedKeyOption = None,
    backend: BackendOption = None,
    require_backend: RequireOption = False,
    precision: PredictPrecisionOption = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Name the action in new videos: the likeliest labels and the caption of a keyframe.

    Next to agent.toml no option is needed: after a run, bundle and model are the daemon's.
    Folders are searched for video files, also those inside; with --segments the clips of their labels.csv are taken,
    segments and whole files. clip.mp4#t=12.5,17 is the part of clip.mp4 from 12.5 s until 17 s. A video that cannot be
    read is shown with the reason and the others follow; exit code 65 when none could be read.
    """
    from ...runtime.backends.opening import GraphPlacement, OpeningOptions
    from ...runtime.backends.options import parse_backend_options
    from ...runtime.bundle.packaged import resolve_bundle
    from ...runtime.bundle.signature import read_trusted_keys
    from ..named_videos import find_videos
    from ..predict import Prediction, predict_videos

    if segments:
        _require_folder(videos)
    backend_options = parse_backend_options(backend or (), require=require_backend, precision=precision)
    opening = OpeningOptions(backend_options, threads, notice=notice)
    trusted = read_trusted_keys(trusted_key or (), where="--trusted-key")
    if bundle is None or model is None:
        bundle, model, own = _of_settings(AGENT.place(config, folder), bundle, model)
        trusted = (*trusted, *own)
    placements: list[GraphPlacement] = []
    found, unusable = find_videos(videos, segments=segments)
    problems = [Prediction(each.path, reason=each.reason) for each in unusable]
    predicted: Iterator[Prediction] = iter(())
    if found:  # otherwise there is nothing to open the networks for
        predicted = predict_videos(
            resolve_bundle(bundle), model, found, top=top, opening=opening, trusted=trusted, on_open=placements.extend
        )
    predictions = []
    for prediction in itertools.chain(predicted, problems):
        predictions.append(_entry(prediction))
        if not as_json:
            for line in _prediction_lines(prediction):
                say(line)
    unread = sum("reason" in entry for entry in predictions)
    if not as_json and unread < len(predictions):
        show_placements(placements, backend_options)
    if not as_json and unread and len(predictions) > 1:
        say(f"{len(predictions) - unread} of {len(predictions)} videos read, {unread} could not be")
    backends = {placement.graph: placement.as_json() for placement in placements}
    result = {"predictions": predictions, "backends": backends, "unread": unread}
    if unread == len(predictions):
        end_with(_nothing_read(unread, found), result, as_json=as_json)
    return result


def _require_folder(videos: Sequence[Path]) -> None:
    """Raise UsageError where ``--segments`` has no folder to be about."""
    from ...base.errors import UsageError

    if not any(path.is_dir() for path in videos):
        raise UsageError(
            "--segments: none of these is a folder, expected one with a labels.csv",
            fix="give the folder, or name the segment: VIDEO#t=12.5,17",
        )


def _nothing_read(unread: int, found: Sequence[NamedVideo]) -> DataError:
    from ...base.errors import DataError

    return DataError(
        "the video could not be read" if unread == 1 else f"none of the {unread} videos could be read",
        fix=_fix_of_unread(found),
        code="all_clips_failed",
    )


def _fix_of_unread(found: Sequence[NamedVideo]) -> str:
    if any(video.path.exists() for video in found):
        return "the reasons are above; flamest-agent doctor shows if this machine can decode video"
    return "check the path: there is no such file" if found else "give video files, or folders that hold some"


def _of_settings(place: Place, bundle: Path | None, model: Path | None) -> tuple[Path, Path, TrustedKeys]:
    """Return bundle, model and trusted keys, those that were not given from the silo's settings."""
    from ...base.errors import DataError, SettingsError
    from ..end_of_run import FINAL_MODEL

    options = (("--bundle DIR", bundle), ("--model MODEL.safetensors", model))
    settings = own_settings(place, *(option for option, given in options if given is None))
    bundle = bundle or settings.bundle
    if bundle is None:
        raise SettingsError(f"{place.path} names no bundle", fix="set bundle in it, or give --bundle DIR")
    if model is None and not (settings.state / FINAL_MODEL).exists():
        raise DataError(
            f"this silo has no model of a run yet: {settings.state / FINAL_MODEL} is not there",
            fix="wait for the end of the run (flamest-agent status), or give --model MODEL.safetensors",
            code="no_model",
        )
    return bundle, model or settings.state / FINAL_MODEL, settings.trust()


def _entry(prediction: Prediction) -> dict[str, Any]:
    """Return a prediction for --json."""
    labels = [{"label": item.label, "probability": item.probability} for item in prediction.labels]
    part = prediction.segment
    entry = {
        "video": str(prediction.video),
        "start_s": None if part is None else part.start_s,
        "end_s": None if part is None else part.end_s,
        "labels": labels,
        "caption": prediction.caption,
        "warnings": list(prediction.warnings),
    }
    return {**entry, "reason": prediction.reason} if prediction.reason else entry


def _prediction_lines(prediction: Prediction) -> list[str]:
    """Return a prediction as text."""
    labels = [f"  {item.probability:6.1%}  {item.label}" for item in prediction.labels]
    last = prediction.reason or (f"caption: {prediction.caption}" if prediction.caption else "")
    warnings = [f"  warning: {warning}" for warning in prediction.warnings]
    return [prediction.name, *labels, *([f"  {last}"] if last else []), *warnings]
