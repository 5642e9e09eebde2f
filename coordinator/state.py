"""What a run must not lose, on disk: rounds, acknowledged updates, models.

    STATE/lock  coordinator.sqlite  address  health
    STATE/quarantine/                                   models that were found damaged
    STATE/runs/NAME/models/round-000012.safetensors     the model after round 12; 0: before round 1
    STATE/runs/NAME/memory/round-000012.arrays          what the strategy carries on, if anything (memory.py)
    STATE/runs/NAME/updates/000013/SILO.f32             payloads of the open round
    STATE/runs/NAME/spool/                              uploads that are not complete

A file is whole and durable before the row that names it is committed, and rows are committed
(fsync) before anyone is told. What a crash leaves besides is removed at the next start. One process at a
time: the lock. Not for more than one thread at a time.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from ..base.errors import DataError, LockedError, SettingsError, StorageError
from ..base.files import FileLock, fsync_directory, sha256_bytes, storage_code
from ..base.log import Log
from ..fedproto.codec import decode_params, payload_bytes
from ..fedproto.head import HeadSpec, Params, initial_params, params_sha256
from ..fedproto.records import Evaluation, RunSettings
from .aggregate import ServerState
from .bounds import WINDOW
from .contributions import Contribution
from .database import FILE, Running, open_database, state_errors
from .memory import Memory
from .models import ModelShelf, damaged, models_folder
from .quarantine import STRIKES, quarantined, strike
from .rescue import ClosedRound, last_sound, move_aside
from .rounds import OpenRound, Plan, Report, Roll, RunState, start_run
from .spool import Spool

log = Log("coordinator")

LOCK_TRIES = 5  # `status` holds the lock for an instant
LOCK_PAUSE_S = 0.1


@dataclass(frozen=True)
class StoredUpdate:
    """An acknowledged update's row; its payload is a file while the round is open."""

    round: int
    report: Report
    payload_sha256: str
    received_bytes: int
    evaluation: Evaluation | None
    norm: float | None = None  # its distance from the round's model


@dataclass(frozen=True)
class RoundEnd:
    """How a round went, beside its updates."""

    seconds: float
    sent_bytes: int


FileMark = tuple[int, int, int]  # inode, bytes, time of the last change in ns


@dataclass(frozen=True)
class Contributions:
    """Acknowledged updates on disk; each is read and checked when its turn comes, so memory is that of one.

    A file that is the one hashed when it came (same inode, size and time) is not hashed again.
    Raises DataError (``corrupt_update``) for a payload that is not what was acknowledged.
    """

    head: HeadSpec
    stored: tuple[tuple[str, int, str, Path], ...]  # silo, examples, SHA-256 of the payload, its file
    hashed: Mapping[Path, FileMark] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Contribution]:
        for silo, examples, sha256, path in self.stored:
            try:
                known = self.hashed.get(path) == _mark(path)
                payload = path.read_bytes()
            except OSError as error:
                raise damaged(path, error.strerror or str(error), code="corrupt_update") from error
            if not known and sha256_bytes(payload) != sha256:
                raise damaged(path, "its digest is another", code="corrupt_update")
            yield Contribution(silo, examples, decode_params(self.head, payload, whose=str(path)))


