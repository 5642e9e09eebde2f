"""Whether the running server can do its work, in a file that can be written when the disk is full.

``STATE/health`` has a fixed size from the start and is overwritten in place: that needs no free block.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from ...base.clock import utc_text
from ...base.errors import FlamestError
from ...base.files import write_atomic

FILE = "health"
SIZE = 1024  # bytes


class Health(msgspec.Struct, frozen=True):
    """``degraded`` is the code of what is wrong (``disk_full``, ``storage``), empty when nothing is."""

    degraded: str = ""
    detail: str = ""
    since: str = ""  # UTC


FINE = Health()


def begin(state: Path) -> None:
    """Make the file. Raises StorageError."""
    write_atomic(state / FILE, _padded(FINE))


def note(state: Path, problem: FlamestError | None) -> None:
    """Say what is wrong, or with None that all is well; never raises."""
    since = utc_text()
    health = FINE if problem is None else Health(problem.code, problem.message[: SIZE // 8], since)
    with contextlib.suppress(OSError):
        handle = os.open(state / FILE, os.O_WRONLY)
        try:
            os.pwrite(handle, _padded(health), 0)
        finally:
            os.close(handle)


def read_health(state: Path) -> Health:
    """What the server noted last; fine where there is nothing to read."""
    try:
        return msgspec.json.decode((state / FILE).read_bytes().strip(), type=Health)
    except (OSError, msgspec.DecodeError):
        return FINE


def _padded(health: Health) -> bytes:
    return msgspec.json.encode(health).ljust(SIZE - 1) + b"\n"
