"""The health file: what keeps the running server from its work, in a file that can be written when the disk is full.

``STATE/health`` has a fixed size from the start and is overwritten in place: that needs no free block.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from ...base.clock import utc_text
from ...base.errors import DataError, FlamestError, StorageError
from ...base.files import read_regular, write_atomic

HEALTH_FILE = "health"
HEALTH_FILE_BYTES = 1024  # bytes


class Health(msgspec.Struct, frozen=True):
    """The server's health; ``degraded`` is the code of the problem (``disk_full``, ``storage``), empty without one."""

    degraded: str = ""
    detail: str = ""
    since: str = ""  # UTC


HEALTHY = Health()


def create_health_file(state: Path) -> None:
    """Write the file with no problem. Raises StorageError."""
    write_atomic(state / HEALTH_FILE, _padded(HEALTHY))


def write_health(state: Path, problem: FlamestError | None) -> None:
    """Write the problem, or None for no problem; never raises."""
    since = utc_text()
    health = HEALTHY if problem is None else Health(problem.code, problem.message[: HEALTH_FILE_BYTES // 8], since)
    with contextlib.suppress(OSError):
        handle = os.open(state / HEALTH_FILE, os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.pwrite(handle, _padded(health), 0)
        finally:
            os.close(handle)


def read_health(state: Path) -> Health:
    """Return the health that the server wrote last; healthy where there is nothing to read."""
    try:
        return msgspec.json.decode(read_regular(state / HEALTH_FILE, largest=HEALTH_FILE_BYTES).strip(), type=Health)
    except (DataError, StorageError, ValueError, RecursionError):
        return HEALTHY


def _padded(health: Health) -> bytes:
    return msgspec.json.encode(health).ljust(HEALTH_FILE_BYTES - 1) + b"\n"
