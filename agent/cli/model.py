"""The command ``train``: a model of this silo alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...base.console import command, counted, say
from ...base.errors import UsageError
from ...base.options import JsonOption, ThreadsOption
from . import AGENT, ConfigOption, DirOption
from .own_settings import OwnStoreOption, own_aliases, own_paths


@command
@AGENT.errors_name_the_place
def train(
    out: Annotated[Path, typer.Option("--out", help="Where the model goes, MODEL.safetensors.")],
    store: OwnStoreOption = None,
    recipe: Annotated[
        str, typer.Option(metavar="NAME", help="default, or paper: what the next six options are when not given.")
    ] = "default",
    passes: Annotated[int, typer.Option(min=1, help="Rounds of local epochs, as a federated run has.")] = 80,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs in one round; 5.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Clips per step of training; 128.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=0.0, help="Learning rate of Adam; 0.0003, falling; the paper's 0.01.")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(min=0.0, help="Adam's L2 term; 0.0001.")] = None,
    hidden: Annotated[
        str | None, typer.Option(help='Widths of the hidden layers; "" (none), of the paper 512,256.')
    ] = None,
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
    from ...fedproto.recipes import RECIPES
    from ..training.local import LocalRequest, train_from_store

    if recipe not in RECIPES:
        raise UsageError(f"--recipe {recipe}: there is no such recipe", fix=f"known: {', '.join(RECIPES)}")
    rates = {"learning_rate": learning_rate, "weight_decay": weight_decay}
    train_given = {"epochs": epochs, "batch_size": batch_size, **rates}
    given: dict[str, Any] = {"train": {key: value for key, value in train_given.items() if value is not None}}
    if hidden is not None:
        given["hidden"] = _widths(hidden)
    place = AGENT.place(config, folder)
    if store is None:
        settings, paths = own_paths(place, store=store, say_so=not as_json)
        store, precision = paths["store"], precision or settings.precision
    request = LocalRequest(
        store=store,
        fingerprint=fingerprint,
        precision=precision,
        recipe=recipe,
        given=given,
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
                f"accuracy on {counted(result['held_out'], 'held-out clip')}: {result['accuracy']:.3f} "
                f"(best {result['best_accuracy']:.3f}, chance {result['chance']:.3f})"
            )
        if result["coverage"] is not None:
            say(
                f"calibrated on them: temperature {result['temperature']:.2f}; of 100 clips of these classes it names "
                f"{100 * result['coverage']:.0f}, and calls the others unknown"
            )
    return result


def _widths(hidden: str) -> list[int]:
    """Return the widths that --hidden gives. Raises UsageError."""
    try:
        widths = [int(width) for width in hidden.split(",") if width.strip()]
    except ValueError as error:
        raise UsageError(
            f"--hidden {hidden}: expected whole numbers with commas, like 512,256", fix="--hidden 512,256"
        ) from error
    if any(width < 1 for width in widths):
        raise UsageError(f"--hidden {hidden}: expected widths of 1 or more", fix="--hidden 512,256")
    return widths
