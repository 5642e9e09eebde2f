"""Events, appended to a file exactly once, or written to stdout at least once.

Into a file a video's lines go with one write, after they are kept in the record with the file's length. A process that
was killed in between finds them: whole, then they count as written; in part, then that part is removed and they are
written again. That holds as long as nothing else writes to the file; one that was moved away meanwhile (log rotation)
may have them twice. Stdout cannot be read back: a crash between writing and noting it repeats one video's events.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ...base.errors import StorageError
from ...base.files import open_regular, printable_path, storage_code
from .answered import AnsweredVideos, FileContent, Pending


class EventOutput:
    """``path``: the file to append to; None: stdout."""

    def __init__(self, path: Path | None, answered: AnsweredVideos) -> None:
        self._path, self._answered = path, answered

    def write(self, file: FileContent, data: bytes) -> None:
        """Write a video's events and note it. Raises StorageError; then ``recover`` before the next ``write``."""
        if self._path is None:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        else:
            self._append(self._path, file, data)
        self._answered.finish(file)

    def recover(self) -> None:
        """Finish a writing that was interrupted. Raises StorageError."""
        pending = self._answered.pending()
        if pending is None:
            return
        if self._path is None:  # they were for a file
            self.write(pending.file, pending.data)
            return
        if not self._is_written(self._path, pending):
            self._append(self._path, pending.file, pending.data)
        self._answered.finish(pending.file)

    def _append(self, path: Path, file: FileContent, data: bytes) -> None:
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
            try:
                status = os.fstat(handle)
                self._answered.begin(Pending(file, status.st_ino, status.st_size, data))
                _write_whole(handle, data, status.st_size)
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            raise StorageError(
                f"cannot append to {printable_path(path)}: {error.strerror}",
                fix="check free space and permissions; it is tried again",
                code=storage_code(error),
            ) from error

    def _is_written(self, path: Path, pending: Pending) -> bool:
        """Return whether the events are in the file; a part of them, at its end, is removed."""
        try:
            with open_regular(path) as file:
                status = os.fstat(file.fileno())
                if status.st_ino != pending.inode or status.st_size <= pending.start:
                    return False
                file.seek(pending.start)
                found = file.read(len(pending.data) + 1) or b""
            if found[: len(pending.data)] == pending.data:
                return True
            if pending.data.startswith(found):
                os.truncate(path, pending.start)
        except (OSError, StorageError):
            return False
        return False


def _write_whole(handle: int, data: bytes, start: int) -> None:
    """Write all of it, or nothing: a full disk leaves no part of a line."""
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(handle, left) :]
    except OSError:
        os.ftruncate(handle, start)
        raise
