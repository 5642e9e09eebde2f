"""The egress ledger: one line for everything that leaves this silo for the coordinator, and for what was refused.

    STATE/egress.jsonl      JSON Lines, only ever added to
    STATE/egress.head       number and hash of the last line: lines removed at the end are noticed

A line is on disk (fsync) BEFORE its message is sent: a crash between the two leaves one line too many, never one too
few. Every line holds the hash of the line before, so that a changed or removed line is found. Whoever may write here
can write a whole new ledger: compare with the head's hash, noted elsewhere.

A line that a crash or a full disk cut short stays in the file: nothing was sent for it. What a coordinator can make a
silo write is bounded (``quotas``), and so is what is read of a file that is no ledger.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec

from ...base.clock import utc_text
from ...base.errors import DataError, StorageError, printable
from ...base.files import fsync_directory, open_regular, read_regular, storage_code, write_atomic
from .accountant import Spend
from .entry import MAX_LINE, Entry, EntryType, TensorSent, decode_entry, encode_entry
from .policy import PolicyRefused
from .quotas import Quotas

LEDGER_FILE = "egress.jsonl"
HEAD_FILE = "egress.head"
BEFORE_FIRST = "0" * 64
HEAD_BYTES = 200  # of the head file, at most
MAX_UNREADABLE = 16 << 20  # bytes of lines that are no JSON: a crash or a full disk leaves far less
MAX_PROBLEMS = 100  # that are listed; reading ends there
RESERVED = 8192  # bytes of a line that is still to be made


@dataclass(eq=False)
class LedgerContent:
    """The entries of a ledger's file, and the problems found in it."""

    entries: list[Entry] = field(default_factory=list)
    head: str = BEFORE_FIRST  # SHA-256 of the last line
    problems: list[str] = field(default_factory=list)  # changes that no crash explains; empty: the chain is intact
    cut_short: int = 0  # lines that a crash interrupted
    mid_line: bool = False  # the file ends in the middle of a line
    quotas: Quotas = field(default_factory=Quotas)
    _of: dict[str, list[Entry]] = field(default_factory=dict)
    _updates: dict[str, list[Entry]] = field(default_factory=dict)  # by update_id
    _evaluations: dict[str, list[Entry]] = field(default_factory=dict)  # by run_sha256
    _calibrations: dict[str, list[Entry]] = field(default_factory=dict)  # by run_sha256
    _runs: set[str] = field(default_factory=set)  # run_sha256 of every update
    _refusals: set[tuple[str, str]] = field(default_factory=set)  # what was refused, and the code
    _tensors: dict[tuple[TensorSent, ...], tuple[TensorSent, ...]] = field(default_factory=dict)  # each kept once

    def add(self, entry: Entry, line: bytes, *, live: bool) -> None:
        """Take in the next entry; ``live``: it was written now."""
        entry = msgspec.structs.replace(entry, tensors=self._tensors.setdefault(entry.tensors, entry.tensors))
        self.entries.append(entry)
        self.head = hashlib.sha256(line).hexdigest()
        self._of.setdefault(entry.what, []).append(entry)
        new = True
        if entry.what in ("update", "evaluation"):
            index = self._updates if entry.what == "update" else self._evaluations
            before = index.setdefault(entry.update_id if entry.what == "update" else entry.run_sha256, [])
            new = not before
            before.append(entry)
        elif entry.what == "calibration":
            new = not self.calibrations(entry.run_sha256, sums=_is_sums(entry))
            self._calibrations.setdefault(entry.run_sha256, []).append(entry)
        if entry.what == "update":
            self._runs.add(entry.run_sha256)
        elif entry.what in ("refused", "withdrawn"):
            self._refusals.add((entry.update_id or entry.run_sha256, entry.code))
        self.quotas.note(entry, len(line) + 1, new=new, live=live)

    def of(self, what: EntryType) -> Iterator[Entry]:
        return iter(self._of.get(what, ()))

    def updates(self, update_id: str) -> list[Entry]:
        """Return the entries of an update: one for each time that it was sent."""
        return self._updates.get(update_id, [])

    def evaluations(self, run_sha256: str) -> list[Entry]:
        """Return the entries of the evaluation at the end of a run: one for each time that it was sent."""
        return self._evaluations.get(run_sha256, [])

    def calibrations(self, run_sha256: str, *, sums: bool) -> list[Entry]:
        """Return the entries of a calibration's first step (``sums``) or second: one for each time that it was sent."""
        return [entry for entry in self._calibrations.get(run_sha256, []) if _is_sums(entry) == sums]

    def took_part(self, run_sha256: str) -> bool:
        """Return whether an update of this run left."""
        return run_sha256 in self._runs

    def has_refusal(self, of: str, code: str) -> bool:
        """Return whether a refusal of an update (by its identifier) or a run (by its hash) is entered."""
        return (of, code) in self._refusals

    def spends(self) -> dict[str, Spend]:
        """Return the privacy spent, by update and payload: the same update sent again costs nothing more.

        Equal payloads of two updates are two answers: a coordinator can choose weights and a learning rate with which
        an update has two values only.
        """
        updates = (entry for entry in self.of("update") if entry.privacy is not None)
        return {f"{entry.update_id}/{entry.sha256}": entry.privacy for entry in updates if entry.privacy is not None}


