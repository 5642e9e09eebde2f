"""`evaluation` and `model`: results of a run's models on the silos' held-out clips, and a copy of one of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...base.console import counted
from ...base.errors import DataError
from ...fedproto.certificates import require_package
from ...fedproto.head import params_sha256
from ...fedproto.head_onnx import known_parts
from ...fedproto.model_file import read_model, write_model
from ...fedproto.onnx_files import onnx_lines, write_onnx
from ...fedproto.records import ClassCount
from ..settings import CoordinatorSettings
from ..storage.evaluations import FINAL, OWN, CrossEvaluation, SiloGain, best_model, silo_gains
from .calibration import calibration_figures, calibration_line
from .history import History, evaluation_figures, loss_text
from .measured import MISSING, MeasuredModels


@dataclass(frozen=True)
class ModelForm:
    """Format in which a model is copied out."""

    name: Literal["safetensors", "onnx"]
    parts: tuple[int, ...] = ()  # widths of the fused graph's inputs; empty: as the run's settings tell


SAFETENSORS = ModelForm("safetensors")


def evaluation_of(settings: CoordinatorSettings, round_number: int | None) -> dict[str, Any]:
    """Return a model's evaluations: run, round, all, silos[], classes[], best, sites{models[], rows[]}, gains{},
    calibration{} of the final model.

    ``round_number``: of the model; None: the last one that was evaluated. ``sites`` is None unless the run evaluated
    single silos' models, ``gains`` unless silos reported how heads of their own do, ``calibration`` unless the run asks
    for one. Raises DataError (``not_measured``).
    """
    with History.open(settings.server.state, settings.run.name) as history:
        evaluations, cross_evaluations = history.model_evaluations(), history.cross_evaluations()
        calibration = calibration_figures(history, history.rounds(), settings)
    reported = [model for model in evaluations if model.silos]
    shown = next((model for model in reversed(reported) if round_number in (None, model.round)), None)
    if shown is None:
        which = "a model" if round_number is None else f"the model of round {round_number}"
        raise DataError(
            f"no silo has reported an evaluation of {which}",
            fix="a model is evaluated in the round after it, and the last one with run.final_evaluation; "
            "silos decide in [policy] report_evaluation",
            code="not_measured",
        )
    best = best_model(evaluations)
    return {
        "run": settings.run.name,
        "round": shown.round,
        "all": evaluation_figures(shown.all),
        "silos": [
            {"silo": silo, **evaluation_figures(found), "by_class": _classes(found.by_class, settings)}
            for silo, found in shown.silos
        ],
        "classes": _classes(shown.by_class, settings),
        "best": {"round": best[0], **evaluation_figures(best[1])} if best else None,
        "sites": _table(cross_evaluations),
        "gains": _gains(silo_gains(cross_evaluations), settings),
        "calibration": calibration,
    }


def _gains(gains: Sequence[SiloGain], settings: CoordinatorSettings) -> dict[str, Any] | None:
    """Return the distribution of the final model's gain over the heads that silos trained alone; None without any."""
    if not gains:
        return None
    rows = [
        {
            "silo": one.silo,
            "gain": one.gain,
            "final": one.final.correct / one.final.count,
            "own": one.own.correct / one.own.count,
            "count": one.final.count,
            "by_class": _class_gains(one, settings),
        }
        for one in gains
    ]
    found = [one.gain for one in gains]
    return {
        "silos": rows,
        "median": statistics.median(found),
        "least": found[0],
        "largest": found[-1],
        "gained": sum(gain > 0 for gain in found),
    }


def _class_gains(one: SiloGain, settings: CoordinatorSettings) -> list[dict[str, Any]]:
    own = {row.label: row for row in one.own.by_class}
    return [
        {
            "label": settings.run.labels[row.label],
            "gain": row.correct / row.count - own[row.label].correct / own[row.label].count,
            "count": row.count,
        }
        for row in one.final.by_class
        if row.label in own
    ]


def _classes(by_class: Sequence[ClassCount], settings: CoordinatorSettings) -> list[dict[str, Any]]:
    labels = settings.run.labels
    return [
        {"label": labels[row.label], "correct": row.correct, "count": row.count, "accuracy": row.correct / row.count}
        for row in by_class
    ]


def _table(cross_evaluations: Sequence[CrossEvaluation]) -> dict[str, Any] | None:
    """Table with a row for each silo's clips, and a column for the final model and each silo's model."""
    cells = [cell for cell in cross_evaluations if cell.model != OWN]
    models = sorted({cell.model for cell in cells})
    if models in ([], [FINAL]):
        return None
    rows: dict[str, dict[str, Any]] = {}
    for cell in cells:
        rows.setdefault(cell.data, {})[cell.model or "final"] = evaluation_figures(cell.evaluation)
    return {"models": [model or "final" for model in models], "rows": [{"data": silo, **rows[silo]} for silo in rows]}


