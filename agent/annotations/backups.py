"""Copies of a ``labels.csv`` as it was before it is changed."""

from __future__ import annotations

import os
from pathlib import Path

from ...base.file_access import Access
from ...base.files import write_atomic
from ..extraction.labels_table import LABELS_FILE

BACKUP_FILE = f"{LABELS_FILE}.bak"


def write_backup(folder: Path, content: bytes, access: Access) -> None:
    """Write ``labels.csv.bak``, which the next writer replaces. Raises StorageError."""
    write_atomic(folder / BACKUP_FILE, content, access=access)


def write_numbered_backup(folder: Path, content: bytes, access: Access) -> Path:
    """Write the first ``labels.csv.bak.NUMBER`` that is not there, unless the last one has this content; return it.

    Nothing writes over it. Raises StorageError.
    """
    number, last = 1, None
    while os.path.lexists(path := folder / f"{BACKUP_FILE}.{number}"):
        number, last = number + 1, path
    if last is not None and _has(last, content):
        return last
    write_atomic(path, content, access=access)
    return path


def _has(path: Path, content: bytes) -> bool:
    try:
        plain = path.is_file() and not path.is_symlink() and path.stat().st_size == len(content)
        return plain and path.read_bytes() == content
    except OSError:
        return False
