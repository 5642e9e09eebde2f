"""The daemon's status, kept in ``STATE/status.json`` for ``flamest-agent status``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import msgspec

from ..base.clock import days_until, parse_utc, utc_text
from ..base.errors import DataError, FlamestError, StorageError, UnreachableError
from ..base.files import FileLock, read_regular, write_atomic
from ..base.log import LimitedLog, Log

STATUS_FILE = "status.json"
LOCK_FILE = "lock"
MAX_STATUS = 1 << 20  # bytes
TRAFFIC_EVERY_S = 10.0  # a status in which only the traffic has changed is written no more often

log = Log("agent")
asked_log = LimitedLog("agent")  # for errors that a coordinator can cause without end

DaemonState = Literal[
    "starting",
    "extracting",
    "unreachable",
    "waiting",
    "training",
    "refused_by_policy",
    "standing_aside",
    "failed",
    "evaluating",
    "duplicate_identity",
    "finished",
    "stopped",
]


class AgentStatus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One snapshot: counts and identifiers. A file's or label's name is at most in the reason of a failure."""

    doing: DaemonState = "starting"
    detail: str = ""  # for people: the reason, and what to do
    code: str = ""  # of the refusal or failure in ``detail``: policy_refused, diverged, …
    extraction: str = ""  # why the last extraction failed; empty: it did not
    failed_clips: dict[str, int] = {}  # by code: clips that could not be used in the last extraction
    unlisted_clips: int = 0  # clips in the store that are listed no more, and so have no label
    pid: int = 0
    since: str = ""  # UTC, when ``doing`` began
    silo: str = ""
    run: str = ""
    round: int = 0  # the last round answered
    rounds: int = 0  # of the run
    clips: int = 0  # trained on in the last round
    held_out: int = 0
    ignored: int = 0  # clips without a label, or with one that the run does not know
    left_out: int = 0  # clips of rare classes, in no update (policy.min_class_samples)
    updates_sent: int = 0  # in the egress ledger: by this and by earlier daemons
    update_bytes: int = 0  # of these updates
    adopted: str = ""  # at the end of a run: "final", "own", "tuned" or "blend"
    adopted_why: str = ""
    gain: dict[str, int | float] = {}  # of the final model over the own one: gain, low, high (of 1), clips, groups
    adopted_run: str = ""  # that the model in use is from
    adopted_round: int = 0
    drift: dict[str, int | float | str] = {}  # as agent/drift.py has it: new clips since the last training, p, found
    sent_bytes: int = 0  # since the daemon started
    received_bytes: int = 0
    epsilon_spent: float | None = None  # record-dp: over all runs; None without
    epsilon_budget: float | None = None
    evaluations_left: int | None = None  # that may still leave, when the last message left; None: none has
    certificate_expires: str = ""  # UTC, of the one in use
    certificate_sha256: str = ""  # of it, as the coordinator's list of silos has it
    certificate_problem: str = ""  # why new certificate files are not in use; empty: no problem
    backends: dict[str, str] = {}  # by graph: where it ran when clips were last extracted

    @property
    def certificate_days(self) -> float | None:
        """Days until the certificate in use ends; None before the daemon has opened it."""
        if not self.certificate_expires:
            return None
        return days_until(parse_utc(self.certificate_expires))

    def graphs_by_place(self) -> dict[str, list[str]]:
        places: dict[str, list[str]] = {}
        for graph, where in self.backends.items():
            places.setdefault(where, []).append(graph)
        return places


class StatusNotes:
    """The running daemon's status: written whenever it changes."""

    def __init__(self, state: Path, status: AgentStatus) -> None:
        self._state = state
        self.status = status
        self._write()

    def note(self, **changes: Any) -> None:
        changed = msgspec.structs.replace(self.status, **changes)
        if changed != self.status:
            self.status = changed
            self._write()

    def note_traffic(self, *, sent_bytes: int, received_bytes: int) -> None:
        """Note the bytes so far; a coordinator may answer many times a second, and each write waits for the disk."""
        self.status = msgspec.structs.replace(self.status, sent_bytes=sent_bytes, received_bytes=received_bytes)
        if time.monotonic() - self._written >= TRAFFIC_EVERY_S:
            self._write()

    def _write(self) -> None:
        write_status(self._state, self.status)
        self._written = time.monotonic()

    def set_state(self, doing: DaemonState, *, detail: str = "", code: str = "") -> None:
        if (doing, detail) != (self.status.doing, self.status.detail):
            self.note(doing=doing, detail=detail, code=code, since=utc_text())

    def note_error(self, event: str, round_number: int, error: FlamestError) -> None:
        """Note an error, and log it without its message, which may name files of this silo."""
        self.set_state("failed", detail=f"round {round_number}: {error.with_fix}", code=error.code)
        asked_log.error(event, who="round", round=round_number, code=error.code, see="flamest-agent status")
        log.debug(event, detail=error.message)


def write_status(state: Path, status: AgentStatus) -> None:
    write_atomic(state / STATUS_FILE, msgspec.json.format(msgspec.json.encode(status)) + b"\n")


def read_status(state: Path) -> AgentStatus:
    """Read the last snapshot; UnreachableError when no daemon has run here, DataError when it is damaged."""
    path = state / STATUS_FILE
    try:
        return msgspec.json.decode(read_regular(path, largest=MAX_STATUS), type=AgentStatus)
    except StorageError as error:
        if not (state / STATUS_FILE).exists():
            raise not_running(state, fix="start it: flamest-agent run --config agent.toml") from error
        raise
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    except DataError as error:
        raise _damaged(path, error.message) from error


def not_running(state: Path, *, fix: str) -> UnreachableError:
    """Return the error of a command that finds no daemon at work in ``state``."""
    return UnreachableError(f"no flamest-agent runs with the state folder {state}", fix=fix, code="not_running")


def _damaged(path: Path, problem: str) -> DataError:
    return DataError(f"{path} is damaged: {problem}", fix="remove it; the running daemon writes it again")


def is_alive(state: Path) -> bool:
    """True while a daemon holds the lock of the state folder (which ends with its process)."""
    return FileLock.is_held(state / LOCK_FILE)


def renewal_fix(silo: str) -> str:
    """Return what to do about a certificate that ends soon."""
    return f"ask the coordinator's operator for: flamest-coordinator silo renew {silo}; then put silo.pem in its place"
