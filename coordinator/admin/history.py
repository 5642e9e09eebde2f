"""What the state folder tells, for `status`, `history` and `model`: read only, server running or not."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...base.clock import utc_text
from ...base.errors import DataError
from ...base.files import FileLock
from ...fedproto.records import Evaluation
from ..storage.database import FILE, database_errors, read_database
from ..storage.evaluations import Cell, Measured, cells, measured_models, pooled
from ..storage.models import model_path, models_folder
from ..storage.quarantine import all_strikes

ROUNDS = """
SELECT number, status, wanted, opened_at, seconds, model_sha256, sent_bytes, codec_error, clock_moved,
    (SELECT sum(times) FROM refusals f WHERE f.run = r.run AND f.round = r.number),
    lost_at IS NOT NULL
FROM rounds r WHERE run = ? ORDER BY number
"""
UPDATES = """
SELECT round, silo, examples, norm, codec, codec_error, received_bytes, sent_bytes, loss, correct, count
FROM updates WHERE run = ? ORDER BY round, silo
"""


@dataclass(frozen=True)
class UpdateRow:
    """What one silo brought to a round."""

    silo: str
    examples: int
    norm: float | None  # its distance from the round's model
    codec: str | None  # that it came in; None: from before this was kept
    codec_error: float | None  # norm of what the codec left out over that of what was to be sent
    received_bytes: int
    sent_bytes: int | None  # of the round's model, to this silo, since the last start of the server
    evaluation: Evaluation | None  # of the model that the round STARTED from, on its held-out clips


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
    model_codec_error: float | None  # as of an update, of the model that it made on its way to the silos
    clock_moved: float | None  # seconds that the wall clock jumped while it was open: its times cannot be trusted
    updates: tuple[UpdateRow, ...] = ()  # ascending silo names


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
    received_bytes: int = 0  # its updates, in all
    sent_bytes: int = 0  # models of the rounds that it has an update in


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
        rows, updates = [], self._updates()
        for number, status, wanted, opened, seconds, sha256, sent, *rest in self._rows(ROUNDS):
            codec_error, moved, refused, lost = rest
            told = updates[number]
            rows.append(
                RoundRow(
                    round=number,
                    status="lost" if lost else status,
                    wanted=wanted,
                    opened=utc_text(opened),
                    seconds=seconds,
                    model_sha256=sha256,
                    sent_bytes=sent,
                    accepted=len(told),
                    refused=refused or 0,
                    examples=sum(one.examples for one in told),
                    received_bytes=sum(one.received_bytes for one in told),
                    farthest=max((one.norm for one in told if one.norm is not None), default=None),
                    evaluation=pooled([one.evaluation for one in told if one.evaluation is not None]),
                    model_codec_error=codec_error,
                    clock_moved=moved,
                    updates=tuple(told),
                )
            )
        return rows

    def _updates(self) -> dict[int, list[UpdateRow]]:
        found: dict[int, list[UpdateRow]] = defaultdict(list)
        for number, silo, examples, norm, codec, error, received, sent, loss, correct, count in self._rows(UPDATES):
            told = None if count is None else Evaluation(loss, correct, count)
            found[number].append(UpdateRow(silo, examples, norm, codec, error, received, sent, told))
        return found

    def measured(self) -> list[Measured]:
        """The models that silos measured on their held-out clips, by round."""
        with database_errors(self._state / FILE):
            return measured_models(self._db, self._run)

    def cells(self) -> list[Cell]:
        """What the evaluation at the end of the run found."""
        with database_errors(self._state / FILE):
            return cells(self._db, self._run)

    def silos(self) -> list[SiloRow]:
        """Every silo that has sent something, in ascending order of name."""
        rows: dict[str, SiloRow] = {}
        query = (
            "SELECT silo, count(*), max(round), max(received_at), sum(received_bytes), total(sent_bytes) "
            "FROM updates WHERE run = ? GROUP BY silo"
        )
        for silo, updates, last_round, last_at, received, sent in self._rows(query):
            last = utc_text(last_at)
            rows[silo] = SiloRow(
                silo, updates, last_round, last, 0, None, received_bytes=received, sent_bytes=int(sent)
            )
        query = "SELECT silo, sum(times), code, max(last_at) FROM refusals WHERE run = ? GROUP BY silo"
        for silo, refused, code, _ in self._rows(query):
            known = rows.get(silo, SiloRow(silo, 0, None, None, 0, None))
            rows[silo] = replace(known, refused=refused, last_refusal=code)
        with database_errors(self._state / FILE):
            against = all_strikes(self._db)
        for silo, told in against.items():
            if told.quarantined_at is not None:
                known = rows.get(silo, SiloRow(silo, 0, None, None, told.times, told.code))
                rows[silo] = replace(known, quarantined=utc_text(told.quarantined_at))
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
        with database_errors(self._state / FILE):
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
