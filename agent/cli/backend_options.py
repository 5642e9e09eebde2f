"""The options that choose where the networks run, and the lines that show where they ran."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ...base.console import say
from ...base.errors import printable

if TYPE_CHECKING:
    from ...runtime.backends.opening import Place
    from ...runtime.backends.options import BackendOptions
    from ...runtime.backends.unavailable import BackendUnavailable

BackendOption = Annotated[
    list[str] | None,
    typer.Option(
        "--backend",
        metavar="NAME",
        help="Where the networks run: auto, tensorrt, onnxruntime-cuda, openvino or onnxruntime (the CPU); graphs "
        "that cannot run there run on the next one below. GRAPH=NAME for one graph alone: text=onnxruntime. Can be "
        "repeated.",
    ),
]
RequireOption = Annotated[
    bool, typer.Option("--require-backend", help="Fail if a graph does not run on the backend named.")
]
ComputeOption = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="bf16|auto",
        help="bf16: compute an fp32 bundle in bf16, which OpenVINO does on a CPU that has it; its features are stored "
        "separately from fp32 ones. auto: measure once, on up to four new clips, which precision is clearly faster "
        "here and gives the same features. A store with features of the bundle keeps their precision.",
    ),
]


def notice(text: str) -> None:
    """Print a notice on stderr before something that takes minutes; stdout is for results."""
    typer.echo(printable(text), err=True)


def show_places(places: Sequence[Place], backend_options: BackendOptions) -> None:
    """Print where each graph ran; with a backend chosen by name, also why the others did not run there."""
    for line in places_lines(places, backend_options):
        say(line)


def places_lines(places: Sequence[Place], backend_options: BackendOptions) -> list[str]:
    from ...runtime.backends.options import AUTO
    from ...runtime.backends.ranking import TITLES
    from ...runtime.backends.unavailable import Code

    together: dict[tuple[str, str], list[str]] = {}
    for place in places:
        together.setdefault((place.where, place.precision), []).append(place.graph)
    lines = [f"{', '.join(graphs)} ran on {where}, {precision}" for (where, precision), graphs in together.items()]
    refused: dict[
        BackendUnavailable, tuple[dict[str, None], dict[str, None]]
    ] = {}  # graphs and backends, each once, in order
    for place in places:
        for kind, reason in place.refused if backend_options.backend_of(place.graph) != AUTO else ():
            if reason.code is not Code.NOT_ASKED:
                graphs, titles = refused.setdefault(reason, ({}, {}))
                graphs[place.graph] = titles[TITLES[kind]] = None
    for reason, (graphs, titles) in refused.items():
        lines += [f"  {', '.join(graphs)} not on {'; '.join(titles)}", f"    {reason}", f"    fix: {reason.fix}"]
    return lines
