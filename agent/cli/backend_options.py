"""The options that choose where the networks run, and the lines that show where they ran."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

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
        "that cannot run there fall back to the next of this list. GRAPH=NAME for one graph alone: text=onnxruntime. "
        "Can be repeated.",
    ),
]
RequireOption = Annotated[
    bool, typer.Option("--require-backend", help="Fail if a graph does not run on the backend named.")
]
ExtractPrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="bf16|auto",
        help="bf16: compute an fp32 bundle in bf16, which OpenVINO does on a CPU that has it; its features are stored "
        "separately from fp32 ones. auto: measure once, on up to four new clips, which precision is clearly faster "
        "here and gives the same features. A store with features of the bundle keeps their precision.",
    ),
]
PredictPrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="bf16|auto",
        help="bf16: compute an fp32 bundle in bf16, which OpenVINO does on a CPU that has it. auto: measure once, on "
        "up to four of the videos, which precision is clearly faster here and gives the same features.",
    ),
]
DoctorPrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="bf16",
        help="bf16: show what can compute an fp32 bundle in bf16; auto needs a measurement, which extract makes.",
    ),
]
StoreOption = Annotated[Path, typer.Option("--store", help="The feature store, one file, which extract fills.")]


def notice(text: str) -> None:
    """Print a notice on stderr before something that takes minutes; stdout is for results."""
    typer.echo(printable(text), err=True)


def show_places(places: Sequence[Place], backend_options: BackendOptions) -> None:
    """Print where each graph ran; with a backend chosen by name, also why the others did not run there."""
    for line in places_lines(places, backend_options):
        say(line)


class _Refused(NamedTuple):
    """The graphs and backends that one reason is about, each once, in order."""

    graphs: dict[str, None]
    backends: dict[str, None]


def places_lines(places: Sequence[Place], backend_options: BackendOptions) -> list[str]:
    """Return the lines of ``show_places``."""
    from ...runtime.backends.options import AUTO

    together: dict[tuple[str, str], list[str]] = {}
    for place in places:
        together.setdefault((place.where, place.precision), []).append(place.graph)
    lines = [f"{', '.join(graphs)} ran on {where}, {precision}" for (where, precision), graphs in together.items()]
    chosen_by_name = [place for place in places if backend_options.backend_of(place.graph) != AUTO]
    return lines + _refusal_lines(chosen_by_name)


def _refusal_lines(places: Sequence[Place]) -> list[str]:
    """Return why graphs do not run on backends that were tried, one paragraph for each reason."""
    from ...runtime.backends.ranking import TITLES
    from ...runtime.backends.unavailable import Code

    refused: dict[BackendUnavailable, _Refused] = {}
    for place in places:
        for kind, reason in place.refused:
            if reason.code is not Code.NOT_ASKED:
                found = refused.setdefault(reason, _Refused({}, {}))
                found.graphs[place.graph] = found.backends[TITLES[kind]] = None
    lines: list[str] = []
    for reason, found in refused.items():
        lines.append(f"  {', '.join(found.graphs)} not on {'; '.join(found.backends)}")
        lines += [f"    {reason}", f"    fix: {reason.fix}"]
    return lines
