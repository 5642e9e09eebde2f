"""The silos that have asked for work, and those that declined a round, in a file next to the state for `status`.

A silo declines a round by asking for the next one (docs/reference/wire.md). It gives no reason: nothing that a silo
sends has a text. But the operator sees that it is there, and that the reason is at the silo.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from ...base.errors import DataError, StorageError
from ...base.files import read_regular, write_atomic

ATTENDANCE_FILE = "attendance.json"
MAX_ATTENDANCE = 16 << 20  # bytes; a silo has about 100


class Attendance(msgspec.Struct, frozen=True):
    """Silos that asked for work, or declined it, since the server started."""

    run: str = ""
    seen: tuple[str, ...] = ()  # asked for work, ascending
    declined: dict[str, int] = {}  # by silo: the last round that it declined


def write_attendance(state: Path, attendance: Attendance) -> None:
    """Write it; never raises: it is for people, and no round waits for it."""
    with contextlib.suppress(StorageError, OSError):
        write_atomic(state / ATTENDANCE_FILE, msgspec.json.encode(attendance, order="sorted") + b"\n")


def read_attendance(state: Path, run: str) -> Attendance | None:
    """Return what the server wrote last about this run; None where there is nothing to read."""
    try:
        found = msgspec.json.decode(read_regular(state / ATTENDANCE_FILE, largest=MAX_ATTENDANCE), type=Attendance)
    except (DataError, StorageError, ValueError, RecursionError):
        return None
    return found if found.run == run else None
