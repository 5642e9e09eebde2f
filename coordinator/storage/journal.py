"""The rows of one run in the coordinator's database, with every SQL statement that writes them.

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
from ..rounds import Cohort, OpenRound, RunState, UpdateSummary
from ..strategies.claims import Claim, Limits
from ..strategies.norm_bound import WINDOW
from .database import WriterMark, database_errors, open_database
from .evaluations import best_model, encode_classes, model_evaluations
from .last_round import ShownRounds, check_last_round
from .quarantine import STRIKES, quarantined, strike

UPDATE_COLUMNS = (
    "run, round, silo, update_id, digest, examples, payload_sha256, received_bytes, loss, correct, count, received_at, "
    "norm, codec, codec_error, sent_bytes, by_class, shared"
)


@dataclass(frozen=True)
class ClosedRound:
    """A round that made a model; number 0 is the start of the run."""

    number: int
    model_sha256: str


@dataclass(frozen=True)
class StoredUpdate:
    """An acknowledged update's row; its payload is a file while the round is open."""

    round: int
    summary: UpdateSummary
    payload_sha256: str
    received_bytes: int
    evaluation: Evaluation | None
    norm: float | None = None  # its distance from the round's model
    codec: Codec = "fp32"
    codec_error: float = 0.0
    sent_bytes: int = 0  # of the round's model, to this silo
    shared: bool = False  # other silos that agree too may evaluate it


@dataclass(frozen=True)
class RoundEnd:
    """Figures of an ended round, apart from its updates'."""

    seconds: float
    sent_bytes: int
    codec_error: float = 0.0  # of the model that it made, on its way to the silos
    clock_moved: float = 0.0  # seconds that the wall clock jumped while it was open
    limits: Limits | None = None  # of its updates; None: they count as claimed


