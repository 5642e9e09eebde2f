"""The rows of one run in the coordinator's database: every SQL statement of a run is here.

A method that writes is one transaction, durable (fsync) when it returns. What a row names (a model, a payload) must be
durable before it is written: run_store.py keeps that order. Not for more than one thread at a time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...fedproto.codecs import Codec
from ...fedproto.records import Evaluation, RunSettings
from ..rounds import Cohort, OpenRound, Report, RunState
from ..strategies.norm_bound import WINDOW
from .database import WriterMark, database_errors, open_database
from .evaluations import best_model, encode_classes, model_evaluations
from .quarantine import STRIKES, quarantined, strike
from .recovery import ClosedRound

UPDATE_COLUMNS = (
    "run, round, silo, update_id, digest, examples, payload_sha256, received_bytes, loss, correct, count, received_at, "
    "norm, codec, codec_error, sent_bytes, by_class, shared"
)


@dataclass(frozen=True)
class StoredUpdate:
    """An acknowledged update's row; its payload is a file while the round is open."""

    round: int
    report: Report
    payload_sha256: str
    received_bytes: int
    evaluation: Evaluation | None
    norm: float | None = None  # its distance from the round's model
    codec: Codec = "fp32"
    codec_error: float = 0.0
    sent_bytes: int = 0  # of the round's model, to this silo
    shared: bool = False  # other silos that agree too may measure it


@dataclass(frozen=True)
class RoundEnd:
    """How a round went, beside its updates."""

    seconds: float
    sent_bytes: int
    codec_error: float = 0.0  # of the model that it made, on its way to the silos
    clock_moved: float = 0.0  # seconds that the wall clock jumped while it was open