def _is_sums(entry: Entry) -> bool:
    return entry.counted is not None and entry.counted.temperature == 0


def read_ledger(state: Path) -> LedgerContent:
    """Read the ledger in a state folder and check it line by line; without a file it is empty.

    Raises StorageError, and DataError (``not_a_file``) for anything but a regular file in its place.
    """
    noted, content = _noted_head(state), LedgerContent()  # the head first: lines that a daemon adds come after it
    reader = _Reader(content, noted)
    path = state / LEDGER_FILE
    if os.path.lexists(path):
        with open_regular(path) as file, io.BufferedReader(cast("io.RawIOBase", file), MAX_LINE) as lines:
            try:
                reader.read(cast("BinaryIO", lines))
            except OSError as error:
                raise StorageError(
                    f"cannot read {path}: {error.strerror}",
                    fix="check that this user may read it; flamest-agent runs as the owner of the state folder",
                ) from error
    if len(content.problems) < MAX_PROBLEMS and (head_problem := reader.head_problem()) is not None:
        content.problems.append(head_problem)
    return content


def _noted_head(state: Path) -> tuple[str, str] | str | None:
    """Return number and hash of the last line as the head file has them, a problem, or None without a file."""
    path = state / HEAD_FILE
    if not os.path.lexists(path):
        return None
    try:
        count, head = read_regular(path, largest=HEAD_BYTES).decode("ascii").split()
    except (DataError, StorageError, ValueError):
        return f"{HEAD_FILE} cannot be read"
    return printable(count), head


class _Reader:
    """Fills a ``LedgerContent``, and stops at a file that is no ledger."""

    def __init__(self, content: LedgerContent, noted: tuple[str, str] | str | None) -> None:
        self._content = content
        self._noted = noted
        self._found = isinstance(noted, tuple) and noted[1] == BEFORE_FIRST
        self._unreadable = 0  # bytes

    def read(self, lines: BinaryIO) -> None:
        content, number = self._content, 0
        while (raw := lines.readline(MAX_LINE + 2)) and len(content.problems) < MAX_PROBLEMS:
            number += 1
            content.mid_line = not raw.endswith(b"\n")
            line = raw.removesuffix(b"\n")
            if len(line) > MAX_LINE:
                content.problems.append(f"line {number} is longer than {MAX_LINE} bytes")
                return
            try:
                self._take(number, decode_entry(line), line)
            except (msgspec.ValidationError, RecursionError) as error:
                content.problems.append(f"line {number} is not an entry: {printable(str(error))[:200]}")
            except (msgspec.DecodeError, UnicodeDecodeError):
                content.cut_short += 1
                self._unreadable += max(len(raw), 100)
                if self._unreadable > MAX_UNREADABLE:
                    content.problems.append(f"{content.cut_short} lines are no JSON, more than a full disk leaves")
                    return

    def _take(self, number: int, entry: Entry, line: bytes) -> None:
        content = self._content
        if entry.n != len(content.entries) + 1 or entry.previous != content.head:
            content.problems.append(
                f"line {number} (entry {entry.n}) does not follow the one before it: lines were changed or removed"
            )
        content.add(entry, line, live=False)
        if isinstance(self._noted, tuple) and self._noted[1] == content.head:
            self._found = True

    def head_problem(self) -> str | None:
        """Return the problem when the line that the head file names is gone."""
        noted, there = self._noted, len(self._content.entries)
        if noted is None:
            return None if there <= 1 else f"{HEAD_FILE} is missing"  # a crash at the first line leaves none
        if isinstance(noted, str):
            return noted
        if self._found:
            return None
        return f"the ledger had {noted[0]} entries, and entry {noted[0]} is not among the {there} that are there"