class RunStore:
    """One run's durable state; opened by the one coordinator that serves it."""

    def __init__(self, folder: Path, run: RunSettings, keep_models: int, lock: FileLock) -> None:
        self._state = folder
        self._folder = folder / "runs" / run.run
        self._run = run
        self._models = ModelShelf(models_folder(folder, run.run), run, keep_models)
        self._memory = Memory(self._folder / "memory", run)
        self._tidy: RunState | None = None  # the last round's end, until ``tidy``
        self._hashed: dict[Path, FileMark] = {}  # payloads whose content this process has checked
        self._lock = lock
        self._path = folder / FILE
        self._running = Running(self._path)
        self._running.check()
        self._db = open_database(self._path)
        self._running.begin(self._db)

    @classmethod
    def open(cls, folder: Path, run: RunSettings, *, keep_models: int = 0) -> RunStore:
        """Take the state folder (made when absent).

        Raises LockedError when another coordinator has it, DataError or SettingsError when what is in
        it cannot be used, StorageError.
        """
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = _take_lock(folder)
        except OSError as error:
            raise StorageError(
                f"cannot use the state folder {folder}: {error.strerror}", code=storage_code(error)
            ) from error
        try:
            return cls(folder, run, keep_models, lock)
        except BaseException:
            lock.release()
            raise

    def close(self) -> None:
        self._running.end(self._db)
        self._db.close()
        self._lock.release()

    def __enter__(self) -> RunStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def spool_folder(self) -> Path:
        return self._folder / "spool"

    # --- start ---

    def load(self, plan: Plan, roll: Roll) -> tuple[RunState, Params]:
        """Where the run stands, and its current model; a new run is begun.

        When the last model is damaged, the run goes on from the last one that is not; the rounds after it are lost,
        say so in the log and in the history, and their files are kept in ``STATE/quarantine``. Raises SettingsError
        (``other_settings``) when the run was begun with other settings, DataError (``lost_run``; ``corrupt_model``,
        ``corrupt_memory`` when no model is sound) when the folder does not hold what it should.
        """
        for part in ("models", "updates", "spool"):
            (self._folder / part).mkdir(mode=0o700, parents=True, exist_ok=True)
        known = self._one("SELECT settings, initial_sha256 FROM runs WHERE name = ?", self._run.run)
        if known is None:
            state = self._begin(plan, roll)
            params = self._models.read(0, state.model_sha256)
        else:
            self._check_settings(known[0])
            rounds = self._closed_rounds(known[1])
            sound = last_sound(self._models, self._memory, rounds)
            if lost := rounds[sound.closed + 1 :]:
                self._fall_back(lost, sound.at, roll)
            state, params = self._resume(plan, roll, known[1]), sound.params
        self._remove_leftovers(state)
        return state, params

    def server_state(self, state: RunState) -> ServerState:
        """What the strategy carries on from the last closed round; DataError (``corrupt_memory``)."""
        return self._memory.read(state.closed, self._last_closed(), state.model_sha256)

    def _closed_rounds(self, initial_sha256: str) -> list[ClosedRound]:
        """The rounds that count, the start of the run before them."""
        rows = self._all(
            "SELECT number, model_sha256 FROM rounds WHERE run = ? AND status = 'closed' ORDER BY number", self._run.run
        )
        return [ClosedRound(0, initial_sha256), *(ClosedRound(*row) for row in rows)]

    def _last_closed(self) -> int:
        return self._closed_rounds("")[-1].number

    def _fall_back(self, lost: Sequence[ClosedRound], sound: ClosedRound, roll: Roll) -> None:
        """Give up what was made after ``sound``, in one transaction, once the damaged files are out of the way."""
        aside = self._state / "quarantine"
        for at in lost:
            for path in (self._models.path(at.number), self._memory.path(at.number)):
                move_aside(path, aside / f"{self._run.run}-{path.name}")
        now = time.time()
        with state_errors(self._path), self._db:
            self._db.execute(
                "UPDATE rounds SET status = 'abandoned', lost_at = ?, ended_at = coalesce(ended_at, ?) "
                "WHERE run = ? AND number > ? AND status != 'abandoned'",
                (now, now, self._run.run, sound.number),
            )
            row = self._one("SELECT max(number) FROM rounds WHERE run = ?", self._run.run)
            self._insert_open_round(sound.model_sha256, OpenRound((row[0] if row else 0) + 1, roll))
        log.error(
            "models_damaged",
            lost=",".join(str(at.number) for at in lost),
            goes_on_from=sound.number,
            kept_in=aside.name,
            fix="look for what damages files on this disk; flamest-coordinator history shows the lost rounds",
        )

    def _begin(self, plan: Plan, roll: Roll) -> RunState:
        if self._models.has_more_than_the_start():
            raise DataError(
                f"{self._folder} holds models, but {self._path} knows nothing of the run",
                fix=f"restore {self._state} from a backup, or move {self._folder} away to begin anew",
                code="lost_run",
            )
        params = initial_params(self._run.head, self._run.seed)
        state = start_run(plan, params_sha256(params), roll)
        self._models.write(0, params)
        for folder in (self._folder, self._folder.parent, self._state):
            fsync_directory(folder)
        row = (self._run.run, self._run.encode(), state.model_sha256, time.time())
        with state_errors(self._path), self._db:
            self._db.execute("INSERT INTO runs VALUES (?, ?, ?, ?)", row)
            self._insert_open_round(state.model_sha256, state.open)
        return state

    def _check_settings(self, settings: bytes) -> None:
        if settings != self._run.encode():
            changed = _differences(settings, self._run.encode())
            raise SettingsError(
                f"run '{self._run.run}' was begun with other settings ({', '.join(changed)} differ)",
                fix="give the new settings another [run] name, or change them back",
                code="other_settings",
            )

    def _resume(self, plan: Plan, roll: Roll, initial_sha256: str) -> RunState:
        closed = self._closed_rounds(initial_sha256)
        ended = self._one("SELECT max(number) FROM rounds WHERE run = ? AND status != 'open'", self._run.run)
        row = self._one("SELECT number, wanted FROM rounds WHERE run = ? AND status = 'open'", self._run.run)
        return RunState(
            plan=plan,
            closed=len(closed) - 1,
            model_sha256=closed[-1].model_sha256,
            last_round=(ended[0] if ended else None) or 0,
            open=OpenRound(row[0], Roll(roll.silos, row[1]), reports=self._reports(row[0])) if row else None,
            counted=self._counted(),
        )

    def _counted(self) -> MappingProxyType[str, int]:
        rows = self._all(
            "SELECT silo, max(round) FROM updates JOIN rounds ON rounds.run = updates.run AND number = round "
            "WHERE updates.run = ? AND status = 'closed' GROUP BY silo",
            self._run.run,
        )
        return MappingProxyType(dict(rows))

    def _reports(self, round_number: int) -> MappingProxyType[str, Report]:
        rows = self._all(
            "SELECT silo, update_id, examples, digest FROM updates WHERE run = ? AND round = ?",
            self._run.run,
            round_number,
        )
        return MappingProxyType({row[0]: Report(*row) for row in rows})

    def _remove_leftovers(self, state: RunState) -> None:
        """What a crash left: incomplete uploads, payloads without a row, folders of rounds that ended."""
        for path in self.spool_folder.iterdir():
            path.unlink()
        self._models.remove_old()
        self._remove_old_memory()
        current = self._updates_folder(state.open.number) if state.open else None
        for folder in (self._folder / "updates").iterdir():
            if folder != current:
                shutil.rmtree(folder, ignore_errors=True)
        if current is not None and state.open is not None and current.exists():
            kept = {self._payload_path(state.open.number, silo) for silo in state.open.reports}
            for path in set(current.iterdir()) - kept:
                path.unlink()

    # --- during a round ---

    def report(self, round_number: int, silo: str) -> Report | None:
        """What counts of this silo in this round, whether the round is open or not."""
        row = self._one(
            "SELECT silo, update_id, examples, digest FROM updates WHERE run = ? AND round = ? AND silo = ?",
            self._run.run,
            round_number,
            silo,
        )
        return Report(*row) if row else None

    def accept(self, update: StoredUpdate, spool: Spool) -> None:
        """Make an update whose payload is durable in ``spool`` count. When this returns, it is durable."""
        path = self._payload_path(update.round, update.report.silo)
        try:
            if not path.parent.exists():
                path.parent.mkdir(mode=0o700)
                fsync_directory(path.parent.parent)
            spool.move_to(path)
            fsync_directory(path.parent)
            self._hashed[path] = _mark(path)
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}", code=storage_code(error)) from error
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
        )
        with state_errors(self._path), self._db:
            self._db.execute("INSERT INTO updates VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    def probe(self) -> None:
        """Write as much as an update is, durably, and remove it: whether there is space again. Raises StorageError."""
        spool = Spool(self.spool_folder, payload_bytes(self._run.head))
        try:
            payload = bytes(payload_bytes(self._run.head))
            spool.feed(payload)
            spool.finish(sha256_bytes(payload))
        finally:
            spool.discard()

    def refuse(self, round_number: int, silo: str, code: str, message: str, *, allowed: int = 0) -> bool:
        """Count a refused update; one row per round, silo and code, however often it comes.

        ``allowed``: so many that an honest silo does not get put it in quarantine, 0 for never. True when this one did.
        """
        row = (self._run.run, round_number, silo, code, message[:500], time.time())
        with state_errors(self._path), self._db:
            self._db.execute(
                "INSERT INTO refusals(run, round, silo, code, times, message, last_at) VALUES (?, ?, ?, ?, 1, ?, ?) "
                "ON CONFLICT DO UPDATE SET times = times + 1, message = excluded.message, last_at = excluded.last_at",
                row,
            )
            return code in STRIKES and strike(self._db, silo, code, message[:500], allowed)

    def quarantined(self) -> frozenset[str]:
        """Silos of which nothing is taken."""
        with state_errors(self._path):
            return quarantined(self._db)

    def farthest(self) -> dict[str, float]:
        """By silo: the farthest that an update of it went in the last closed rounds that bounds.py remembers."""
        rows = self._all(
            "SELECT silo, max(norm) FROM updates WHERE run = ? AND norm IS NOT NULL AND round IN (SELECT number "
            "FROM rounds WHERE run = ? AND status = 'closed' ORDER BY number DESC LIMIT ?) GROUP BY silo",
            self._run.run,
            self._run.run,
            WINDOW,
        )
        return dict(rows)

    def contributions(self, round_number: int) -> Contributions:
        """The round's updates in ascending order of silo name, to be run through as often as one likes."""
        rows = self._all(
            "SELECT silo, examples, payload_sha256 FROM updates WHERE run = ? AND round = ? ORDER BY silo",
            self._run.run,
            round_number,
        )
        stored = [(silo, examples, sha256, self._payload_path(round_number, silo)) for silo, examples, sha256 in rows]
        return Contributions(self._run.head, tuple(stored), self._hashed)

    # --- the end of a round ---

    def close_round(self, after: RunState, params: Params, end: RoundEnd, carried: ServerState | None = None) -> None:
        """Keep the model that round ``after.last_round`` made, and open the next round, in one transaction.

        ``carried``: what the strategy needs in the next round; durable with the model.
        """
        number = after.last_round
        self._models.write(number, params)
        if carried is not None:
            self._memory.write(number, after.model_sha256, carried)
        self._end_round(after, "closed", after.model_sha256, end)

    def abandon_round(self, after: RunState, end: RoundEnd) -> None:
        """Note that round ``after.last_round`` came to nothing, and open the next round."""
        self._end_round(after, "abandoned", None, end)

    def _end_round(self, after: RunState, status: str, model_sha256: str | None, end: RoundEnd) -> None:
        row = (status, time.time(), end.seconds, model_sha256, end.sent_bytes, self._run.run, after.last_round)
        with state_errors(self._path), self._db:
            self._db.execute(
                "UPDATE rounds SET status = ?, ended_at = ?, seconds = ?, model_sha256 = ?, sent_bytes = ? "
                "WHERE run = ? AND number = ?",
                row,
            )
            self._insert_open_round(after.model_sha256, after.open)
        self._hashed.clear()
        self._tidy = after

    def tidy(self) -> None:
        """Remove what the last round's end has made needless; apart from it, because silos wait for that."""
        if self._tidy is not None:
            self._models.remove_old()
            self._remove_old_memory()
            shutil.rmtree(self._updates_folder(self._tidy.last_round), ignore_errors=True)
            self._tidy = None

    def _insert_open_round(self, base_sha256: str, opened: OpenRound | None) -> None:
        if opened is not None:
            self._db.execute(
                "INSERT INTO rounds(run, number, status, wanted, base_sha256, opened_at) "
                "VALUES (?, ?, 'open', ?, ?, ?)",
                (self._run.run, opened.number, opened.roll.wanted, base_sha256, time.time()),
            )

    def _remove_old_memory(self) -> None:
        self._memory.remove_old(*(at.number for at in self._closed_rounds("")[-2:]))

    # --- small ---

    def _updates_folder(self, round_number: int) -> Path:
        return self._folder / "updates" / f"{round_number:06d}"

    def _payload_path(self, round_number: int, silo: str) -> Path:
        return self._updates_folder(round_number) / f"{silo}.f32"

    def _one(self, query: str, *values: object) -> tuple[Any, ...] | None:
        rows = self._all(query, *values)
        return rows[0] if rows else None

    def _all(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with state_errors(self._path):
            return list(self._db.execute(query, values))


def _mark(path: Path) -> FileMark:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _take_lock(folder: Path) -> FileLock:
    for _ in range(LOCK_TRIES):
        try:
            return FileLock.take(folder / "lock", owner="flamest-coordinator")
        except LockedError:
            time.sleep(LOCK_PAUSE_S)
    return FileLock.take(folder / "lock", owner="flamest-coordinator")


def _differences(old: bytes, new: bytes) -> list[str]:
    before, after = msgspec.json.decode(old), msgspec.json.decode(new)
    return [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
