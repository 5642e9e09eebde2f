"""The calibration of a run's final model, as objects for --json and as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...base.console import counted
from ..settings import CoordinatorSettings
from .history import History, RoundRow


def calibration_figures(
    history: History, rows: Sequence[RoundRow], settings: CoordinatorSettings
) -> dict[str, Any] | None:
    """Return temperature, coverage, clips, silos and classes, and the step; None: the run asks for none, or goes on.

    ``step``: "confidence" or "scores" while silos report, then "done", or "none" where too few clips were reported.
    """
    closed = [row for row in rows if row.status == "closed"]
    if not settings.run.calibrate or len(closed) < settings.run.rounds or closed[-1].model_sha256 is None:
        return None
    state = history.calibration(closed[-1].model_sha256)
    made = state.calibration
    waiting = "confidence" if state.temperature is None else "scores"
    return {
        "step": ("none" if made is None else "done") if state.ended else waiting,
        "temperature": state.temperature,
        "coverage": None if made is None else made.coverage,
        "clips": 0 if made is None else made.clips,
        "silos": 0 if made is None else made.silos,
        "classes": [] if made is None else [settings.run.labels[number] for number in made.classes],
    }


def calibration_line(found: Mapping[str, Any]) -> str:
    """Return ``calibration_figures`` as text."""
    if found["step"] == "none":
        return "the final model is not calibrated: too few held-out clips were reported"
    if found["step"] != "done":
        return f"the final model's calibration waits for the silos' {found['step']} counts"
    classes = len(found["classes"])
    own = f", {classes} of the classes with a threshold of their own" if classes else ""
    return (
        f"final model calibrated by {counted(found['clips'], 'clip')} of {counted(found['silos'], 'silo')}: "
        "temperature "
        f"{found['temperature']:.3g}, {100 * found['coverage']:.0f} % of known clips are answered{own}"
    )
