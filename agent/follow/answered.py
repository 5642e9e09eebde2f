"""Videos that were answered, and the events that are being written, in one SQLite file.

A video is known by its content: a renamed or copied one is not answered again, a file with new content is. Events that
are about to be appended to a file are kept here first, with where they begin in it, so that after a crash it is known
whether they are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...base.errors import DataError, SettingsError
from ...base.sqlite import Schema, SchemaFault, open_for_writing, translated_errors

if TYPE_CHECKING:
    from apsw import Connection

_ANOTHER = "use another file (--answered FILE); with an empty one all videos of the folder are answered again"
SCHEMA = Schema(
    kind="record of answered videos",
    extra="agent",
    tables="""
CREATE TABLE answered (sha256 TEXT PRIMARY KEY) STRICT;
CREATE TABLE files (name TEXT PRIMARY KEY, stamp TEXT NOT NULL, sha256 TEXT NOT NULL) STRICT;
CREATE TABLE pending (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    name TEXT NOT NULL,
    stamp TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    inode INTEGER NOT NULL,
    start INTEGER NOT NULL,
    data BLOB NOT NULL
) STRICT;
""",
    first_version=1,
    damaged=SchemaFault(DataError, "answered_damaged", _ANOTHER),
    older=SchemaFault(SettingsError, "answered_version", _ANOTHER),
    newer=SchemaFault(SettingsError, "answered_version", "install the newer flamest again, or " + _ANOTHER),
    foreign=SchemaFault(SettingsError, "not_answered_videos", _ANOTHER),
    application_id=0x464C414E,
)


class FileContent(NamedTuple):
    """A file of the folder, and what it held."""

    name: str  # relative to the folder
    stamp: str  # inode, size and time of change
    sha256: str


class Pending(NamedTuple):
    """Events of a video on their way into a file."""

    file: FileContent
    inode: int  # of the file that they go into; 0 for stdout
    start: int  # where they begin in it, bytes
    data: bytes


class AnsweredVideos:
    """The record; one process writes it. Every method raises StorageError when the disk is full or fails."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: Connection = open_for_writing(path, SCHEMA)
        rows = self._rows("SELECT name, stamp FROM files")
        self._stamps: dict[str, str] = {str(name): str(stamp) for name, stamp in rows}

    def is_known(self, name: str, stamp: str) -> bool:
        """Return whether this file was answered as it is now."""
        return self._stamps.get(name) == stamp

    def has(self, sha256: str) -> bool:
        """Return whether a video with this content was answered."""
        return bool(self._rows("SELECT 1 FROM answered WHERE sha256 = ?", (sha256,)))

    def note(self, file: FileContent) -> None:
        """Note that this file holds a content that was answered."""
        with translated_errors(self._path, SCHEMA), self._connection:
            self._insert(file)
        self._stamps[file.name] = file.stamp

    def begin(self, pending: Pending) -> None:
        """Keep events that are about to be written."""
        file = pending.file
        values = (1, file.name, file.stamp, file.sha256, pending.inode, pending.start, pending.data)
        self._rows("INSERT OR REPLACE INTO pending VALUES (?, ?, ?, ?, ?, ?, ?)", values)

    def pending(self) -> Pending | None:
        """Return the events that were about to be written, and may be or not."""
        rows = self._rows("SELECT name, stamp, sha256, inode, start, data FROM pending")
        if not rows:
            return None
        name, stamp, sha256, inode, start, data = rows[0]
        return Pending(FileContent(str(name), str(stamp), str(sha256)), int(inode), int(start), bytes(data))

    def finish(self, file: FileContent) -> None:
        """Note that the video's events are written."""
        with translated_errors(self._path, SCHEMA), self._connection:
            self._insert(file)
            self._connection.execute("DELETE FROM pending")
        self._stamps[file.name] = file.stamp

    def close(self) -> None:
        self._connection.close()

    def _insert(self, file: FileContent) -> None:
        self._connection.execute("INSERT OR IGNORE INTO answered VALUES (?)", (file.sha256,))
        self._connection.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", file)

    def _rows(self, sql: str, values: Sequence[str | int | bytes] = ()) -> list[tuple[Any, ...]]:
        with translated_errors(self._path, SCHEMA):
            return list(self._connection.execute(sql, values))
