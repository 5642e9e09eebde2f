"""The options of ``flamest-experiment NAME``: those that all experiments share, and those that one sets itself."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from ..base.errors import UsageError

if TYPE_CHECKING:
    from .paper.request import ExperimentRequest

# Options that the experiment sets itself.
FIXED_OPTIONS = {
    "table1": ("rounds", "epochs", "seeds", "silos", "strategies"),
    "table3": ("rounds", "strategies"),
    "table4": ("rounds", "strategies"),
    "table7": ("epochs",),
    "table8": ("silos",),
    "table9": ("epochs",),
    "figure2": ("rounds",),
    "figure3": ("rounds", "epochs", "strategies"),
    "figure4": ("strategies",),
    "cross-validation": ("seeds",),
    "resources": ("strategies",),
}
LISTS = ("strategies", "epochs", "batch_size", "learning_rate", "silos", "beta")  # options that take several values
ONE_VALUE = ("table1", "figure2", "figure3", "figure4", "failures", "resources", "all")  # experiments without such rows
ROW_FOR_EACH = "; a list makes a row for each."
OutOption = Annotated[Path, typer.Option("--out", help="Folder for results, runs and extracted features.")]
DatasetOption = Annotated[
    str, typer.Option("--dataset", help="miniworld, ucf101 or hmdb51: sets defaults, split and the paper's column.")
]
CaptionsOption = Annotated[
    Path | None, typer.Option("--captions", help="CLIP's captions, one per class; published CLIP needs them.")
]
VideosOption = Annotated[
    Path | None, typer.Option("--videos", help="Folder of videos; missing features are extracted first.")
]


@dataclass(frozen=True)
class ExperimentOptions:
    """The command line of an experiment; all experiments have the same options."""

    store: Annotated[
        Path | None,
        typer.Option("--store", help="Features: a store or a folder of NAME.sqlite; by default OUT/features."),
    ] = None
    dataset: DatasetOption = ""
    videos: VideosOption = None
    out: OutOption = Path("experiments-out")
    seeds: Annotated[int | None, typer.Option(min=1, help="Repetitions, for mean and interval.")] = None
    rounds: Annotated[int | None, typer.Option(min=1, help="Communication rounds.")] = None
    strategies: Annotated[
        str | None,
        typer.Option(
            "--strategies",
            metavar="NAME[:VALUE][,…]",
            help="Strategy: fedavg, fedprox:0.1, feddyn:0.01, median, trimmed_mean:0.25, fedavg:clip=2, …; a list "
            "makes a row for each.",
        ),
    ] = None
    epochs: Annotated[
        str | None, typer.Option(metavar="N[,N…]", help="Local epochs per round; a list makes a row for each.")
    ] = None
    batch_size: Annotated[
        str | None, typer.Option(metavar="N[,N…]", help="Clips per step of training; a list makes a row for each.")
    ] = None
    learning_rate: Annotated[
        str | None, typer.Option(metavar="X[,X…]", help="Learning rate of Adam; a list makes a row for each.")
    ] = None
    silos: Annotated[
        str | None, typer.Option(metavar="N[,N…]", help="Number of silos, 4 by default; a list makes a row for each.")
    ] = None
    beta: Annotated[
        str | None,
        typer.Option(
            metavar="X[,X…]", help="Dirichlet parameter of Non-IID, 0.6 by default; a list makes a row for each."
        ),
    ] = None
    split: Annotated[str, typer.Option(help="groups, paper, official-1, -2 or -3; by default the data set's own.")] = ""
    test_share: Annotated[
        float | None,
        typer.Option(min=0.01, max=0.99, help="Share of the clips held out, by whole groups; 0.2, mini-world 0.75."),
    ] = None
    results: Annotated[
        Path | None, typer.Option("--results", help="Folder of kd.json and actionclip.json to include.")
    ] = None
    classes: Annotated[str, typer.Option(help="Two classes for figure 4, separated by a comma.")] = ""
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Number of parallel trainings, one core each.")] = 2
    captions: CaptionsOption = None
    fingerprint: Annotated[
        str | None, typer.Option(help="Fingerprint of the features (or its start), if a store holds several kinds.")
    ] = None
    precision: Annotated[
        str | None, typer.Option(help="Precision of the features, if a store holds several kinds.")
    ] = None

    def has_features(self) -> bool:
        """True where features are given, or are in OUT already, or can be extracted from videos."""
        return self.store is not None or self.videos is not None or (self.out / "features").is_dir()

    def request(self) -> ExperimentRequest:
        """Return the request that the options make."""
        from .paper.grid import parse_choices
        from .paper.request import ExperimentRequest

        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        choices = parse_choices({option: given.pop(option) for option in LISTS})
        return ExperimentRequest(**{**given, "choices": choices, "classes": names(self.classes)})


def fit_options(run: Callable[..., None], name: str) -> None:
    """Fit a command's help to its experiment: no option that is refused, no list where there are no rows for it.

    Giving such an option or list is still an error that says why.
    """
    signature = inspect.signature(run)
    parameters = dict(signature.parameters)

    def change(option: str, **fields: object) -> None:
        kind, info = get_args(parameters[option].annotation)
        changed = copy.copy(info)
        for field, value in fields.items():
            setattr(changed, field, value)
        parameters[option] = parameters[option].replace(annotation=Annotated[kind, changed])
        run.__annotations__[option] = Annotated[kind, changed]

    for option in LISTS if name in ONE_VALUE else ():
        info = get_args(parameters[option].annotation)[1]
        change(option, metavar=info.metavar.split("[,")[0].split(",")[0], help=info.help.replace(ROW_FOR_EACH, "."))
    for option in FIXED_OPTIONS.get(name, ()):
        change(option, hidden=True)
    run.__signature__ = signature.replace(parameters=list(parameters.values()))  # type: ignore[attr-defined]


def refuse_lists(name: str, options: ExperimentOptions) -> None:
    """Raise UsageError on a list for an experiment that is not a table."""
    if name not in ONE_VALUE:
        return
    for option in LISTS:
        value = getattr(options, option)
        if value is not None and "," in value:
            flag = f"--{option.replace('_', '-')}"
            raise UsageError(
                f"{flag} {value}: {name} takes one value, lists are for tables",
                fix=f"flamest-experiment grid {flag} {value}, or give one value",
            )


def refuse_fixed_options(name: str, options: ExperimentOptions) -> None:
    """Raise UsageError on an option that the experiment sets itself."""
    for option in FIXED_OPTIONS.get(name, ()):
        value = getattr(options, option)
        if value is not None:
            flag = f"--{option.replace('_', '-')}"
            raise UsageError(f"{flag} {value}: {name} sets that itself", fix=f"leave {flag} out")


def names(text: str) -> tuple[str, ...]:
    """The names in a list separated by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
