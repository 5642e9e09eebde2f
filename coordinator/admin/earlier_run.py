"""The settings for reading an earlier run of the state folder, for `history`, `evaluation` and `model`."""

from __future__ import annotations

from typing import Literal

import msgspec

from ...base.errors import DataError
from ..settings import CoordinatorSettings
from .history import History


class _Started(msgspec.Struct):
    """The settings of a run that matter for its history; other ones are ignored."""

    labels: tuple[str, ...]
    fingerprint: str
    rounds: int
    final_evaluation: Literal["none", "model", "sites"] = "none"
    calibrate: bool = False


def settings_of_run(settings: CoordinatorSettings, name: str | None) -> CoordinatorSettings:
    """Return ``settings`` for reading the run ``name`` of the state folder; None: the run of the settings.

    Raises DataError: ``no_run`` where there is none of that name, and as ``History.open``.
    """
    if name in (None, settings.run.name):
        return settings
    with History.open(settings.server.state, name) as history:
        started, others = history.settings(), history.other_runs()
    if started is None:
        raise DataError(
            f"there is no run '{name}' in {settings.server.state}; there are: {', '.join(others) or 'none'}",
            fix="give one of these names with --run",
            code="no_run",
        )
    run = msgspec.structs.replace(
        settings.run, name=name, **msgspec.structs.asdict(msgspec.json.decode(started, type=_Started))
    )
    return msgspec.structs.replace(settings, run=run)
