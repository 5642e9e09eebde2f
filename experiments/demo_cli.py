"""``flamest-demo``: the whole system at work on this machine."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from ..base.app import App
from ..base.console import command
from ..base.errors import FlamestError
from ..base.options import JsonOption

app = App("flamest-demo", extras=("agent", "coordinator"))


@app.command()
@command
def demo(
    out: Annotated[
        Path | None, typer.Option("--out", help="A new folder for the demo's files; a temporary one by default.")
    ] = None,
    videos: Annotated[
        Path | None,
        typer.Option("--videos", help="Your own clips: LABEL/clip.ext, or a labels.csv. Rendered by default."),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle", help="A bundle from flamest-export; by default the mini-world's, which comes with the package."
        ),
    ] = None,
    export: Annotated[
        bool,
        typer.Option(
            "--export",
            help="Export the mini-world's networks from PyTorch instead of using the bundle in the package; "
            "needs the extra: pip install 'flamest[export]' (about 5 GB).",
        ),
    ] = False,
    silos: Annotated[int, typer.Option(min=2, help="Number of silos that share the clips.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of local training and averaging.")] = 10,
    beta: Annotated[
        float, typer.Option(min=0.01, help="Dirichlet split over silos: small is uneven, 100 is even.")
    ] = 0.6,
    test_share: Annotated[float, typer.Option(min=0.05, max=0.8, help="Share of the clips held out, by groups.")] = 0.3,
    seed: Annotated[int, typer.Option(help="Seed of the clips, the splits and the training.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Cores per silo.")] = 1,
    practice: Annotated[
        Path | None,
        typer.Option(
            "--practice",
            metavar="DIR",
            help="Run no demo: write a bundle and clips for two silos into DIR, to go through the quick starts with.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Run FLAMeST from video files to a federated model, on this machine alone.

    Four silos and a coordinator run as separate processes over mutual TLS. At the end the federated accuracy on
    held-out clips is compared with each silo on its own, with one model on all clips, and with a prediction from
    file sizes alone; the report page is in the output folder.
    """
    if practice is not None:
        return _practice(practice, as_json=as_json)

    from .demo import run_demo
    from .demo_checks import DemoRequest

    folder = out if out is not None else Path(tempfile.mkdtemp(prefix="flamest-demo-"))
    request = DemoRequest(folder, videos, bundle, silos, rounds, beta, test_share, seed, threads, export)
    try:
        return run_demo(request, lambda line: print(line, flush=True))
    except (FlamestError, KeyboardInterrupt):
        if out is None:
            with contextlib.suppress(OSError):  # kept unless it is empty
                folder.rmdir()
        raise


def _practice(folder: Path, *, as_json: bool) -> dict[str, Any]:
    """Write the files for the quick starts and say what is where."""
    from .practice import LABELS, SILOS, make_practice

    made = make_practice(folder)
    if not as_json:
        print(f"{folder}/bundle: the mini-world's bundle" + ("" if made.written else " (all files are there already)"))
        print(f"{folder}/labels.txt: {len(LABELS)} class names")
        for silo in SILOS if made.clips else ():
            print(f"{folder}/{silo}/videos: {made.clips[silo]} labelled clips")
        if made.clips:
            print(f"{folder}/new: {made.clips['new']} clips to predict")
            print(f"{folder}/recording: a long recording without labels")
        else:
            print("no clips: they are a silo's, and PyAV writes them (pip install 'flamest[agent]')")
    return {"practice": str(folder), "bundle": str(folder / "bundle"), "clips": made.clips, "written": made.written}


def main() -> None:
    app()
