"""Files of the state folder that are not what was written: their error, and the folder where they are kept."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ...base.errors import DataError, StorageError
from ...base.files import fsync_directory, storage_code

DAMAGED_FOLDER = "quarantine"  # in the state folder
FIND_CAUSE = "find out what damages files on this disk"  # the beginning of a fix


def damaged_file_error(path: Path, why: str, *, code: str) -> DataError:
    """Return the error for a file that is not what was written."""
    return DataError(
        f"{path} is damaged: {why}", fix="restore the state folder from a backup; nothing was changed", code=code
    )


@contextlib.contextmanager
def reading(path: Path, *, code: str) -> Iterator[None]:
    """Raise a missing file inside the block as a damaged one (``code``), other OSErrors as StorageError."""
    try:
        yield
    except FileNotFoundError as error:
        raise damaged_file_error(path, "it is gone", code=code) from error
    except OSError as error:
        raise StorageError(
            f"cannot read {path}: {error.strerror}", fix="check that the server may read it", code=storage_code(error)
        ) from error


def keep_damaged(path: Path, target: Path) -> None:
    """Move ``path`` to ``target``, or next to it under a free name, for later inspection. Raises StorageError."""
    if not path.exists():
        return
    try:
        target.parent.mkdir(mode=0o700, exist_ok=True)
        free, number = target, 1
        while free.exists():
            number += 1
            free = target.with_name(f"{target.name}.{number}")
        os.replace(path, free)
        fsync_directory(path.parent)
        fsync_directory(target.parent)
    except OSError as error:
        raise StorageError(
            f"cannot move {path}: {error.strerror}",
            fix="check permissions of the state folder",
            code=storage_code(error),
        ) from error
