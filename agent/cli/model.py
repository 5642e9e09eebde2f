"""The commands ``train`` and ``predict``: a model of this silo alone, and labels for new videos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...base.console import command, say
from ...base.options import JsonOption, ThreadsOption, TrustedKeyOption
from .backend_options import BackendOption, PredictPrecisionOption, RequireOption, StoreOption, notice, show_placements


@command
def train(
    store: StoreOption,
    out: Annotated[Path, typer.Option("--out", help="Where the model goes, MODEL.safetensors.")],
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
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Train the classifier on this machine alone, without a coordinator."""
    from ...base.errors import UsageError
    from ...fedproto.records import TrainSettings
    from ..training.local import LocalRequest, train_from_store

    try:
        widths = tuple(int(width) for width in hidden.split(",") if width.strip())
    except ValueError as error:
        raise UsageError(f"--hidden {hidden}: expected whole numbers with commas, like 512,256") from error
    if any(width < 1 for width in widths):
        raise UsageError(f"--hidden {hidden}: expected widths of 1 or more")
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
def predict(
    videos: Annotated[list[Path], typer.Argument(help="Video files.", metavar="VIDEO…")],
    bundle: Annotated[Path, typer.Option("--bundle", help="The bundle whose features the model was trained on.")],
    model: Annotated[Path, typer.Option("--model", help="MODEL.safetensors from train or from the coordinator.")],
    top: Annotated[int, typer.Option(min=1, help="How many labels to show.")] = 5,
    threads: ThreadsOption = None,
    trusted_key: TrustedKeyOption = None,
    backend: BackendOption = None,
    require_backend: RequireOption = False,
    precision: PredictPrecisionOption = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Name the action in new videos: the likeliest labels and the caption of a keyframe."""
    from ...runtime.backends.opening import GraphPlacement, OpeningOptions
    from ...runtime.backends.options import parse_backend_options
    from ...runtime.bundle.signature import read_trusted_keys
    from ..predict import predict_videos

    backend_options = parse_backend_options(backend or (), require=require_backend, precision=precision)
    opening = OpeningOptions(backend_options, threads, notice=notice)
    trusted = read_trusted_keys(trusted_key or (), where="--trusted-key")
    placements: list[GraphPlacement] = []
    predictions = []
    for prediction in predict_videos(
        bundle, model, videos, top=top, opening=opening, trusted=trusted, on_open=placements.extend
    ):
        labels = [{"label": item.label, "probability": item.probability} for item in prediction.labels]
        entry = {"video": str(prediction.video), "labels": labels, "caption": prediction.caption}
        if prediction.reason:
            entry["reason"] = prediction.reason
        predictions.append(entry)
        if not as_json:
            say(str(prediction.video))
            for item in prediction.labels:
                say(f"  {item.probability:6.1%}  {item.label}")
            say(f"  {prediction.reason or 'caption: ' + prediction.caption}")
    if not as_json:
        show_placements(placements, backend_options)
    return {"predictions": predictions, "backends": {placement.graph: placement.as_json() for placement in placements}}
