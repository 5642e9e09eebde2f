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
    """Where the run stands; works beside a running server and without one."""
    from ..admin.report import status_lines, status_of
    from ..settings import load_coordinator_settings

    now = status_of(load_coordinator_settings(config))
    if not as_json:
        print("\n".join(status_lines(now)))
    return now


@command
def history(config: ConfigOption, as_json: JsonOption = False) -> dict[str, Any]:
    """A row per round. Loss and accuracy are of the model that the round STARTED from, on the silos'
    held-out clips; a silo's policy may keep them back. MB/silo is what an update and its model took; `lost` is what the
    codec of an update left out, at most. --json has every silo's figures. Last: bytes to 95 % of the last accuracy.
    """
    from ..admin.report import history_lines, history_of, reached_lines, reached_of
    from ..settings import load_coordinator_settings

    settings = load_coordinator_settings(config)
    rows, reached = history_of(settings), reached_of(settings)
    if not as_json:
        print("\n".join([*history_lines(rows), *reached_lines(reached)]))
    return {"rounds": rows, "to_95_percent": reached}


@command
def evaluation(
    config: ConfigOption,
    round_number: Annotated[
        int | None, typer.Option("--round", min=0, help="Of which round's model; the last measured one when not given.")
    ] = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """How a model does on the silos' held-out clips: in all, by silo, by class where silos tell it; and, at the end
    of a run with final_evaluation = "sites", how each site's model does on every other's clips.
    """
    from ..admin.evaluation_report import evaluation_lines, evaluation_of
    from ..settings import load_coordinator_settings

    found = evaluation_of(load_coordinator_settings(config), round_number)
    if not as_json:
        print("\n".join(evaluation_lines(found)))
    return found


@command
def model(
    config: ConfigOption,
    out: Annotated[Path, typer.Option("--out", metavar="MODEL.safetensors", help="Where the model goes.")],
    round_number: Annotated[
        int | None, typer.Option("--round", min=0, help="After which round; the last closed one when not given.")
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="The one that did best on the silos' held-out clips (`evaluation` shows it).")
    ] = False,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Copy a round's model out of the state folder, with its labels and fingerprint inside."""
    from ..admin.report import take_model
    from ..settings import load_coordinator_settings

    if best and round_number is not None:
        raise UsageError("--best and --round were both given", fix="give one of them")
    taken = take_model(load_coordinator_settings(config), out, "best" if best else round_number)
    if not as_json:
        print(f"{out}: model of round {taken['round']} of run '{taken['run']}', {taken['labels']} classes")
    return taken
