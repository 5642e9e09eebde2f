"""Quarantine of silos whose updates were refused too often: none is accepted until the operator releases the silo.

Only refusals that an honest and working silo does not get are strikes: not a late or repeated update, a lost connection
or a full disk of the coordinator. Earlier updates of a quarantined silo stay in the model, like those of a revoked one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...base.errors import DataError
from .database import DATABASE_FILE, database_errors, read_database

if TYPE_CHECKING:
    from apsw import Connection

STRIKES = frozenset(
    {
        "malformed",
        "tensor_names",
        "tensor_shape",
        "payload_size",
        "not_finite",
        "norm",
        "examples",
        "too_many_examples",
        "evaluation",
    }
)


@dataclass(frozen=True)
class Strikes:
    """Refusals of a silo that count towards quarantine."""

    silo: str
    times: int
    code: str  # of the last refusal
    message: str
    quarantined_at: float | None  # seconds since 1970


def strike(database: Connection, silo: str, code: str, message: str, allowed: int, times: int = 1) -> bool:
    """Count refusals inside the caller's transaction; return True when that puts the silo in quarantine.

    ``allowed``: the number of refusals that does so, 0 for never.
    """
    now = time.time()
    database.execute(
        "INSERT INTO strikes(silo, times, code, message, last_at) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT DO UPDATE SET times = times + excluded.times, code = excluded.code, message = excluded.message, "
        "last_at = excluded.last_at",
        (silo, times, code, message, now),
    )
    if allowed < 1:
        return False
    database.execute(
        "UPDATE strikes SET quarantined_at = ? WHERE silo = ? AND quarantined_at IS NULL AND times >= ?",
        (now, silo, allowed),
    )
    return bool(database.changes())


def quarantined(database: Connection) -> frozenset[str]:
    """Return the silos in quarantine."""
    return frozenset(row[0] for row in database.execute("SELECT silo FROM strikes WHERE quarantined_at IS NOT NULL"))


def all_strikes(database: Connection) -> dict[str, Strikes]:
    """Return strikes by silo."""
    rows = database.execute("SELECT silo, times, code, message, quarantined_at FROM strikes ORDER BY silo")
    return {row[0]: Strikes(*row) for row in rows}


def release(state: Path, silo: str) -> dict[str, Any]:
    """Delete a silo's strikes, server running or not; a running one notices within a second.

    A transaction of one row: the server's own transactions wait for it. Raises DataError (``no_strikes``) when the silo
    has none. Keys: name, was_quarantined, refusals, last.
    """
    database = read_database(state / DATABASE_FILE, small_changes=True)
    try:
        with database_errors(state / DATABASE_FILE), database:
            known = all_strikes(database)
            database.execute("DELETE FROM strikes WHERE silo = ?", (silo,))
    finally:
        database.close()
    if silo not in known:
        raise DataError(
            f"silo '{silo}' has no refusals that count; silos with refusals: {', '.join(known) or 'none'}",
            fix="flamest-coordinator status",
            code="no_strikes",
        )
    was = known[silo]
    return {"name": silo, "was_quarantined": was.quarantined_at is not None, "refusals": was.times, "last": was.code}
