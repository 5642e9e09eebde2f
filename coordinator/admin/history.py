"""Rows of a run in the state folder, for `status`, `history`, `evaluation` and `model`: read only."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...base.clock import utc_text
from ...base.errors import DataError, StorageError
from ...base.files import FileLock, read_regular
from ...fedproto.records import Evaluation
from ..storage.calibrations import CalibrationState, calibration_state
from ..storage.database import DATABASE_FILE, database_errors, read_database
from ..storage.evaluations import (
    CrossEvaluation,
    ModelEvaluation,
    cross_evaluations,
    model_evaluations,
    most_clips,
    pool_evaluations,
)
from ..storage.models import model_path, models_folder
from ..storage.quarantine import all_strikes
from ..strategies.claims import Claim, Limits

MAX_ADDRESS = 1024  # bytes of the file `address`
ROUNDS = """
SELECT number, status, wanted, opened_at, seconds, model_sha256, sent_bytes, codec_error, clock_moved,
    (SELECT sum(times) FROM refusals f WHERE f.run = r.run AND f.round = r.number),
    lost_at IS NOT NULL, most_examples, most_influence
FROM rounds r WHERE run = ? ORDER BY number
"""
UPDATES = """
SELECT round, silo, examples, norm, codec, codec_error, received_bytes, sent_bytes, loss, correct, count
FROM updates WHERE run = ? ORDER BY round, silo
"""


@dataclass(frozen=True)
class UpdateRow:
    """One silo's update in a round."""

    silo: str
    examples: int  # as it claimed
    norm: float | None  # its distance from the round's model
    codec: str | None  # that it was encoded with
    codec_error: float | None  # norm of what the codec left out over the norm of the delta
    received_bytes: int
    sent_bytes: int | None  # of the round's model, to this silo, since the last start of the server
    evaluation: Evaluation | None  # of the model that the round STARTED from, on its held-out clips
    counted: int | None = None  # examples that it counted for; None while the round is open, and where it did not count
    counted_norm: float | None = None  # the distance with which it counted


@dataclass(frozen=True)
class RoundRow:
    """A round and its updates."""

    round: int
    status: str  # open, closed, abandoned; lost: its model was damaged later
    wanted: int
    opened: str  # UTC
    seconds: float | None  # from the first silo that was given the round to its end
    model_sha256: str | None  # of the model that it made
    sent_bytes: int  # models, to all silos, since the server's last start
    accepted: int
    refused: int  # refused updates while it was open
    examples: int
    received_bytes: int  # accepted updates
    farthest: float | None  # of an accepted update from the model that the round started from
    evaluation: Evaluation | None  # of the model that the round STARTED from, over all silos; None: no one reported
    model_codec_error: float | None  # like an update's, of the model that it made on its way to the silos
    clock_moved: float | None  # seconds that the wall clock jumped while it was open
    updates: tuple[UpdateRow, ...] = ()  # ascending silo names


@dataclass(frozen=True)
class SiloRow:
    """Totals of a silo in a run."""

    silo: str
    updates: int
    last_round: int | None
    last_update: str | None  # UTC
    refused: int
    last_refusal: str | None
    quarantined: str | None = None  # since when, UTC
    received_bytes: int = 0  # its updates, in all
    sent_bytes: int = 0  # models of the rounds that it has an update in
    examples: int | None = None  # of its last update, as it claimed
    counted: int | None = None  # examples that this update counted for; None while its round is open
    norm: float | None = None  # this update's distance from the round's model
    counted_norm: float | None = None  # the distance with which it counted


