"""``flamest-coordinator status``, ``history``, ``evaluation`` and ``model``: a run's progress and its models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ...base.console import command, end_with, say
from ...base.errors import DataError, UnreachableError, UsageError
from ...base.options import JsonOption
from . import COORDINATOR, ConfigOption, DirOption, RunOption


@command
@COORDINATOR.errors_name_the_place
def status(config: ConfigOption = None, folder: DirOption = None, as_json: JsonOption = False) -> dict[str, Any]:
    """Show the state of the run, next to a running server or without one; exit code 69 when none runs."""
    from ..admin.status import status_lines, status_of
    from ..settings import load_coordinator_settings

    place = COORDINATOR.place(config, folder)
    try:
        now = status_of(load_coordinator_settings(place.path))
    except DataError as error:
        if error.code != "no_state":
            raise
        raise UnreachableError(error.message, fix=error.fix, code=error.code) from error  # never started
    if not as_json:
        for line in status_lines(now):
            say(place.hint(line))
    if not now["running"]:
        stopped = UnreachableError(
            f"no coordinator runs with {place.path}", fix=place.hint("flamest-coordinator run"), code="not_running"
        )
        end_with(stopped, now, as_json=as_json)
    return now


@command
@COORDINATOR.errors_name_the_place
def history(
    config: ConfigOption = None,
    folder: DirOption = None,
    run: RunOption = None,
    silos: Annotated[
        bool, typer.Option("--silos", help="Every silo's examples and norm too, claimed and counted.")
    ] = False,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Show a row per round. Loss and accuracy are of the model that the round made, on the silos' held-out clips,
    where the silo's policy allows to report them, with noise of a few clips unless it says otherwise.

    A model is measured in the next round; the last one after the run, with run.final_evaluation. In place of an
    accuracy: pending (the next round measures it), waiting (silos have yet to report, after the run), not-asked
    (run.final_evaluation is "none"), no-report (no silo reports), - (the round made no model).
    MB/silo is the size of an update and its model; `lost` is the largest share that the codec of an update left
    out. Below a round: updates that counted less than they claimed. --json has every silo's figures, and as `incoming`
    those of the model that the round started from. Last line: bytes until a model had 95 % of the last accuracy.
    """
    from ..admin.communication_cost import communication_cost_lines, communication_cost_of
    from ..admin.earlier_run import settings_of_run
    from ..admin.status import history_lines, history_of
    from ..settings import load_coordinator_settings

    place = COORDINATOR.place(config, folder)
    settings = settings_of_run(load_coordinator_settings(place.path), run)
    rows, reached = history_of(settings), communication_cost_of(settings)
    if not as_json:
        for line in (*history_lines(rows, silos=silos), *communication_cost_lines(reached)):
            say(place.hint(line))
    return {"rounds": rows, "to_95_percent": reached}


@command
@COORDINATOR.errors_name_the_place
def evaluation(
    config: ConfigOption = None,
    folder: DirOption = None,
    run: RunOption = None,
    round_number: Annotated[
        int | None,
        typer.Option("--round", min=0, help="Of which round; the last evaluated one when not given."),
    ] = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Show results of a model on the silos' held-out clips: in all, by silo, by class where silos report it; and, at
    the end of a run with final_evaluation = "sites", results of each silo's model on every other's clips; with gains =
    true, the final model's gain over a head that a silo trained alone, of the silos that report it.

    A silo adds noise of a few clips to what it reports, unless its policy says otherwise: figures of silos with few
    clips say little.
    """
    from ..admin.earlier_run import settings_of_run
    from ..admin.models import evaluation_lines, evaluation_of
    from ..settings import load_coordinator_settings

    place = COORDINATOR.place(config, folder)
    found = evaluation_of(settings_of_run(load_coordinator_settings(place.path), run), round_number)
    if not as_json:
        for line in evaluation_lines(found):
            say(place.hint(line))
    return found


@command
@COORDINATOR.errors_name_the_place
def model(
    out: Annotated[Path, typer.Option("--out", metavar="MODEL.safetensors", help="The file to write.")],
    file_format: Annotated[
        Literal["safetensors", "onnx"],
        typer.Option("--format", help="onnx: graphs that ONNX Runtime and others run, --out MODEL.onnx."),
    ] = "safetensors",
    parts: Annotated[
        str | None,
        typer.Option(
            "--parts",
            metavar="W,W",
            help="With --format onnx: widths of the fused graph's inputs, like 768,2048, where the run's settings do "
            "not name them (run.head.blocks).",
        ),
    ] = None,
    config: ConfigOption = None,
    folder: DirOption = None,
    run: RunOption = None,
    round_number: Annotated[
        int | None, typer.Option("--round", min=0, help="Of which round; the last closed one when not given.")
    ] = None,
    best: Annotated[
        bool,
        typer.Option("--best", help="The one with the highest accuracy on held-out clips."),
    ] = False,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Copy a round's model out of the state folder, with its labels and fingerprint inside, and show its accuracy on
    the silos' held-out clips, where it has been measured.

    --format onnx writes the head alone, MODEL.onnx, with the input x; and MODEL.fused.onnx with an input for each part
    of the embedding (vlm, cnn), where it has several. Both give logits and probabilities.
    """
    from ...fedproto.head_onnx import parse_parts
    from ...fedproto.onnx_files import check_onnx_name
    from ..admin.earlier_run import settings_of_run
    from ..admin.models import ModelForm, model_lines, take_model
    from ..settings import load_coordinator_settings

    if best and round_number is not None:
        raise UsageError("--best and --round were both given", fix="give one of them")
    if parts is not None and file_format != "onnx":
        raise UsageError("--parts is for --format onnx", fix="add --format onnx, or leave --parts out")
    form = ModelForm(file_format, parse_parts(parts) if parts is not None else ())
    if file_format == "onnx":
        check_onnx_name(out)
    place = COORDINATOR.place(config, folder)
    settings = settings_of_run(load_coordinator_settings(place.path), run)
    taken = take_model(settings, out, "best" if best else round_number, form=form)
    if not as_json:
        for line in model_lines(taken):
            say(place.hint(line))
    return taken
