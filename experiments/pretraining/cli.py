"""``python -m flamest.experiments.pretraining``: train the mini-world's small networks again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ...base.app import App
from ...base.console import command
from ...base.errors import UsageError
from ...base.progress import progress_bar
from ...export.networks.small import SMALL_FORMS, WEIGHTS
from .networks import HELD_OUT, TRAINED, train_network, training_settings

app = App("flamest.experiments.pretraining", extras=("export",), add_completion=False)


@app.command()
@command
def train(
    names: Annotated[
        list[str] | None, typer.Argument(help="slow blip clip resnet3d i3d videomae; all by default.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the weights and report.json.")] = WEIGHTS,
    groups: Annotated[int, typer.Option(help="Scenes to train on.")] = TRAINED,
    held_out: Annotated[int, typer.Option(help="Scenes held out for the figures.")] = HELD_OUT,
    steps: Annotated[float, typer.Option(help="Share of the usual number of steps.")] = 1.0,
    threads: Annotated[int, typer.Option(help="Cores.")] = 2,
) -> None:
    """Render the training clips, train the small networks, and write their weights and figures."""
    import torch

    from .clips import render_training_clips

    chosen = names or list(SMALL_FORMS)
    unknown = [name for name in chosen if name not in SMALL_FORMS]
    if unknown:
        raise UsageError(
            f"unknown network '{unknown[0]}', expected one of: {', '.join(SMALL_FORMS)}", fix="choose among those"
        )
    torch.set_num_threads(threads)
    with progress_bar("rendering", 25 * (groups + held_out), unit="clips") as progress:
        clips = render_training_clips(groups=groups + held_out, processes=threads, progress=progress)
    training, unseen = clips.of_groups(range(groups)), clips.of_groups(range(groups, groups + held_out))
    for name in chosen:
        settings, count = training_settings(name, share=steps)
        started = time.monotonic()
        with progress_bar(name, count, unit="steps") as progress:
            figures = train_network(name, training, unseen, settings, folder=out, progress=progress)
        summary = ", ".join(f"{key} {value:.4g}" for key, value in figures.items())
        print(f"{name}: {summary}, {time.monotonic() - started:.0f} s")


def main() -> None:
    app()
