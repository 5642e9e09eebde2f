"""The last round that ended, in a file next to the database: a database that does not know this round has lost rounds.

SQLite reads a ``-wal`` file up to its first damaged frame, without an error: when it was cut short, or replaced by an
older one like the database itself, closed rounds and their receipts are missing. ``runs/NAME/last_round.json`` is
written, durably, after each commit that ends a round and before silos hear of it. So a database may be ahead of the
file (a crash in between), never behind it. Models show the same where the file is gone: at most the one of the open
round is newer than the last round that ended.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ...base.errors import DataError, FlamestError
from ...base.files import read_regular, sha256_bytes, write_atomic
from ...base.log import Log
from .database import DATABASE_FILE, database_errors, read_database
from .models import models_folder

if TYPE_CHECKING:
    from apsw import Connection

log = Log("coordinator")

LAST_ROUND_FILE = "last_round.json"
MODEL_NAME = re.compile(r"round-([0-9]{6,18})\.safetensors")
LARGEST_FILE = 4096  # bytes
LAST_ENDED = (
    "SELECT number, base_sha256, coalesce(model_sha256, '') FROM rounds WHERE run = ? AND status != 'open' "
    "ORDER BY number DESC LIMIT 1"
)


class LastRound(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An ended round as the database has it; round 0 is the start of the run."""

    run: str
    round: int
    base_sha256: str  # of the model that it started from; of the initial model for round 0
    model_sha256: str  # of the model that it made; empty for none
    check: str = ""  # SHA-256 over the other fields

    @property
    def whole(self) -> bool:
        return self.check == self.checked().check

    def checked(self) -> LastRound:
        """Return it with its check."""
        fields = (self.run, self.round, self.base_sha256, self.model_sha256)
        return msgspec.structs.replace(self, check=sha256_bytes(msgspec.json.encode(fields)))


def record_last_round(state: Path, run: str, database: Connection) -> None:
    """Write the last ended round of the database, durably.

    A failure is logged and not raised: the round is committed, and the next one's end writes the file again.
    """
    last = _last_ended(state, run, database)
    if last is None:
        return
    try:
        write_atomic(_path(state, run), msgspec.json.encode(last.checked()) + b"\n", mode=0o600)
    except FlamestError as error:
        log.warning("last_round_not_written", round=last.round, code=error.code, detail=error.message, fix=error.fix)


def check_last_round(state: Path, run: str) -> None:
    """Raise DataError (``lost_rounds``, ``lost_run``) when the state folder shows rounds that its database lacks.

    Reads only, also next to a running coordinator. A database that its writer has yet to migrate is not compared.
    """
    shown = ShownRounds.of(state, run)  # before the database: a running coordinator writes in the other order
    try:
        database = read_database(state / DATABASE_FILE)
    except FlamestError as error:
        if error.code == "older_state":
            return
        if error.code == "no_state":
            shown.check_new()
            return
        raise
    try:
        shown.check(database)
    finally:
        database.close()


@dataclass(frozen=True)
class ShownRounds:
    """The last round of a run, as the files next to the database show it."""

    state: Path
    run: str
    recorded: LastRound | None  # None: the file is missing or damaged
    newest_model: int  # 0 for none

    @classmethod
    def of(cls, state: Path, run: str) -> ShownRounds:
        """Read the files."""
        newest = max((number for number, _ in _models(state, run)), default=0)
        return cls(state, run, _read(state, run), newest)

    def check_new(self) -> None:
        """Raise DataError (``lost_run``) unless the run may begin: no file shows that it has."""
        if self.recorded is not None or self.newest_model > 0:
            raise lost_run_error(self.state, self.run)

    def check(self, database: Connection) -> None:
        """Raise DataError (``lost_rounds``, ``lost_run``) when the database lacks what the files show."""
        state, recorded, newest = self.state, self.recorded, self.newest_model
        last = _last_ended(state, self.run, database)
        if last is None:
            self.check_new()
            return
        if recorded is not None and _row(state, self.run, database, recorded.round) != recorded:
            known = f"rounds up to {last.round}" if recorded.round > last.round else "another round of this number"
            raise _lost_rounds_error(state, f"round {recorded.round} has ended, but {DATABASE_FILE} knows {known}")
        if newest > last.round + (recorded is not None):
            problem = f"there is a model of round {newest}, but {DATABASE_FILE} knows rounds up to {last.round}"
            raise _lost_rounds_error(state, problem)


def settle_last_round(state: Path) -> None:
    """Make a copy of a state folder agree with its database: remove newer models, write each run's last round."""
    database = read_database(state / DATABASE_FILE)
    try:
        for (run,) in list(database.execute("SELECT name FROM runs")):
            last = _last_ended(state, run, database)
            for number, path in _models(state, run):
                if last is not None and number > last.round:
                    path.unlink()
            if (state / "runs" / run).is_dir():
                record_last_round(state, run, database)
    finally:
        database.close()


def _models(state: Path, run: str) -> list[tuple[int, Path]]:
    folder = models_folder(state, run)
    return [(int(found[1]), path) for path in folder.glob("*") if (found := MODEL_NAME.fullmatch(path.name))]


def _path(state: Path, run: str) -> Path:
    return state / "runs" / run / LAST_ROUND_FILE


def _read(state: Path, run: str) -> LastRound | None:
    """Return the recorded round; None for a file that is missing or is not what was written."""
    path = _path(state, run)
    try:
        found = msgspec.json.decode(read_regular(path, largest=LARGEST_FILE), type=LastRound)
    except (FlamestError, ValueError, RecursionError) as error:
        if path.exists():
            log.warning("last_round_damaged", file=str(path), detail=str(error), fix="none needed: it is written again")
        return None
    if not found.whole or found.run != run:
        log.warning("last_round_damaged", file=str(path), fix="none needed: it is written again")
        return None
    return found


def _last_ended(state: Path, run: str, database: Connection) -> LastRound | None:
    """Return the round that ended last in the database; None for a run that it does not know."""
    with database_errors(state / DATABASE_FILE):
        for number, base, model in database.execute(LAST_ENDED, (run,)):
            return LastRound(run, number, base, model).checked()
    return _row(state, run, database, 0)


def _row(state: Path, run: str, database: Connection, number: int) -> LastRound | None:
    """Return an ended round of the database, None when it has none of this number."""
    if number == 0:
        values: tuple[str | int, ...] = (run,)
        query = "SELECT initial_sha256, '' FROM runs WHERE name = ?"
    else:
        query = (
            "SELECT base_sha256, coalesce(model_sha256, '') FROM rounds "
            "WHERE run = ? AND number = ? AND status != 'open'"
        )
        values = (run, number)
    with database_errors(state / DATABASE_FILE), contextlib.suppress(OverflowError):  # beyond SQLite's integers
        for base, model in database.execute(query, values):
            return LastRound(run, number, base, model).checked()
    return None


def lost_run_error(state: Path, run: str) -> DataError:
    """Return the error for a run's folder when the database does not know the run."""
    folder = state / "runs" / run
    return DataError(
        f"{folder} shows that the run has begun, but {state / DATABASE_FILE} does not know the run",
        fix=f"restore {state} from a backup, or move {folder} away to start the run again",
        code="lost_run",
    )


def _lost_rounds_error(state: Path, problem: str) -> DataError:
    return DataError(
        f"{state} has lost rounds: {problem}; nothing was changed",
        fix="go back to a backup: flamest-coordinator restore --config coordinator.toml --from BACKUP; without one: "
        "docs/reference/exit-codes.md",
        code="lost_rounds",
    )
