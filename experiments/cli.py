"""``flamest-experiment``: the paper's tables and figures, one command each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..base.app import App
from ..base.console import command
from ..base.errors import DataError
from ..base.options import JsonOption, takes_records
from .baselines.cli import actionclip, kd
from .experiment_options import (
    FIXED_OPTIONS,
    CaptionsOption,
    DatasetOption,
    ExperimentOptions,
    OutOption,
    VideosOption,
    fit_options,
    names,
    refuse_fixed_options,
    refuse_lists,
)

if TYPE_CHECKING:
    from .paper.experiments import ExperimentContext
    from .paper.tables import TableResult

app = App(
    "flamest-experiment",
    extras=("experiments",),
    no_args_is_help=True,
    help="The paper's tables and figures, on extracted features or on a folder of videos. Every training is stored in "
    "OUT/runs: an interrupted command resumes from there, and tables share the trainings that they have in common.",
)
SUMMARIES = {
    "table1": "Table 1: parameters of every extractor, counted, next to the printed ones.",
    "table2": "Table 2: all extractors, federated.",
    "table3": "Table 3: all extractors, centralised.",
    "table4": "Table 4: ActionCLIP and FLAMeST: accuracy, seconds, trainable parameters.",
    "table5": "Table 5: FedAvg, FedProx and FedDyn, IID and Non-IID.",
    "table6": "Table 6: five classifiers, training and test accuracy.",
    "table7": "Table 7: 5, 10 and 15 local epochs.",
    "table8": "Table 8: 4, 8 and 10 silos, split in three ways.",
    "table9": "Table 9: gated fusion (RGCF) at 5 and 50 epochs against concatenation.",
    "figure2": "Figure 2: the global model over 50 rounds.",
    "figure3": "Figure 3: training curves, centralised, with ActionCLIP's.",
    "figure4": "Figure 4: the embeddings of two classes in two dimensions (UMAP).",
    "cross-validation": "20 random splits (80:20, mini-world 25:75): mean and standard deviation.",
    "failures": "The confusion matrix, and a page of misclassified clips with keyframes, caption and classes.",
    "resources": "Time per clip and stage, parameters, bytes sent, storage.",
    "beyond": "Options beyond the paper, each compared with the baseline over the seeds.",
    "grid": "A grid of your own: the main extractor with every combination of the lists given, one row each.",
    "all": "All of the above but grid, and one self-contained page, OUT/report.html.",
}
WITH_EXTERNAL_RUNS = ("table2", "table3", "table4", "figure3", "all")  # that show KD or ActionCLIP
NETWORKS = ("blip", "clip", "slow", "i3d", "resnet3d", "videomae")
CLASSES = {"miniworld": 25, "ucf101": 101, "hmdb51": 51}
SourceOption = Annotated[
    str, typer.Option(metavar="SRC", help="Source of this network in place of --weights, as for flamest-export.")
]


def _experiment(name: str) -> Callable[..., None]:
    """The command of an experiment; all experiments have the same options, and show those that they do not set."""

    @command
    @takes_records
    def run(options: ExperimentOptions, as_json: JsonOption = False) -> dict[str, Any]:
        refuse_fixed_options(name, options)
        refuse_lists(name, options)
        from .paper.request import open_context

        if name == "table1" and not options.has_features():
            return _count_parameters(options.dataset, options.out, as_json)
        context = open_context(options.request(), FIXED_OPTIONS.get(name, ()))
        if context.out != options.out and not as_json:
            print(f"{options.out} has results of other settings, so these are written to {context.out}")
        if name in WITH_EXTERNAL_RUNS:
            _warn(context.inputs.split_warnings())
        return _run_all(context, as_json) if name == "all" else _run_one(name, context, as_json)

    run.__doc__ = SUMMARIES[name]
    fit_options(run, name)
    return run


def _count_parameters(dataset: str, out: Path, as_json: bool) -> dict[str, Any]:
    """Table 1 without features: it counts the parameters of networks."""
    from .paper.resources import table1
    from .paper.table_output import write_table

    result = table1(CLASSES.get(dataset, 101))
    out.mkdir(parents=True, exist_ok=True)
    write_table(result, out)
    _show(result, as_json)
    from .paper.experiments import as_rows

    return {"experiment": "table1", "rows": as_rows(result), "out": str(out), "measured_on": {}}


def _run_one(name: str, context: ExperimentContext, as_json: bool) -> dict[str, Any]:
    from .paper.experiments import TABLES, as_rows, run_experiment, summary
    from .paper.tables import EXTERNAL, MEASURED

    result = run_experiment(name, context).result
    _show(result, as_json)
    if not as_json:
        print(f"written: {context.out / result.name}.json, .csv, .png, .svg")
    if name in TABLES and not any(row.status in (MEASURED, EXTERNAL) for row in result.rows):
        raise DataError(
            f"{name}: nothing was measured; every row has its reason", fix="see the rows above", code="nothing_measured"
        )
    return {
        "experiment": name,
        "rows": as_rows(result),
        "out": str(context.out),
        "measured_on": summary(context),
    }


def _run_all(context: ExperimentContext, as_json: bool) -> dict[str, Any]:
    import msgspec

    from .paper.experiments import as_rows, run_all, summary

    tables, found, page = run_all(context)
    for result in tables.values():
        _show(result, as_json)
    if not as_json:
        for finding in found:
            print(f"{finding.claim}: {finding.text}")
        print(f"report: {page}")
    return {
        "experiment": "all",
        "report": str(page),
        "rows": [{"table": name, **row} for name, result in tables.items() for row in as_rows(result)],
        "findings": msgspec.to_builtins(found),
        "measured_on": summary(context),
    }


def _warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _show(result: TableResult, as_json: bool) -> None:
    from .paper.table_output import as_text

    if not as_json:
        print(as_text(result) + "\n")


@app.command("list")
@command
def list_experiments(as_json: JsonOption = False) -> dict[str, Any]:
    """List all experiments."""
    if not as_json:
        for name, text in SUMMARIES.items():
            print(f"{name:17} {text}")
        print(f"{'kd, actionclip':17} The baselines that train on the videos; give their folder as --results.")
    return {"experiments": [{"name": name, "summary": text} for name, text in SUMMARIES.items()]}


@dataclass(frozen=True)
class ExtractCommandOptions:
    """The command line of ``extract``."""

    dataset: DatasetOption = ""
    videos: VideosOption = None
    out: OutOption = Path("experiments-out")
    weights: Annotated[
        str,
        typer.Option(
            help="Weights of all networks: miniworld, published, random:full or random:tiny; by default miniworld for "
            "the mini-world's videos and published for all others."
        ),
    ] = ""
    extractors: Annotated[str, typer.Option(help="Single extractors, separated by commas; all by default.")] = ""
    captions: CaptionsOption = None
    blip: SourceOption = ""
    clip: SourceOption = ""
    slow: SourceOption = ""
    i3d: SourceOption = ""
    resnet3d: SourceOption = ""
    videomae: SourceOption = ""

    def sources(self) -> dict[str, str]:
        """Return the sources that are given, by network."""
        return {network: source for network in NETWORKS if (source := getattr(self, network))}


@app.command()
@command
@takes_records
def extract(options: ExtractCommandOptions, as_json: JsonOption = False) -> dict[str, Any]:
    """Export and extract every single extractor into OUT/features. Resumable.

    Without --videos the mini-world is rendered into OUT/videos, whole or not at all: an interrupted rendering
    starts again. With other weights or captions than before, a bundle is built again, and the store of the old
    one is moved aside.
    """
    from .paper.request import ExtractOptions, extract_features

    done = extract_features(
        ExtractOptions(
            options.out,
            options.dataset,
            options.videos,
            options.weights,
            names(options.extractors),
            options.captions,
            options.sources(),
        )
    )
    _warn(done.warnings)
    if not as_json:
        print(f"weights: {done.weights} (for new bundles; existing ones keep theirs unless you give --weights)")
        for name, report in done.reports.items():
            state = report.get("status") or f"{report.get('clips')} clips"
            print(f"{name:18} {state}{': ' + report['why'] if 'why' in report else ''}")
    return {"features": str(options.out / "features"), "weights": done.weights, "extractors": done.reports}


for _name in SUMMARIES:
    app.command(_name)(_experiment(_name))
app.command("kd")(kd)
app.command("actionclip")(actionclip)


def main() -> None:
    app()
