"""``flamest-coordinator status``, ``history``, ``evaluation`` and ``model``: a run's progress and its models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...base.console import command
from ...base.errors import UsageError
from ...base.options import JsonOption
from . import ConfigOption


@command
def status(config: ConfigOption, as_json: JsonOption = False) -> dict[str, Any]:
    """Show the state of the run; works next to a running server and without one."""
    from ..admin.status import status_lines, status_of
    from ..settings import load_coordinator_settings

    now = status_of(load_coordinator_settings(config))
    if not as_json:
        print("\n".join(status_lines(now)))
    return now


@command
def history(
    config: ConfigOption,
    silos: Annotated[
        bool, typer.Option("--silos", help="Every silo's examples and norm too, claimed and counted.")
    ] = False,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Show a row per round. Loss and accuracy are of the model that the round STARTED from, on the silos'
    held-out clips, where the silo's policy allows to report them, with noise of a few clips unless it says
    otherwise. MB/silo is the size of an update and its model;
    `lost` is the largest share that the codec of an update left out. Below a round: updates that counted less than they
    claimed. --json has every silo's figures. Last line: bytes until a model had 95 % of the last accuracy.
    """
    from ..admin.communication_cost import communication_cost_lines, communication_cost_of
    from ..admin.status import history_lines, history_of
    from ..settings import load_coordinator_settings

    settings = load_coordinator_settings(config)
    rows, reached = history_of(settings), communication_cost_of(settings)
    if not as_json:
        print("\n".join([*history_lines(rows, silos=silos), *communication_cost_lines(reached)]))
    return {"rounds": rows, "to_95_percent": reached}


@command
def evaluation(
    config: ConfigOption,
    round_number: Annotated[
        int | None,
        typer.Option("--round", min=0, help="Of which round; the last evaluated one when not given."),
    ] = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Show results of a model on the silos' held-out clips: in all, by silo, by class where silos report it; and, at
    the end of a run with final_evaluation = "sites", results of each silo's model on every other's clips.

    A silo adds noise of a few clips to what it reports, unless its policy says otherwise: figures of silos with few
    clips say little.
    """
    from ..admin.models import evaluation_lines, evaluation_of
    from ..settings import load_coordinator_settings

    found = evaluation_of(load_coordinator_settings(config), round_number)
    if not as_json:
        print("\n".join(evaluation_lines(found)))
    return found


@command
def model(
    config: ConfigOption,
    out: Annotated[Path, typer.Option("--out", metavar="MODEL.safetensors", help="The file to write.")],
    round_number: Annotated[
        int | None, typer.Option("--round", min=0, help="Of which round; the last closed one when not given.")
    ] = None,
    best: Annotated[
        bool,
        typer.Option("--best", help="The one with the highest accuracy on held-out clips."),
    ] = False,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Copy a round's model out of the state folder, with its labels and fingerprint inside."""
    from ..admin.models import take_model
    from ..settings import load_coordinator_settings

    if best and round_number is not None:
        raise UsageError("--best and --round were both given", fix="give one of them")
    taken = take_model(load_coordinator_settings(config), out, "best" if best else round_number)
    if not as_json:
        print(f"{out}: model of round {taken['round']} of run '{taken['run']}', {taken['labels']} classes")
    return taken
