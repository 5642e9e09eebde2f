"""The options that choose where the networks run, and the lines that show where they ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from ...base.console import say
from ...base.errors import printable
from ...runtime.pipeline_options import MOST_ASKED, PipelineSizes

if TYPE_CHECKING:
    from ...runtime.backends.opening import GraphPlacement
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
BatchOption = Annotated[
    int | None,
    typer.Option(
        "--batch",
        min=1,
        max=MOST_ASKED,
        help="Clips in one run of a network. By default 1 on a CPU, and 4 to 32 on a GPU, by its memory; never more "
        "than a TensorRT engine takes.",
    ),
]
ReadersOption = Annotated[
    int | None,
    typer.Option(
        "--readers",
        min=1,
        max=MOST_ASKED,
        help="Processes that decode clips, in all; each takes 0.1 GB, and up to 0.26 GB of frames. By default at most "
        "3 for networks on a CPU, and with a GPU one per core but one, as half of the memory allows, at most 64.",
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="cuda:N|all|cpu",
        help="The GPUs to use, each by a worker process: cuda:0,cuda:1, or all; a worker that ends costs no clip. cpu: "
        "none of them; cpu,cpu: two processes that share the cores. By default the first GPU, or the CPU.",
    ),
]
StoreOption = Annotated[Path, typer.Option("--store", help="The feature store, one file, which extract fills.")]


def notice(text: str) -> None:
    """Print a notice on stderr before something that takes minutes; stdout is for results."""
    typer.echo(printable(text), err=True)


def show_placements(placements: Sequence[GraphPlacement], backend_options: BackendOptions) -> None:
    """Print where each graph ran; with a backend chosen by name, also why the others did not run there."""
    for line in placements_lines(placements, backend_options):
        say(line)


def show_pipeline(pipeline: Mapping[str, PipelineSizes]) -> None:
    """Print what was chosen for each device."""
    for device, sizes in pipeline.items():
        captions = f", {sizes.captions} caption{'s' if sizes.captions != 1 else ''} at once" if sizes.captions else ""
        readers = f"{sizes.readers} reader{'s' if sizes.readers != 1 else ''}"
        clips = f"{sizes.batch} clip{'s' if sizes.batch != 1 else ''}"
        say(f"{device}: {readers}, {clips} in one run{captions}")


class _Refused(NamedTuple):
    """The graphs and backends that one reason is about, each once, in order."""

    graphs: dict[str, None]
    backends: dict[str, None]


def placements_lines(placements: Sequence[GraphPlacement], backend_options: BackendOptions) -> list[str]:
    """Return the lines of ``show_placements``."""
    from ...runtime.backends.options import AUTO

    together: dict[tuple[str, str], list[str]] = {}
    for placement in placements:
        together.setdefault((placement.where, placement.precision), []).append(placement.graph)
    lines = [f"{', '.join(graphs)} ran on {where}, {precision}" for (where, precision), graphs in together.items()]
    chosen_by_name = [placement for placement in placements if backend_options.backend_of(placement.graph) != AUTO]
    return lines + _refusal_lines(chosen_by_name)


def _refusal_lines(placements: Sequence[GraphPlacement]) -> list[str]:
    """Return why graphs do not run on backends that were tried, one paragraph for each reason."""
    from ...runtime.backends.ranking import CANDIDATE_TITLES
    from ...runtime.backends.unavailable import Code

    skipped: dict[BackendUnavailable, _Refused] = {}
    for placement in placements:
        for kind, reason in placement.skipped:
            if reason.code is not Code.NOT_ASKED:
                found = skipped.setdefault(reason, _Refused({}, {}))
                found.graphs[placement.graph] = found.backends[CANDIDATE_TITLES[kind]] = None
    lines: list[str] = []
    for reason, found in skipped.items():
        lines.append(f"  {', '.join(found.graphs)} not on {'; '.join(found.backends)}")
        lines += [f"    {reason}", f"    fix: {reason.fix}"]
    return lines
