"""The egress ledger: one line for everything that leaves this silo for the coordinator, and for what was refused.

    STATE/egress.jsonl      JSON Lines, only ever added to
    STATE/egress.head       number and hash of the last line: lines removed at the end are noticed

A line is on disk (fsync) BEFORE its message is sent: a crash between the two leaves one line too many, never one too
few. Every line holds the hash of the line before, so that a changed or removed line is found. Whoever may write here
can write a whole new ledger: compare with the head's hash, noted elsewhere.

A line that a crash or a full disk cut short stays in the file: nothing was sent for it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from ...base.clock import utc_text
from ...base.errors import DataError, StorageError
from ...base.files import fsync_directory, storage_code, write_atomic
from .accountant import Spend

LEDGER_FILE = "egress.jsonl"
HEAD_FILE = "egress.head"
BEFORE_FIRST = "0" * 64

EntryType = Literal["enrolment", "policy", "update", "evaluation", "refused", "withdrawn"]


class TensorSent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str  # of the head's tensor
    shape: tuple[int, ...]
    dtype: str  # of its values on the wire


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One line."""

    n: int  # from 1
    time: str  # UTC
    what: EntryType
    previous: str  # SHA-256 of the line before
    run: str = ""
    round: int = 0
    update_id: str = ""
    examples: int = 0  # clips that an update was trained on, as reported to the coordinator
    tensors: tuple[TensorSent, ...] = ()
    codec: str = ""
    bytes: int = 0  # of the messages: the header and the values; TLS and HTTP/2 come on top
    sha256: str = ""  # of the values as sent; of a certificate
    header_sha256: str = ""  # of the message before the values: counts, digests, evaluation
    reported: dict[
        str, float
    ] = {}  # of an evaluation: loss, correct, count, and the number of classes reported one by one
    models: int = 0  # what: evaluation; number of models evaluated
    shared: bool = False  # other silos may evaluate the update
    policy_sha256: str = ""  # of the policy that an update was sent under
    privacy: Spend | None = None  # record-dp: privacy spent by the update's training
    policy: dict[str, Any] = {}  # what: policy
    overrides: tuple[str, ...] = ()  # where the policy is weaker than FLAMeST's default
    code: str = ""  # of a refusal
    detail: str = ""  # for people


@dataclass(frozen=True)
class LedgerContent:
    """The entries of a ledger's file, and the problems found in it."""

    entries: tuple[Entry, ...]
    head: str  # SHA-256 of the last line
    problems: tuple[str, ...]  # changes that no crash explains; empty: the chain is intact
    cut_short: int = 0  # lines that a crash interrupted

    def of(self, what: EntryType) -> Iterator[Entry]:
        return (entry for entry in self.entries if entry.what == what)

    def spends(self) -> dict[str, Spend]:
        """Return the privacy spent, by the payload's hash: the same payload sent again costs nothing more."""
        return {entry.sha256: entry.privacy for entry in self.of("update") if entry.privacy is not None}


def read_ledger(state: Path) -> LedgerContent:
    """Read the ledger in a state folder and check it line by line; without a file it is empty. Raises StorageError."""
    try:
        raw = (state / LEDGER_FILE).read_bytes()
    except FileNotFoundError:
        raw = b""
    except OSError as error:
        raise StorageError(f"cannot read {state / LEDGER_FILE}: {error.strerror}") from error
    entries: list[Entry] = []
    hashes, problems, cut_short = [BEFORE_FIRST], list[str](), 0
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if not line:
            continue
        try:
            entry = msgspec.json.decode(line, type=Entry)
        except msgspec.ValidationError as error:
            problems.append(f"line {number} is not an entry: {error}")
            continue
        except msgspec.DecodeError:
            cut_short += 1
            continue
        if entry.n != len(entries) + 1 or entry.previous != hashes[-1]:
            problems.append(
                f"line {number} (entry {entry.n}) does not follow the one before it: lines were changed or removed"
            )
        entries.append(entry)
        hashes.append(hashlib.sha256(line).hexdigest())
    if (head_problem := _head_problem(state, hashes)) is not None:
        problems.append(head_problem)
    return LedgerContent(tuple(entries), hashes[-1], tuple(problems), cut_short)


def _head_problem(state: Path, hashes: list[str]) -> str | None:
    """Return the problem when the line that the head file names is gone."""
    try:
        count, head = (state / HEAD_FILE).read_text().split()
    except FileNotFoundError:
        return None if len(hashes) <= 2 else f"{HEAD_FILE} is missing"  # a crash at the first line leaves none
    except (OSError, ValueError):
        return f"{HEAD_FILE} cannot be read"
    if head in hashes:
        return None
    return f"the ledger had {count} entries, and entry {count} is not among the {len(hashes) - 1} that are there"


def ledger_error(state: Path, content: LedgerContent) -> DataError:
    """Return the error for a ledger with problems."""
    return DataError(
        f"the egress ledger {state / LEDGER_FILE} is broken: {'; '.join(content.problems[:3])}. Nothing is sent until "
        "someone has checked it",
        fix=f"find out who changed it; then move {LEDGER_FILE} and {HEAD_FILE} elsewhere, and a new ledger begins "
        "(with a new privacy budget)",
        code="ledger_broken",
    )


def _ends_mid_line(path: Path) -> bool:
    """True when the file's last line has no end, because a crash or a full disk cut it short."""
    try:
        return path.read_bytes()[-1:] not in (b"", b"\n")
    except FileNotFoundError:
        return False


@dataclass(eq=False)
class Ledger:
    """A ledger to append to; by one process at a time (the daemon, under the lock of its state folder)."""

    state: Path
    content: LedgerContent  # up to date after every line
    now: Callable[[], str] = utc_text
    _mid_line: bool = False  # the file ends in the middle of a line
    _failed: bool = False  # the last line may be there or not

    @classmethod
    def open(cls, state: Path, *, now: Callable[[], str] = utc_text) -> Ledger:
        """Read and check the ledger in the folder ``state``. Raises DataError (``ledger_broken``), StorageError.

        A broken ledger is one whose lines were changed or removed: nothing more is sent then.
        """
        content = read_ledger(state)
        if content.problems:
            raise ledger_error(state, content)
        return cls(state, content, now, _mid_line=_ends_mid_line(state / LEDGER_FILE))

    def append(self, what: EntryType, **fields: Any) -> Entry:
        """Write a line; durable when it returns. Raises StorageError: the line's message must not be sent then."""
        if self._failed:
            self.content, self._mid_line = read_ledger(self.state), _ends_mid_line(self.state / LEDGER_FILE)
            self._failed = False
        before = self.content
        entry = Entry(len(before.entries) + 1, self.now(), what, before.head, **fields)
        line = msgspec.json.encode(entry)
        head = hashlib.sha256(line).hexdigest()
        path = self.state / LEDGER_FILE
        try:
            self._write(path, (b"\n" if self._mid_line else b"") + line + b"\n")
        except OSError as error:
            self._failed = True
            raise StorageError(
                f"cannot write {path}: {error.strerror}; what is not in the ledger is not sent",
                fix="check free space and permissions of the state folder",
                code=storage_code(error),
            ) from error
        self._mid_line = False
        self.content = LedgerContent((*before.entries, entry), head, (), before.cut_short)
        write_atomic(self.state / HEAD_FILE, f"{entry.n} {head}\n".encode(), mode=0o600)
        return entry

    def _write(self, path: Path, data: bytes) -> None:
        is_new = not path.exists()
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while data:
                data = data[os.write(handle, data) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        if is_new:
            fsync_directory(path.parent)