def ledger_error(state: Path, content: LedgerContent) -> DataError:
    """Return the error for a ledger with problems."""
    return DataError(
        f"the egress ledger {state / LEDGER_FILE} is broken: {'; '.join(content.problems[:3])}. Nothing is sent until "
        "someone has checked it",
        fix=f"find out who changed it; then move {LEDGER_FILE} and {HEAD_FILE} elsewhere, and a new ledger begins "
        "(with a new privacy budget)",
        code="ledger_broken",
    )


@dataclass(eq=False)
class Ledger:
    """A ledger to append to; by one process at a time (the daemon, under the lock of its state folder)."""

    state: Path
    content: LedgerContent  # up to date after every line
    now: Callable[[], str] = utc_text
    _failed: bool = False  # the last line may be there or not

    @classmethod
    def open(cls, state: Path, *, now: Callable[[], str] = utc_text) -> Ledger:
        """Read and check the ledger in the folder ``state``. Raises DataError (``ledger_broken``, ``not_a_file``),
        StorageError.

        A broken ledger is one whose lines were changed or removed: nothing more is sent then.
        """
        return cls(state, _intact(state), now)

    def require_room(self, size: int = RESERVED) -> None:
        """Raise PolicyRefused (``too_many_messages``) when a message with a line of ``size`` bytes may not leave now.

        Asked before work is done for the message, and again before its line is written.
        """
        if not self.content.quotas.has_room(size, self.now()):
            raise PolicyRefused(
                "this silo has sent, or was asked for, more messages than any honest run needs: nothing is sent until "
                "time has passed. Ask the coordinator's operator why rounds or runs are repeated",
                reason="too_many_messages",
            )

    def append(self, what: EntryType, **fields: Any) -> Entry:
        """Write a line; durable when it returns.

        Raises StorageError, DataError (``not_recordable``, and ``ledger_broken`` after a failure) or, for updates,
        evaluations and calibrations, PolicyRefused (``too_many_messages``): the line's message must not be sent then.
        """
        if self._failed:
            self.content, self._failed = _intact(self.state), False
        content = self.content
        entry = Entry(len(content.entries) + 1, self.now(), what, content.head, **fields)
        line = encode_entry(entry)
        if what in ("update", "evaluation", "calibration"):
            self.require_room(len(line) + 1)
        path = self.state / LEDGER_FILE
        try:
            self._write(path, (b"\n" if content.mid_line else b"") + line + b"\n")
        except OSError as error:
            self._failed = True
            raise StorageError(
                f"cannot write {path}: {error.strerror}; what is not in the ledger is not sent",
                fix="check free space and permissions of the state folder",
                code=storage_code(error),
            ) from error
        content.mid_line = False
        content.add(entry, line, live=True)
        write_atomic(self.state / HEAD_FILE, f"{entry.n} {content.head}\n".encode(), mode=0o600)
        return entry

    def refuse(self, what: EntryType, of: str, code: str, **fields: Any) -> bool:
        """Enter a refusal, once for the update or run ``of``; False: it is entered already, or there are too many.

        A coordinator can cause refusals without end: beyond their share of the ledger one line an hour says so.
        """
        quotas, now = self.content.quotas, self.now()
        if self.content.has_refusal(of, code) and code != "too_many_messages":
            return False
        allowed = quotas.may_warn(now) if code == "too_many_messages" else quotas.has_room(RESERVED, now, refusal=True)
        if allowed:
            self.append(what, code=code, **fields)
        elif quotas.may_warn(now):
            self.append(
                "refused", code="too_many_messages", detail="more refusals than the ledger has room for are not entered"
            )
        return allowed

    def _write(self, path: Path, data: bytes) -> None:
        is_new = not path.exists()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        handle = os.open(path, flags, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OSError(0, "not a regular file")
            while data:
                data = data[os.write(handle, data) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        if is_new:
            fsync_directory(path.parent)


def _intact(state: Path) -> LedgerContent:
    content = read_ledger(state)
    if content.problems:
        raise ledger_error(state, content)
    return content
