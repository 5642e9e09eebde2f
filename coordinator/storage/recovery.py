"""Which of a run's models can be gone on from, and where the damaged ones go."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...base.errors import DataError, StorageError
from ...base.files import fsync_directory, storage_code
from ...fedproto.head import Params
from ..strategies.algorithm import ServerState
from .models import ModelStore
from .strategy_state import StrategyState


@dataclass(frozen=True)
class ClosedRound:
    """A round that made a model; number 0 is the start of the run."""

    number: int
    model_sha256: str


@dataclass(frozen=True, eq=False)
class IntactState:
    """The last state of a run that can be read whole."""

    closed: int  # rounds that had closed then
    at: ClosedRound
    params: Params
    server_state: ServerState


def last_intact(models: ModelStore, memory: StrategyState, rounds: Sequence[ClosedRound]) -> IntactState:
    """The last of ``rounds`` (the start first) whose model, and what the strategy carries, is what was written.

    Raises the DataError (``corrupt_model``, ``corrupt_memory``) of the newest one when there is none.
    """
    first_problem: DataError | None = None
    for closed in range(len(rounds) - 1, -1, -1):
        at = rounds[closed]
        try:
            return IntactState(
                closed,
                at,
                models.read(at.number, at.model_sha256),
                memory.read(closed, at.number, at.model_sha256),
            )
        except DataError as problem:
            first_problem = first_problem or problem
    assert first_problem is not None, "there is always the start"
    raise first_problem


def move_to_quarantine(path: Path, target: Path) -> None:
    """Keep a damaged file for whoever wants to look at it; nothing is ever overwritten. Raises StorageError."""
    if not path.exists():
        return
    try:
        target.parent.mkdir(mode=0o700, exist_ok=True)
        free, number = target, 1
        while free.exists():
            number += 1
            free = target.with_name(f"{target.name}.{number}")
        os.replace(path, free)
        fsync_directory(path.parent)
        fsync_directory(target.parent)
    except OSError as error:
        raise StorageError(f"cannot move {path}: {error.strerror}", code=storage_code(error)) from error
