"""The payload of an update during its upload: written to disk piece by piece, so that memory stays flat."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ...base.errors import DataError, StorageError
from ...base.files import storage_code

SPARE = "spare."


def keep_spare(path: Path, folder: Path) -> None:
    """Keep a payload that is not needed any more, for the next upload to overwrite. Raises OSError.

    Overwriting allocated blocks takes half the time of a new file. The old content is gone with the next upload, at the
    end of the run or at the coordinator's next start, whichever is first.
    """
    os.replace(path, folder / (SPARE + path.name))


def remove_any(path: Path) -> None:
    """Remove what is at ``path``, a folder with its content too. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_spares(folder: Path) -> None:
    """Remove every file that ``keep_spare`` kept."""
    for path in folder.glob(SPARE + "*"):
        remove_any(path)


def _new_file(folder: Path) -> tuple[BinaryIO, Path]:
    """Open a file to write from its beginning: a spare one under a new name, or an empty one."""
    for spare in folder.glob(SPARE + "*"):
        path = folder / f"upload.{secrets.token_hex(8)}.tmp"
        with contextlib.suppress(FileNotFoundError):  # another upload took it
            os.replace(spare, path)
            return path.open("r+b", buffering=0), path
    handle, name = tempfile.mkstemp(prefix="upload.", suffix=".tmp", dir=folder)
    return os.fdopen(handle, "wb", buffering=0), Path(name)


class Spool:
    """A file for one upload: ``feed`` its pieces, ``finish``, ``move_to`` its final place, ``discard``.

    ``expected``: the payload's size in bytes; more is refused as soon as it arrives. The methods may be
    called from different threads, so that an upload can be discarded whenever its silo disconnects.
    """

    def __init__(self, folder: Path, expected: int) -> None:
        self._expected = expected
        self._size = 0
        self._digest = hashlib.sha256()
        self._lock = threading.Lock()
        try:
            self._file, path = _new_file(folder)
        except OSError as error:
            raise StorageError(f"cannot write to {folder}: {error.strerror}", code=storage_code(error)) from error
        self._path: Path | None = path

    def feed(self, data: bytes | memoryview) -> None:
        """Append a piece. Raises DataError (``payload_size``), StorageError."""
        with self._lock:
            if self._size + len(data) > self._expected:
                raise DataError(f"payload of more than {self._expected} bytes", code="payload_size")
            view = memoryview(data)
            with self._storage_errors():
                while view:
                    view = view[self._file.write(view) :]
            self._digest.update(data)
            self._size += len(data)

    def finish(self, sha256: str | None = None) -> str:
        """Check the size, and the digest where one was announced; make the content durable; return its SHA-256.

        Raises DataError (``payload_size``; ``payload_digest`` when bytes were changed on the way).
        """
        with self._lock:
            if self._size != self._expected:
                raise DataError(f"payload of {self._size} bytes, expected {self._expected}", code="payload_size")
            found = self._digest.hexdigest()
            if sha256 is not None and found != sha256:
                raise DataError(f"payload does not have the digest {sha256[:12]}… of its header", code="payload_digest")
            with self._storage_errors():
                if os.fstat(self._file.fileno()).st_size != self._size:  # a longer spare file
                    self._file.truncate(self._size)
                os.fsync(self._file.fileno())
            return found

    def content(self) -> bytes:
        """Return what has been written, read back from the file. Raises StorageError."""
        with self._lock, self._storage_errors():
            return self._file_path.read_bytes()

    def move_to(self, path: Path) -> None:
        """Give the file its final name. Raises OSError."""
        with self._lock:
            os.replace(self._file_path, path)
            self._path = None

    def discard(self) -> None:
        """Close, and remove the file unless it has its final name."""
        with self._lock:
            self._file.close()
            if self._path is not None:
                with contextlib.suppress(OSError):
                    self._path.unlink(missing_ok=True)
                self._path = None

    @property
    def _file_path(self) -> Path:
        if self._path is None:
            raise StorageError("the upload was discarded")
        return self._path

    @contextlib.contextmanager
    def _storage_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"cannot write {self._path}: {error.strerror}", code=storage_code(error)) from error
        except ValueError as error:  # closed by another thread
            raise StorageError("the upload was discarded") from error