class Journal:
    """Opened by the one coordinator that serves the run; ``db`` is the connection."""

    def __init__(self, path: Path, run: RunSettings) -> None:
        self.path = path
        self._run = run
        self._running = WriterMark(path)
        self._running.check()
        self.db = open_database(path)
        self._running.begin(self.db)

    def close(self) -> None:
        self._running.end(self.db)
        self.db.close()

    # --- start ---

    def begun(self) -> tuple[bytes, str] | None:
        """The settings that the run was begun with and the hash of its first model; None for a new run."""
        row = self.one("SELECT settings, initial_sha256 FROM runs WHERE name = ?", self._run.run)
        return None if row is None else (row[0], row[1])

    def begin(self, state: RunState) -> None:
        """A new run, and its first round."""
        row = (self._run.run, self._run.encode(), state.model_sha256, time.time())
        with database_errors(self.path), self.db:
            self.db.execute("INSERT INTO runs VALUES (?, ?, ?, ?)", row)
            self._insert_open_round(state.model_sha256, state.open)

    def closed_rounds(self, initial_sha256: str = "") -> list[ClosedRound]:
        """The rounds that count, the start of the run before them."""
        rows = self.all(
            "SELECT number, model_sha256 FROM rounds WHERE run = ? AND status = 'closed' ORDER BY number", self._run.run
        )
        return [ClosedRound(0, initial_sha256), *(ClosedRound(*row) for row in rows)]

    def give_up_after(self, sound: ClosedRound, cohort: Cohort) -> None:
        """What came after ``sound`` is lost: the run goes on from there."""
        now = time.time()
        with database_errors(self.path), self.db:
            self.db.execute(
                "UPDATE rounds SET status = 'abandoned', lost_at = ?, ended_at = coalesce(ended_at, ?) "
                "WHERE run = ? AND number > ? AND status != 'abandoned'",
                (now, now, self._run.run, sound.number),
            )
            row = self.one("SELECT max(number) FROM rounds WHERE run = ?", self._run.run)
            self._insert_open_round(sound.model_sha256, OpenRound((row[0] if row else 0) + 1, cohort))

    def last_ended(self) -> int:
        """The number of the round that ended last, 0 for none."""
        row = self.one("SELECT max(number) FROM rounds WHERE run = ? AND status != 'open'", self._run.run)
        return (row[0] if row else None) or 0

    def open_round(self, cohort: Cohort) -> OpenRound | None:
        """The open round and its reports, for the silos of ``roll``; None in a finished run."""
        row = self.one("SELECT number, wanted FROM rounds WHERE run = ? AND status = 'open'", self._run.run)
        if row is None:
            return None
        rows = self.all(
            "SELECT silo, update_id, examples, digest FROM updates WHERE run = ? AND round = ?", self._run.run, row[0]
        )
        reports = MappingProxyType({report[0]: Report(*report) for report in rows})
        return OpenRound(row[0], Cohort(cohort.silos, row[1]), reports=reports)

    def counted(self) -> MappingProxyType[str, int]:
        """By silo: the last closed round in which its update counts."""
        rows = self.all(
            "SELECT silo, max(round) FROM updates JOIN rounds ON rounds.run = updates.run AND number = round "
            "WHERE updates.run = ? AND status = 'closed' GROUP BY silo",
            self._run.run,
        )
        return MappingProxyType(dict(rows))

    # --- during a round ---

    def report(self, round_number: int, silo: str) -> Report | None:
        """What counts of this silo in this round, whether the round is open or not."""
        row = self.one(
            "SELECT silo, update_id, examples, digest FROM updates WHERE run = ? AND round = ? AND silo = ?",
            self._run.run,
            round_number,
            silo,
        )
        return Report(*row) if row else None

    def accept(self, update: StoredUpdate) -> None:
        """The update counts from here on."""
        report, told = update.report, update.evaluation
        row = (
            self._run.run,
            update.round,
            report.silo,
            report.update_id,
            report.digest,
            report.examples,
            update.payload_sha256,
            update.received_bytes,
            *((told.loss, told.correct, told.count) if told else (None, None, None)),
            time.time(),
            update.norm,
            update.codec,
            update.codec_error,
            update.sent_bytes,
            encode_classes(told.by_class) if told else None,
            update.shared,
        )
        with database_errors(self.path), self.db:
            self.db.execute(f"INSERT INTO updates({UPDATE_COLUMNS}) VALUES ({', '.join('?' * len(row))})", row)

    def refuse(self, round_number: int, silo: str, code: str, message: str, *, allowed: int = 0) -> bool:
        """Count a refused update; one row per round, silo and code, however often it comes.

        ``allowed``: so many that an honest silo does not get put it in quarantine, 0 for never. True when this one did.
        """
        row = (self._run.run, round_number, silo, code, message[:500], time.time())
        quarantined_now = False
        with database_errors(self.path), self.db:
            self.db.execute(
                "INSERT INTO refusals(run, round, silo, code, times, message, last_at) VALUES (?, ?, ?, ?, 1, ?, ?) "
                "ON CONFLICT DO UPDATE SET times = times + 1, message = excluded.message, last_at = excluded.last_at",
                row,
            )
            if code in STRIKES:
                quarantined_now = strike(self.db, silo, code, message[:500], allowed)
        return quarantined_now

    def quarantined(self) -> frozenset[str]:
        """Silos of which nothing is taken."""
        with database_errors(self.path):
            return quarantined(self.db)

    def farthest(self) -> dict[str, float]:
        """By silo: the farthest that an update of it went in the last closed rounds that
        strategies/norm_bound.py remembers."""
        rows = self.all(
            "SELECT silo, max(norm) FROM updates WHERE run = ? AND norm IS NOT NULL AND round IN (SELECT number "
            "FROM rounds WHERE run = ? AND status = 'closed' ORDER BY number DESC LIMIT ?) GROUP BY silo",
            self._run.run,
            self._run.run,
            WINDOW,
        )
        return dict(rows)

    def updates(self, round_number: int) -> list[tuple[str, int, str]]:
        """The round's updates in ascending order of silo name: silo, examples, SHA-256 of the payload."""
        rows = self.all(
            "SELECT silo, examples, payload_sha256 FROM updates WHERE run = ? AND round = ? ORDER BY silo",
            self._run.run,
            round_number,
        )
        return [(silo, examples, sha256) for silo, examples, sha256 in rows]

    # --- the end of a round ---

    def end_round(self, after: RunState, end: RoundEnd, model_sha256: str | None) -> None:
        """Round ``after.last_round`` closed with this model, or (None) was abandoned; the next one is open."""
        status = "abandoned" if model_sha256 is None else "closed"
        told = (
            status,
            time.time(),
            end.seconds,
            model_sha256,
            end.sent_bytes,
            end.codec_error,
            end.clock_moved or None,
        )
        with database_errors(self.path), self.db:
            self.db.execute(
                "UPDATE rounds SET status = ?, ended_at = ?, seconds = ?, model_sha256 = ?, sent_bytes = ?, "
                "codec_error = ?, clock_moved = ? WHERE run = ? AND number = ?",
                (*told, self._run.run, after.last_round),
            )
            self._insert_open_round(after.model_sha256, after.open)

    def _insert_open_round(self, base_sha256: str, opened: OpenRound | None) -> None:
        if opened is not None:
            self.db.execute(
                "INSERT INTO rounds(run, number, status, wanted, base_sha256, opened_at) "
                "VALUES (?, ?, 'open', ?, ?, ?)",
                (self._run.run, opened.number, opened.cohort.wanted, base_sha256, time.time()),
            )

    # --- after the last round ---

    def best_round(self) -> int | None:
        """The round whose model did best on the silos' held-out clips; None when no one told."""
        with database_errors(self.path):
            best = best_model(model_evaluations(self.db, self._run.run))
        return best[0] if best else None

    def shared(self, round_number: int) -> list[tuple[str, int, str]]:
        """The round's updates whose silos agreed that others measure them: as ``updates``, in the order of digests."""
        rows = self.all(
            "SELECT silo, examples, payload_sha256 FROM updates WHERE run = ? AND round = ? AND shared "
            "ORDER BY payload_sha256",
            self._run.run,
            round_number,
        )
        return [(silo, examples, sha256) for silo, examples, sha256 in rows]

    def reported(self) -> dict[str, int]:
        """By silo: as many results as its report at the end of the run had."""
        return dict(self.all("SELECT silo, results FROM final_reports WHERE run = ?", self._run.run))

    def report_final(self, silo: str, results: Mapping[str, Evaluation]) -> None:
        """A silo's report at the end of the run, by subject; durable when this returns."""
        rows = [
            (self._run.run, silo, subject, told.loss, told.correct, told.count, encode_classes(told.by_class))
            for subject, told in results.items()
        ]
        with database_errors(self.path), self.db:
            for row in rows:
                self.db.execute("INSERT INTO final_evaluations VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            self.db.execute(
                "INSERT INTO final_reports VALUES (?, ?, ?, ?)", (self._run.run, silo, len(rows), time.time())
            )

    # --- questions ---

    def one(self, query: str, *values: object) -> tuple[Any, ...] | None:
        """The first row, or None."""
        rows = self.all(query, *values)
        return rows[0] if rows else None

    def all(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Every row."""
        with database_errors(self.path):
            return list(self.db.execute(query, values))
