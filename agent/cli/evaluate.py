"""The command ``evaluate``: a model's figures on this silo's own clips, and its gain over one trained alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...base.console import command, counted, say
from ...base.options import JsonOption, ThreadsOption
from . import AGENT, ConfigOption, DirOption
from .own_settings import OwnStoreOption, final_model, own_aliases, own_paths, own_settings

if TYPE_CHECKING:
    from ..evaluate import EvaluationRequest

SHOWN = 20  # wrong clips in the text; --json has them all


@command
@AGENT.errors_name_the_place
def evaluate(
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            metavar="FILE",
            help="MODEL.safetensors from train or the coordinator; by default the final one of this silo's last run.",
        ),
    ] = None,
    store: OwnStoreOption = None,
    own: Annotated[
        Path | None,
        typer.Option(
            "--own",
            metavar="FILE",
            help="The model that this silo trained alone (train); by default it is trained now, in the same way.",
        ),
    ] = None,
    alone: Annotated[
        bool, typer.Option("--alone/--no-alone", help="Compare with a model that this silo trains alone.")
    ] = True,
    all_clips: Annotated[
        bool, typer.Option("--all", help="Evaluate on all labelled clips, also those that were trained on.")
    ] = False,
    hold_out: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=0.9, help="Share of the groups that was held out, where the model does not say so itself."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of that choice: of a federation the run's, of train its --seed.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="Which precision, where the store holds several.")] = None,
    threads: ThreadsOption = None,
    config: ConfigOption = None,
    folder: DirOption = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Show how good a model is on this silo's own clips, next to one that this silo trains alone.

    Next to agent.toml no option is needed: after a run, model and store are the daemon's. The model is the run's final
    one, also where policy.adopt has put another one to use. The clips are those that were
    held out of training, where the model says which: one of train or of this silo's daemon does. With --all, and for a
    model that does not say it, they are all labelled clips, and the figures of clips that were trained on are too good.

    The gain is the difference of both accuracies with its 95 % interval; clips of one group count as alike. Nothing
    leaves this machine.
    """
    from ..evaluate import EvaluationRequest, evaluate_on_store

    place = AGENT.place(config, folder)
    if model is None:
        model = final_model(own_settings(place, "--model MODEL.safetensors"))
    if store is None:
        settings, paths = own_paths(place, store=store, say_so=not as_json)
        store, precision = paths["store"], precision or settings.precision
    request = EvaluationRequest(
        store=store,
        precision=precision,
        own=own,
        alone=alone,
        all_clips=all_clips,
        hold_out=hold_out,
        seed=seed,
        threads=threads,
        aliases=own_aliases(place, store),
    )
    result = evaluate_on_store(model, request)
    if not as_json:
        for line in _lines(result, request):
            say(line)
    return result


def _lines(result: dict[str, Any], request: EvaluationRequest) -> list[str]:
    """Return the figures in words."""
    clips = f"{counted(result['clips'], 'clip')} of {counted(result['groups'], 'group')}"
    which = "held out of training" if result["held_out"] else "which may have been trained on"
    of = f" (run '{result['run']}', round {result['round']})" if result["run"] else ""
    lines = [f"{result['model']}{of} on {clips}, {which}:", f"  {_accuracy(result)}"]
    if left_out := result["left_out"]:
        lines.append(f"  not counted: {counted(left_out, 'held-out clip')} of groups that the run has trained on")
    if result["own"] is not None:
        lines.append(f"  trained alone: {_accuracy(result['own'])}")
        lines.append(f"  gain: {_gain(result['gain'])} points")
    elif request.alone:
        lines.append(f"  not compared with a model trained alone: {result['no_own']}")
    lines += ["", *_class_lines(result)]
    wrong = result["wrong"]
    if wrong:
        lines += ["", f"wrong: {counted(len(wrong), 'clip')}, the most certain errors first"]
        lines += [_wrong_line(each) for each in wrong[:SHOWN]]
        lines += [f"  … and {len(wrong) - SHOWN} more (--json)"] if len(wrong) > SHOWN else []
    return lines


def _accuracy(figures: dict[str, Any]) -> str:
    low, high = 100 * figures["accuracy_low"], 100 * figures["accuracy_high"]
    return (
        f"accuracy {100 * figures['accuracy']:.1f} % (95 % interval {low:.1f} to {high:.1f}), "
        f"calibration error {figures['calibration_error']:.3f}"
    )


def _gain(gain: dict[str, Any]) -> str:
    return f"{100 * gain['gain']:+.1f} ({100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})"


def _class_lines(result: dict[str, Any]) -> list[str]:
    alone = result["own"] is not None
    rows = [["class", "clips", "right", *(["alone", "gain in points"] if alone else [])]]
    for label, figures in result["classes"].items():
        row = [label, str(figures["clips"]), str(figures["correct"])]
        if alone:
            gain = figures["gain"]
            row += [str(figures["own_correct"]), "too few groups" if gain is None else _gain(gain)]
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if 0 < column < 4 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _wrong_line(wrong: dict[str, Any]) -> str:
    alone = f"; alone: {wrong['own']}" if "own" in wrong else ""
    return f"  {wrong['name']}: {wrong['label']}, predicted {wrong['predicted']} ({wrong['probability']:.0%}){alone}"