class History:
    """Reader of one run in a state folder, next to a running server or without one.

    >>> with History.open(state, run) as history:
    ...     history.rounds()
    """

    def __init__(self, state: Path, run: str, connection: Any) -> None:
        self._state = state
        self._run = run
        self._db = connection

    @classmethod
    @contextlib.contextmanager
    def open(cls, state: Path, run: str) -> Iterator[History]:
        """Open the database. Raises DataError when there is no state yet, or it is damaged."""
        connection = read_database(state / DATABASE_FILE)
        try:
            yield cls(state, run, connection)
        finally:
            connection.close()

    def calibration(self, model_sha256: str) -> CalibrationState:
        """Return how far the calibration of the run's final model has come."""
        with database_errors(self._state / DATABASE_FILE):
            return calibration_state(self._db, self._run, model_sha256)

    def settings(self) -> bytes | None:
        """Return the settings that the run was started with (``RunSettings.encode``); None before its start."""
        return next((row[0] for row in self._rows("SELECT settings FROM runs WHERE name = ?")), None)

    def other_runs(self) -> list[str]:
        """Return the names of the other runs in the state folder, the oldest first."""
        return [row[0] for row in self._rows("SELECT name FROM runs WHERE name != ? ORDER BY started_at")]

    def rounds(self) -> list[RoundRow]:
        """Return every round so far, the open one last."""
        rows, updates = [], self._updates()
        reported = [(one.silo, one.evaluation) for found in updates.values() for one in found if one.evaluation]
        most_evaluated = most_clips((silo, evaluation.count) for silo, evaluation in reported)
        for number, status, wanted, opened, seconds, sha256, sent, *rest in self._rows(ROUNDS):
            codec_error, moved, refused, lost, *limits = rest
            accepted = [_counted(update, status, *limits) for update in updates[number]]
            rows.append(
                RoundRow(
                    round=number,
                    status="lost" if lost else status,
                    wanted=wanted,
                    opened=utc_text(opened),
                    seconds=seconds,
                    model_sha256=sha256,
                    sent_bytes=sent,
                    accepted=len(accepted),
                    refused=refused or 0,
                    examples=sum(update.examples for update in accepted),
                    received_bytes=sum(update.received_bytes for update in accepted),
                    farthest=max((update.norm for update in accepted if update.norm is not None), default=None),
                    evaluation=pool_evaluations(
                        [update.evaluation for update in accepted if update.evaluation is not None], most_evaluated
                    ),
                    model_codec_error=codec_error,
                    clock_moved=moved,
                    updates=tuple(accepted),
                )
            )
        return rows

    def _updates(self) -> dict[int, list[UpdateRow]]:
        found: dict[int, list[UpdateRow]] = defaultdict(list)
        for number, silo, examples, norm, codec, error, received, sent, loss, correct, count in self._rows(UPDATES):
            evaluation = None if count is None else Evaluation(loss, correct, count)
            found[number].append(UpdateRow(silo, examples, norm, codec, error, received, sent, evaluation))
        return found

    def model_evaluations(self) -> list[ModelEvaluation]:
        """Return the evaluations of models on the silos' held-out clips, by round."""
        with database_errors(self._state / DATABASE_FILE):
            return model_evaluations(self._db, self._run)

    def cross_evaluations(self) -> list[CrossEvaluation]:
        """Return the results of the evaluation at the end of the run."""
        with database_errors(self._state / DATABASE_FILE):
            return cross_evaluations(self._db, self._run)

    def final_reports(self) -> dict[str, int]:
        """Return by silo the models that it evaluated after the last round; 0: it declined."""
        return dict(self._rows("SELECT silo, results FROM final_reports WHERE run = ?"))

    def silos(self) -> list[SiloRow]:
        """Return every silo that has sent something, in ascending order of name."""
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
        for update in (update for row in self.rounds() for update in row.updates):
            rows[update.silo] = replace(
                rows[update.silo],
                examples=update.examples,
                counted=update.counted,
                norm=update.norm,
                counted_norm=update.counted_norm,
            )
        query = "SELECT silo, sum(times), code, max(last_at) FROM refusals WHERE run = ? GROUP BY silo"
        for silo, refused, code, _ in self._rows(query):
            known = rows.get(silo, SiloRow(silo, 0, None, None, 0, None))
            rows[silo] = replace(known, refused=refused, last_refusal=code)
        with database_errors(self._state / DATABASE_FILE):
            strikes = all_strikes(self._db)
        for silo, found in strikes.items():
            if found.quarantined_at is not None:
                known = rows.get(silo, SiloRow(silo, 0, None, None, found.times, found.code))
                rows[silo] = replace(known, quarantined=utc_text(found.quarantined_at))
        return [rows[silo] for silo in sorted(rows)]

    def model_file(self, round_number: int | None) -> tuple[Path, int]:
        """Return the file of the model that a round made, and the round (None: the last one; 0: the initial model).

        Raises DataError (``no_model``) when there is none.
        """
        made = [0, *(row.round for row in self.rounds() if row.status == "closed")]
        number = made[-1] if round_number is None else round_number
        path = model_path(models_folder(self._state, self._run), number)
        if number not in made or not path.exists():
            why = "it is not kept any more (server.keep_models)" if number in made else "that round made none"
            others = ", ".join(self.other_runs())
            raise DataError(
                f"no model of round {number} of run '{self._run}': {why}",
                fix="choose a closed round: flamest-coordinator history"
                + (f"; other runs are here too, with --run NAME: {others}" if others else ""),
                code="no_model",
            )
        return path, number

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        with database_errors(self._state / DATABASE_FILE):
            return list(self._db.execute(query, (self._run,)))


def _counted(update: UpdateRow, status: str, examples: int | None, influence: float | None) -> UpdateRow:
    """Add to an update of a closed round how it counted."""
    if status != "closed":
        return update
    if influence is None:
        return replace(update, counted=update.examples, counted_norm=update.norm)
    limits, claim = Limits(examples, influence), Claim(update.examples, update.norm)
    norm = None if update.norm is None else update.norm * limits.share(claim)
    return replace(update, counted=limits.counted(claim), counted_norm=norm)


def evaluation_figures(found: Evaluation | None) -> dict[str, Any]:
    """Return loss, correct, count and accuracy; None where nothing was reported."""
    return {
        "loss": found.loss if found else None,
        "correct": found.correct if found else None,
        "count": found.count if found else None,
        "accuracy": found.correct / found.count if found else None,
    }


def loss_text(loss: float, count: int | None) -> str:
    """Return a loss on ``count`` clips with the digits that say something: silos round it to steps, with noise."""
    return f"{loss:.{1 if (count or 0) < 100 else 2 if (count or 0) < 1000 else 3}f}"


def is_served(state: Path) -> bool:
    """Return True while a coordinator holds the state folder."""
    return FileLock.is_held(state / "lock")


def served_address(state: Path) -> str | None:
    """Return host:port of the coordinator that holds the state folder; None when none does."""
    try:
        return read_regular(state / "address", largest=MAX_ADDRESS).decode().strip() if is_served(state) else None
    except (DataError, StorageError, UnicodeDecodeError):
        return None
