"""The settings that a run was begun with, read from the state folder without opening it."""

from __future__ import annotations

from pathlib import Path

from ...base.errors import FlamestError
from .database import DATABASE_FILE, read_database


def begun_settings(state: Path, run: str) -> bytes | None:
    """Return the canonical settings that ``run`` was started with; None where it was not, or nothing can be read."""
    if not (state / DATABASE_FILE).is_file():
        return None
    try:
        database = read_database(state / DATABASE_FILE)
    except FlamestError:  # reported by whatever opens the state
        return None
    try:
        return next((row[0] for row in database.execute("SELECT settings FROM runs WHERE name = ?", (run,))), None)
    finally:
        database.close()
