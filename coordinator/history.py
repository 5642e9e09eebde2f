"""What the state folder tells, for `status`, `history` and `model`: read only, server running or not."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..base.errors import DataError
from ..base.files import FileLock
from ..fedproto.records import Evaluation
from .aggregate import pooled
from .database import FILE, read_database, state_errors
from .models import model_path, models_folder
from .quarantine import all_strikes

ROUNDS = """
SELECT number, status, wanted, opened_at, seconds, model_sha256, sent_bytes,
    (SELECT count(*) FROM updates u WHERE u.run = r.run AND u.round = r.number),
    (SELECT sum(times) FROM refusals f WHERE f.run = r.run AND f.round = r.number),
    (SELECT sum(examples) FROM updates u WHERE u.run = r.run AND u.round = r.number),
    (SELECT sum(received_bytes) FROM updates u WHERE u.run = r.run AND u.round = r.number),
    (SELECT max(norm) FROM updates u WHERE u.run = r.run AND u.round = r.number),
    lost_at IS NOT NULL
FROM rounds r WHERE run = ? ORDER BY number
"""
EVALUATIONS = """
SELECT round, loss, correct, count FROM updates WHERE run = ? AND count IS NOT NULL ORDER BY round, silo
"""


@dataclass(frozen=True)
class RoundRow:
    """One round."""

    round: int
    status: str  # open, closed, abandoned; lost: its model was found damaged later
    wanted: int
    opened: str  # UTC
    seconds: float | None  # from the first silo that was given it to its end
    model_sha256: str | None  # of the model that it made
    sent_bytes: int  # models, to all silos, since the last start of the server
    accepted: int
    refused: int  # refused updates while it was open
    examples: int
    received_bytes: int  # accepted updates
    farthest: float | None  # of an accepted update from the model that the round started from
    evaluation: Evaluation | None  # of the model that the round STARTED from, over all silos; None: no one reported


@dataclass(frozen=True)
class SiloRow:
    """What a silo has done in the run."""

    silo: str
    updates: int
    last_round: int | None
    last_update: str | None  # UTC
    refused: int
    last_refusal: str | None
    quarantined: str | None = None  # since when, UTC


class History:
    """The rounds of one run in a state folder; ``with History.open(state, run) as history:``"""

    def __init__(self, state: Path, run: str, connection: Any) -> None:
        self._state = state
        self._run = run
        self._db = connection

    @classmethod
    @contextlib.contextmanager
    def open(cls, state: Path, run: str) -> Iterator[History]:
        """Raises DataError when there is no state yet, or it is damaged."""
        connection = read_database(state / FILE)
        try:
            yield cls(state, run, connection)
        finally:
            connection.close()

    def rounds(self) -> list[RoundRow]:
        """Every round so far, the open one last."""
        rows, evaluations = [], self._evaluations()
        for number, status, wanted, opened, seconds, sha256, sent, accepted, refused, *sums in self._rows(ROUNDS):
            examples, received, farthest, lost = sums
            rows.append(
                RoundRow(
                    round=number,
                    status="lost" if lost else status,
                    wanted=wanted,
                    opened=_utc(opened),
                    seconds=seconds,
                    model_sha256=sha256,
                    sent_bytes=sent,
                    accepted=accepted,
                    refused=refused or 0,
                    examples=examples or 0,
                    received_bytes=received or 0,
                    farthest=farthest,
                    evaluation=pooled(evaluations[number]),
                )
            )
        return rows

    def _evaluations(self) -> dict[int, list[Evaluation]]:
        found: dict[int, list[Evaluation]] = defaultdict(list)
        for number, *told in self._rows(EVALUATIONS):
            found[number].append(Evaluation(*told))
        return found

    def silos(self) -> list[SiloRow]:
        """Every silo that has sent something, in ascending order of name."""
        rows: dict[str, SiloRow] = {}
        query = "SELECT silo, count(*), max(round), max(received_at) FROM updates WHERE run = ? GROUP BY silo"
        for silo, updates, last_round, last_at in self._rows(query):
            rows[silo] = SiloRow(silo, updates, last_round, _utc(last_at), 0, None)
        query = "SELECT silo, sum(times), code, max(last_at) FROM refusals WHERE run = ? GROUP BY silo"
        for silo, refused, code, _ in self._rows(query):
            known = rows.get(silo, SiloRow(silo, 0, None, None, 0, None))
            rows[silo] = SiloRow(silo, known.updates, known.last_round, known.last_update, refused, code)
        with state_errors(self._state / FILE):
            against = all_strikes(self._db)
        for silo, told in against.items():
            if told.quarantined_at is not None:
                known = rows.get(silo, SiloRow(silo, 0, None, None, told.times, told.code))
                rows[silo] = replace(known, quarantined=_utc(told.quarantined_at))
        return [rows[silo] for silo in sorted(rows)]

    def model_file(self, round_number: int | None) -> tuple[Path, int]:
        """The file of the model that a round made (the last one without a number; 0: before round 1), and its round.

        Raises DataError (``no_model``) when there is none.
        """
        made = [0, *(row.round for row in self.rounds() if row.status == "closed")]
        number = made[-1] if round_number is None else round_number
        path = model_path(models_folder(self._state, self._run), number)
        if number not in made or not path.exists():
            why = "it is not kept any more (server.keep_models)" if number in made else "that round made none"
            raise DataError(
                f"no model of round {number} of run '{self._run}': {why}",
                fix="choose a closed round: flamest-coordinator history",
                code="no_model",
            )
        return path, number

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        with state_errors(self._state / FILE):
            return list(self._db.execute(query, (self._run,)))


def is_served(state: Path) -> bool:
    """Whether a coordinator holds the state folder now."""
    return FileLock.is_held(state / "lock")


def served_address(state: Path) -> str | None:
    """host:port of the coordinator that holds the state folder; None when none does."""
    try:
        return (state / "address").read_text().strip() if is_served(state) else None
    except OSError:
        return None


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
