"""Rows of the calibration of a run's final model: the silos' numbers, the temperature, and what was made of them.

As in journal.py: a method that writes is one transaction, durable (fsync) when it returns, and not for more than one
thread at a time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ...fedproto.calibration import Calibration
from ...fedproto.calibration_counts import ConfidenceSums, CountedClips, ScoreCounts, Weighed
from .database import database_errors
from .evaluations import most_clips

if TYPE_CHECKING:
    from apsw import Connection

CONFIDENCE, SCORES = 0, 1  # steps
FIRST_VERSION = 5  # of the database, with these tables
Numbers = Mapping[str, CountedClips | None]  # by silo; None: it declined


class _Sums(msgspec.Struct):
    clips: int
    noise: float
    figures: ConfidenceSums


class _Counts(msgspec.Struct):
    clips: int
    noise: float
    figures: ScoreCounts


_STEPS: tuple[type[_Sums | _Counts], ...] = (_Sums, _Counts)


@dataclass(frozen=True)
class CalibrationState:
    """A calibration as far as it has come."""

    temperature: float | None = None  # None: the first step has not ended, or there were too few clips
    calibration: Calibration | None = None
    ended: bool = False


class CalibrationRows:
    """Rows of one run."""

    def __init__(self, path: Path, db: Connection, run: str) -> None:
        self._path, self._db, self._run = path, db, run

    def state(self, model_sha256: str) -> CalibrationState:
        """Return how far the calibration of a final model has come."""
        with database_errors(self._path):
            return calibration_state(self._db, self._run, model_sha256)

    def numbers(self, model_sha256: str, step: int) -> Numbers:
        """Return the silos' numbers for a step, in ascending order of name."""
        rows = "SELECT silo, numbers FROM calibration_reports WHERE run = ? AND model_sha256 = ? AND step = ? "
        with database_errors(self._path):
            found = list(self._db.execute(f"{rows} ORDER BY silo", (self._run, model_sha256, step)))
        return {silo: _decoded(text, step) for silo, text in found}

    def report(self, model_sha256: str, step: int, silo: str, found: CountedClips | None) -> None:
        """Insert a silo's numbers; None: it declined."""
        text = None if found is None else msgspec.json.encode(found).decode()
        with database_errors(self._path), self._db:
            self._db.execute(
                "INSERT INTO calibration_reports VALUES (?, ?, ?, ?, ?, ?)",
                (self._run, model_sha256, step, silo, text, time.time()),
            )

    def begin_scores(self, model_sha256: str, temperature: float) -> None:
        """Insert the temperature: the first step has ended."""
        with database_errors(self._path), self._db:
            row = (self._run, model_sha256, temperature)
            self._db.execute("INSERT INTO calibrations VALUES (?, ?, ?, NULL, NULL)", row)

    def end(self, model_sha256: str, calibration: Calibration | None) -> None:
        """End the calibration; None: there are too few clips for one."""
        text = None if calibration is None else msgspec.json.encode(calibration).decode()
        with database_errors(self._path), self._db:
            self._db.execute(
                "INSERT INTO calibrations VALUES (?, ?, NULL, ?, ?) ON CONFLICT DO UPDATE SET "
                "calibration = excluded.calibration, ended_at = excluded.ended_at",
                (self._run, model_sha256, text, time.time()),
            )


def calibration_state(db: Connection, run: str, model_sha256: str) -> CalibrationState:
    """Return how far the calibration of a run's final model has come."""
    if int(db.pragma("user_version")) < FIRST_VERSION:  # its writer has yet to migrate it
        return CalibrationState()
    query = "SELECT temperature, calibration, ended_at FROM calibrations WHERE run = ? AND model_sha256 = ?"
    row = next(iter(db.execute(query, (run, model_sha256))), None)
    if row is None:
        return CalibrationState()
    temperature, text, ended_at = row
    made = None if text is None else msgspec.json.decode(text, type=Calibration)
    return CalibrationState(temperature, made, ended_at is not None)


def weigh(numbers: Numbers) -> list[tuple[Weighed, Any]]:
    """Return the numbers of the silos that reported some, each with how much of it counts.

    As with evaluations: once three silos have reported, one counts for at most three times the median silo's clips.
    """
    found = [(silo, one) for silo, one in numbers.items() if one is not None]
    most = most_clips((silo, one.clips) for silo, one in found)
    return [(Weighed(one.clips, _share(one.clips, most), one.noise), one.figures) for _, one in found]


def _share(clips: int, most: int | None) -> float:
    return 1.0 if most is None else min(clips, most) / clips


def _decoded(text: str | None, step: int) -> CountedClips | None:
    if text is None:
        return None
    found = msgspec.json.decode(text, type=_STEPS[step])
    return CountedClips(found.clips, found.noise, found.figures)
