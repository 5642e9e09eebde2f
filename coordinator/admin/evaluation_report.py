"""`evaluation`: how models do on the silos' held-out clips, as an object for --json and as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...base.errors import DataError
from ...fedproto.records import ClassCount
from ..settings import CoordinatorSettings
from ..storage.evaluations import FINAL, Cell, best_of
from .history import History
from .report import told_keys


def evaluation_of(settings: CoordinatorSettings, round_number: int | None) -> dict[str, Any]:
    """Keys: run, round, all, silos[], classes[], best, sites{models[], rows[]} (None unless the run measured them).

    ``round_number``: of the model; None: the last one that was measured. Raises DataError (``not_measured``).
    """
    with History.open(settings.server.state, settings.run.name) as history:
        measured, cells = history.measured(), history.cells()
    told = [one for one in measured if one.silos]
    shown = next((one for one in reversed(told) if round_number in (None, one.round)), None)
    if shown is None:
        which = "a model" if round_number is None else f"the model of round {round_number}"
        raise DataError(
            f"no silo has told how {which} does on its held-out clips",
            fix="a model is measured in the round after it, and the last one with run.final_evaluation; "
            "silos decide in [policy] report_evaluation",
            code="not_measured",
        )
    best = best_of(measured)
    return {
        "run": settings.run.name,
        "round": shown.round,
        "all": told_keys(shown.all),
        "silos": [
            {"silo": silo, **told_keys(one), "by_class": _classes(one.by_class, settings)} for silo, one in shown.silos
        ],
        "classes": _classes(shown.by_class, settings),
        "best": {"round": best[0], **told_keys(best[1])} if best else None,
        "sites": _table(cells),
    }


def _classes(by_class: Sequence[ClassCount], settings: CoordinatorSettings) -> list[dict[str, Any]]:
    labels = settings.run.labels
    return [
        {"label": labels[one.label], "correct": one.correct, "count": one.count, "accuracy": one.correct / one.count}
        for one in by_class
    ]


def _table(cells: Sequence[Cell]) -> dict[str, Any] | None:
    """Rows: whose clips; columns: the final model, then whose model."""
    models = sorted({cell.model for cell in cells})
    if models in ([], [FINAL]):
        return None
    rows: dict[str, dict[str, Any]] = {}
    for cell in cells:
        rows.setdefault(cell.data, {})[cell.model or "final"] = told_keys(cell.evaluation)
    return {"models": [model or "final" for model in models], "rows": [{"data": silo, **rows[silo]} for silo in rows]}


def evaluation_lines(found: Mapping[str, Any]) -> list[str]:
    """``evaluation_of`` for people."""
    lines = [f"run '{found['run']}', model of round {found['round']} on held-out clips: {_words(found['all'])}"]
    lines += [f"  {one['silo']:20} {_words(one)}" for one in found["silos"]]
    if found["classes"]:
        lines.append("by class, over the silos that tell it:")
        lines += [
            f"  {one['label'][:40]:40} {one['correct']:5} of {one['count']:5} {one['accuracy']:.3f}"
            for one in found["classes"]
        ]
    if found["best"]:
        lines.append(f"best model: round {found['best']['round']}, {_words(found['best'])}")
        lines.append("  flamest-coordinator model --best --out MODEL.safetensors takes it")
    if found["sites"]:
        lines += ["", "accuracy of each site's last model on each site's held-out clips (* its own):"]
        lines += _table_lines(found["sites"])
    return lines


def _table_lines(table: Mapping[str, Any]) -> list[str]:
    models = table["models"]
    widths = {model: max(len(model), 6) for model in models}
    lines = [f"  {'clips of':20} " + "  ".join(f"{model:>{widths[model]}}" for model in models)]
    for row in table["rows"]:
        cells = (_cell(row.get(model), own=model == row["data"]).rjust(widths[model]) for model in models)
        lines.append(f"  {row['data']:20} " + "  ".join(cells))
    return lines


def _cell(told: Mapping[str, Any] | None, *, own: bool) -> str:
    return "-" if told is None else f"{told['accuracy']:.3f}{'*' if own else ''}"


def _words(told: Mapping[str, Any]) -> str:
    return f"{told['correct']} of {told['count']} right ({told['accuracy']:.3f}), loss {told['loss']:.4f}"