def evaluation_lines(found: Mapping[str, Any]) -> list[str]:
    """Return ``evaluation_of`` as text."""
    lines = [f"run '{found['run']}', model of round {found['round']} on held-out clips: {_summary(found['all'])}"]
    lines += [f"  {row['silo']:20} {_summary(row)}" for row in found["silos"]]
    if found["classes"]:
        lines.append("by class, over the silos that report it:")
        lines += [
            f"  {row['label'][:40]:40} {row['correct']:5} of {row['count']:5} {row['accuracy']:.3f}"
            for row in found["classes"]
        ]
    if found["best"]:
        lines.append(f"best model: round {found['best']['round']}, {_summary(found['best'])}")
        lines.append("  flamest-coordinator model --best --out MODEL.safetensors takes it")
    if found["calibration"]:
        lines.append(calibration_line(found["calibration"]))
    if found["gains"]:
        lines += _gain_lines(found["gains"])
    if found["sites"]:
        lines += ["", "accuracy of each silo's last model on each silo's held-out clips (* its own):"]
        lines += _table_lines(found["sites"])
    return lines


def _gain_lines(gains: Mapping[str, Any]) -> list[str]:
    """Return the gains of the silos that report them, smallest first."""
    rows, middle = gains["silos"], 100 * gains["median"]
    least, largest = 100 * gains["least"], 100 * gains["largest"]
    return [
        "",
        f"gain of the final model over a head trained alone, at {counted(len(rows), 'silo')} that report it:",
        f"  median {middle:+.1f} points, {least:+.1f} to {largest:+.1f}; more than 0 in {gains['gained']}",
        *(
            f"  {row['silo']:20} {100 * row['gain']:+6.1f}  ({row['final']:.3f}, alone {row['own']:.3f}, "
            f"{counted(row['count'], 'clip')})"
            for row in rows
        ),
    ]


def _table_lines(table: Mapping[str, Any]) -> list[str]:
    models = table["models"]
    widths = {model: max(len(model), 6) for model in models}
    lines = [f"  {'clips of':20} " + "  ".join(f"{model:>{widths[model]}}" for model in models)]
    for row in table["rows"]:
        cross_evaluations = (_cell(row.get(model), own=model == row["data"]).rjust(widths[model]) for model in models)
        lines.append(f"  {row['data']:20} " + "  ".join(cross_evaluations))
    return lines


def _cell(figures: Mapping[str, Any] | None, *, own: bool) -> str:
    return "-" if figures is None else f"{figures['accuracy']:.3f}{'*' if own else ''}"


def _summary(figures: Mapping[str, Any]) -> str:
    loss = loss_text(figures["loss"], figures["count"])
    return f"{figures['correct']} of {figures['count']} correct ({figures['accuracy']:.3f}), loss {loss}"


def take_model(
    settings: CoordinatorSettings,
    out: Path,
    round_number: int | Literal["best"] | None,
    *,
    form: ModelForm = SAFETENSORS,
) -> dict[str, Any]:
    """Check a round's model (None: the last one) and copy it to ``out``, in ``form``.

    Raises DataError (``not_measured`` for "best" when no silo has reported an evaluation), MissingExtra for ONNX
    without its package, StorageError.
    """
    if form.name == "onnx":
        require_package("onnx", extra="onnx")
    with History.open(settings.server.state, settings.run.name) as history:
        if round_number == "best":
            best = best_model(history.model_evaluations())
            if best is None:
                raise DataError(
                    "no silo has reported an evaluation, so no model is known to be the best",
                    fix="take the last one, without --best; silos decide in [policy] report_evaluation",
                    code="not_measured",
                )
            round_number = best[0]
        path, number = history.model_file(round_number)
        measured = MeasuredModels.of(history, history.rounds(), settings)
    found = read_model(path)
    if form.name == "onnx":
        files = write_onnx(out, found, parts=form.parts or known_parts(found.head, found.fingerprint))
    else:
        write_model(out, found)  # what was read and checked; the same model gives the same bytes
        files = [{"file": str(out), "graph": None, "bytes": out.stat().st_size}]
    return {
        "model": str(out),
        "format": form.name,
        "files": files,
        "run": found.run,
        "round": number,
        "sha256": params_sha256(found.params),
        "parameters": found.head.parameters,
        "labels": len(found.labels),
        "fingerprint": found.fingerprint,
        "bytes": files[0]["bytes"],
        **evaluation_figures(measured.evaluation(number)),
        "accuracy_missing": measured.missing(number),
        "temperature": None if found.calibration is None else found.calibration.temperature,
        "coverage": None if found.calibration is None else found.calibration.coverage,
    }


def model_lines(taken: Mapping[str, Any]) -> list[str]:
    """Return ``take_model`` as text."""
    lines = [f"{taken['model']}: model of round {taken['round']} of run '{taken['run']}', {taken['labels']} classes"]
    if taken["accuracy"] is not None:
        lines.append(f"  on the silos' held-out clips: {_summary(taken)}")
    elif taken["accuracy_missing"]:
        lines.append(f"  {MISSING[taken['accuracy_missing']]}")
    if taken["temperature"] is not None:
        share = f"{100 * taken['coverage']:.0f} % of clips of known classes are not answered unknown"
        lines.append(f"  calibrated: temperature {taken['temperature']:.3g}, {share}")
    if taken["format"] == "onnx":
        lines += onnx_lines(taken["files"])
    return lines