class Journal:
    """Rows of one run; opened by the one coordinator that serves it. ``db`` is the connection."""

    def __init__(self, path: Path, run: RunSettings) -> None:
        self.path = path
        self._run = run
        self._mark = WriterMark(path)
        self._mark.check()
        shown = ShownRounds.of(path.parent, run.run)
        if not path.exists():
            shown.check_new()
        elif path.with_name(f"{path.name}-wal").exists():
            check_last_round(path.parent, run.run)  # before a writer moves the -wal file's content into the database
        self.db = open_database(path)
        try:
            shown.check(self.db)
        except BaseException:
            self.db.close()
            raise
        self._mark.begin(self.db)

    def close(self) -> None:
        self._mark.end(self.db)
        self.db.close()

    # --- start ---

    def started(self) -> tuple[bytes, str] | None:
        """Return the settings that the run was started with and the hash of its initial model; None for a new run."""
        row = self.one("SELECT settings, initial_sha256 FROM runs WHERE name = ?", self._run.run)
        return None if row is None else (row[0], row[1])

    def start(self, state: RunState) -> None:
        """Insert a new run and its first round."""
        row = (self._run.run, self._run.encode(), state.model_sha256, time.time())
        with database_errors(self.path), self.db:
            self.db.execute("INSERT INTO runs VALUES (?, ?, ?, ?)", row)
            self._insert_open_round(state.model_sha256, state.open)

    def closed_rounds(self, initial_sha256: str = "") -> list[ClosedRound]:
        """Return the closed rounds, preceded by the start of the run as round 0."""
        rows = self.all(
            "SELECT number, model_sha256 FROM rounds WHERE run = ? AND status = 'closed' ORDER BY number", self._run.run
        )
        return [ClosedRound(0, initial_sha256), *(ClosedRound(*row) for row in rows)]

    def abandon_after(self, intact: ClosedRound, cohort: Cohort) -> None:
        """Abandon the rounds after ``intact``, whose files are damaged, and open a round that starts from its model."""
        now = time.time()
        with database_errors(self.path), self.db:
            self.db.execute(
                "UPDATE rounds SET status = 'abandoned', lost_at = ?, ended_at = coalesce(ended_at, ?) "
                "WHERE run = ? AND number > ? AND status != 'abandoned'",
                (now, now, self._run.run, intact.number),
            )
            row = self.one("SELECT max(number) FROM rounds WHERE run = ?", self._run.run)
            self._insert_open_round(intact.model_sha256, OpenRound((row[0] if row else 0) + 1, cohort))

    def last_ended(self) -> int:
        """Return the number of the round that ended last, 0 for none."""
        row = self.one("SELECT max(number) FROM rounds WHERE run = ? AND status != 'open'", self._run.run)
        return (row[0] if row else None) or 0

    def open_round(self, cohort: Cohort) -> OpenRound | None:
        """Return the open round and its reports, for the silos of ``cohort``; None in a finished run."""
        row = self.one("SELECT number, wanted FROM rounds WHERE run = ? AND status = 'open'", self._run.run)
        if row is None:
            return None
        rows = self.all(
            "SELECT silo, update_id, examples, digest FROM updates WHERE run = ? AND round = ?", self._run.run, row[0]
        )
        accepted = MappingProxyType({summary[0]: UpdateSummary(*summary) for summary in rows})
        return OpenRound(row[0], Cohort(cohort.silos, row[1]), accepted=accepted)

    def counted(self) -> MappingProxyType[str, int]:
        """Return by silo the last closed round in which its update counts."""
        rows = self.all(
            "SELECT silo, max(round) FROM updates JOIN rounds ON rounds.run = updates.run AND number = round "
            "WHERE updates.run = ? AND status = 'closed' GROUP BY silo",
            self._run.run,
        )
        return MappingProxyType(dict(rows))

    # --- during a round ---

    def accepted_update(self, round_number: int, silo: str) -> UpdateSummary | None:
        """Return the silo's accepted update in a round, open or not; None when there is none."""
        row = self.one(
            "SELECT silo, update_id, examples, digest FROM updates WHERE run = ? AND round = ? AND silo = ?",
            self._run.run,
            round_number,
            silo,
        )
        return UpdateSummary(*row) if row else None

    def accept(self, update: StoredUpdate) -> None:
        """Insert an accepted update."""
        summary, evaluation = update.summary, update.evaluation
        row = (
            self._run.run,
            update.round,
            summary.silo,
            summary.update_id,
            summary.digest,
            summary.examples,
            update.payload_sha256,
            update.received_bytes,
            *((evaluation.loss, evaluation.correct, evaluation.count) if evaluation else (None, None, None)),
            time.time(),
            update.norm,
            update.codec,
            update.codec_error,
            update.sent_bytes,
            encode_classes(evaluation.by_class) if evaluation else None,
            update.shared,
        )
        with database_errors(self.path), self.db:
            self.db.execute(f"INSERT INTO updates({UPDATE_COLUMNS}) VALUES ({', '.join('?' * len(row))})", row)

    def refuse(
        self, round_number: int, silo: str, code: str, message: str, *, allowed: int = 0, times: int = 1
    ) -> bool:
        """Count refused updates: one row per round, silo and code. Return True when it puts the silo in quarantine.

        ``allowed``: the number of strikes (quarantine.py) that do so, 0 for never.
        """
        row = (self._run.run, round_number, silo, code, times, message[:500], time.time())
        quarantined_now = False
        with database_errors(self.path), self.db:
            self.db.execute(
                "INSERT INTO refusals(run, round, silo, code, times, message, last_at) VALUES (?, ?, ?, ?, ?, ?, ?) "
                "ON CONFLICT DO UPDATE SET times = times + excluded.times, message = excluded.message, "
                "last_at = excluded.last_at",
                row,
            )
            if code in STRIKES:
                quarantined_now = strike(self.db, silo, code, message[:500], allowed, times)
        return quarantined_now

    def quarantined(self) -> frozenset[str]:
        """Return the silos in quarantine."""
        with database_errors(self.path):
            return quarantined(self.db)

    def largest_norms(self) -> dict[str, float]:
        """Return by silo its largest update norm in the last closed rounds, as many as norm_bound.py looks at."""
        return self._largest("norm")

    def largest_claims(self) -> dict[str, int]:
        """Return by silo the most examples that it claimed in the same rounds."""
        return self._largest("examples")

    def _largest(self, column: str) -> dict[str, Any]:
        rows = self.all(
            f"SELECT silo, max({column}) FROM updates WHERE run = ? AND {column} IS NOT NULL AND round IN "
            "(SELECT number FROM rounds WHERE run = ? AND status = 'closed' ORDER BY number DESC LIMIT ?) "
            "GROUP BY silo",
            self._run.run,
            self._run.run,
            WINDOW,
        )
        return dict(rows)

    def claims(self, round_number: int) -> dict[str, Claim]:
        """Return by silo the claims of the round's updates, in ascending order of name."""
        rows = self.all(
            "SELECT silo, examples, norm FROM updates WHERE run = ? AND round = ? ORDER BY silo",
            self._run.run,
            round_number,
        )
        return {silo: Claim(examples, norm) for silo, examples, norm in rows}

    def updates(self, round_number: int) -> list[tuple[str, int, str]]:
        """Return the round's updates in ascending order of silo name: silo, examples, SHA-256 of the payload."""
        rows = self.all(
            "SELECT silo, examples, payload_sha256 FROM updates WHERE run = ? AND round = ? ORDER BY silo",
            self._run.run,
            round_number,
        )
        return [(silo, examples, sha256) for silo, examples, sha256 in rows]

    # --- the end of a round ---

    def end_round(self, after: RunState, end: RoundEnd, model_sha256: str | None) -> None:
        """Close round ``after.last_round`` with this model, or (None) abandon it; open the next one."""
        status = "abandoned" if model_sha256 is None else "closed"
        figures = (
            status,
            time.time(),
            end.seconds,
            model_sha256,
            end.sent_bytes,
            end.codec_error,
            end.clock_moved or None,
            *((end.limits.examples, end.limits.influence) if end.limits else (None, None)),
        )
        with database_errors(self.path), self.db:
            self.db.execute(
                "UPDATE rounds SET status = ?, ended_at = ?, seconds = ?, model_sha256 = ?, sent_bytes = ?, "
                "codec_error = ?, clock_moved = ?, most_examples = ?, most_influence = ? WHERE run = ? AND number = ?",
                (*figures, self._run.run, after.last_round),
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
        """Return the round of the best model (evaluations.py); None when no silo reported."""
        with database_errors(self.path):
            best = best_model(model_evaluations(self.db, self._run.run))
        return best[0] if best else None

    def shared(self, round_number: int) -> list[tuple[str, int, str]]:
        """Return the round's updates that other silos may evaluate: as ``updates``, in ascending order of digest."""
        rows = self.all(
            "SELECT silo, examples, payload_sha256 FROM updates WHERE run = ? AND round = ? AND shared "
            "ORDER BY payload_sha256",
            self._run.run,
            round_number,
        )
        return [(silo, examples, sha256) for silo, examples, sha256 in rows]

    def reported(self) -> dict[str, int]:
        """Return by silo the number of results in its final evaluation."""
        return dict(self.all("SELECT silo, results FROM final_reports WHERE run = ?", self._run.run))

    def report_final(self, silo: str, results: Mapping[str, Evaluation]) -> None:
        """Insert a silo's final evaluation, by subject."""
        rows = [
            (self._run.run, silo, subject, one.loss, one.correct, one.count, encode_classes(one.by_class))
            for subject, one in results.items()
        ]
        with database_errors(self.path), self.db:
            for row in rows:
                self.db.execute("INSERT INTO final_evaluations VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            self.db.execute(
                "INSERT INTO final_reports VALUES (?, ?, ?, ?)", (self._run.run, silo, len(rows), time.time())
            )

    # --- queries ---

    def one(self, query: str, *values: object) -> tuple[Any, ...] | None:
        """Return the first row, or None."""
        rows = self.all(query, *values)
        return rows[0] if rows else None

    def all(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Return every row."""
        with database_errors(self.path):
            return list(self.db.execute(query, values))
