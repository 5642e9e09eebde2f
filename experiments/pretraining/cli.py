"""``python -m flamest.experiments.pretraining``: train the mini-world's small networks again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ...base.console import command
from ...base.errors import UsageError
from ...base.progress import progress_bar
from ...export.networks.small import SMALL_FORMS, WEIGHTS
from .training import HELD_OUT, TRAINED, plan_training, train_network

app = typer.Typer(add_completion=False)


@app.command()
@command
def train(
    names: Annotated[list[str] | None, typer.Argument(help="slow blip clip resnet3d i3d videomae; all if none")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the weights and of report.json.")] = WEIGHTS,
    groups: Annotated[int, typer.Option(help="Scenes that are trained on.")] = TRAINED,
    held_out: Annotated[int, typer.Option(help="Scenes that are held out for the figures.")] = HELD_OUT,
    steps: Annotated[float, typer.Option(help="Share of the usual number of steps.")] = 1.0,
    threads: Annotated[int, typer.Option(help="Cores.")] = 2,
) -> None:
    """Render the world that the small networks are trained on, train them, and write weights and figures."""
    import torch

    from .clips import film

    chosen = names or list(SMALL_FORMS)
    unknown = [name for name in chosen if name not in SMALL_FORMS]
    if unknown:
        raise UsageError(f"no small network is called '{unknown[0]}'; there are {', '.join(SMALL_FORMS)}")
    torch.set_num_threads(threads)
    with progress_bar("rendering", 25 * (groups + held_out), unit="clips") as progress:
        footage = film(groups=groups + held_out, processes=threads, progress=progress)
    seen, unseen = footage.of_groups(range(groups)), footage.of_groups(range(groups, groups + held_out))
    for name in chosen:
        settings, count = plan_training(name, share=steps)
        started = time.monotonic()
        with progress_bar(name, count, unit="steps") as progress:
            figures = train_network(name, seen, unseen, settings, folder=out, progress=progress)
        said = ", ".join(f"{key} {value:.4g}" for key, value in figures.items())
        print(f"{name}: {said}, {time.monotonic() - started:.0f} s")


def main() -> None:
    app()
