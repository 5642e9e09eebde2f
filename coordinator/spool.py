"""An update's payload on its way in: written to disk piece by piece, so that memory stays flat."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from ..base.errors import DataError, StorageError
from ..base.files import storage_code

T = TypeVar("T")


class Spool:
    """A file that one upload fills: ``feed`` its pieces, ``finish``, ``move_to`` where it stays, ``discard``.

    ``expected``: the payload's size in bytes; more is refused as soon as it comes. The methods may be
    called from different threads, so that a caller who hangs up can be cleaned up after at any time.
    """

    def __init__(self, folder: Path, expected: int) -> None:
        self._expected = expected
        self._size = 0
        self._digest = hashlib.sha256()
        self._lock = threading.Lock()
        try:
            handle, name = tempfile.mkstemp(prefix="upload.", suffix=".tmp", dir=folder)
        except OSError as error:
            raise StorageError(f"cannot write to {folder}: {error.strerror}", code=storage_code(error)) from error
        self._file = os.fdopen(handle, "wb", buffering=0)
        self._path: Path | None = Path(name)

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

    def finish(self, sha256: str) -> None:
        """Check size and digest, and make the content durable.

        Raises DataError (``payload_size``; ``payload_digest`` when bytes were changed on the way).
        """
        with self._lock:
            if self._size != self._expected:
                raise DataError(f"payload of {self._size} bytes, expected {self._expected}", code="payload_size")
            if self._digest.hexdigest() != sha256:
                raise DataError(f"payload has not the digest {sha256[:12]}… of its header", code="payload_digest")
            with self._storage_errors():
                os.fsync(self._file.fileno())

    def content(self) -> bytes:
        """What has been written, as read from the file. Raises StorageError."""
        with self._lock, self._storage_errors():
            return self._file_path.read_bytes()

    def read(self, work: Callable[[BinaryIO], T]) -> T:
        """What ``work`` makes of the content. Raises StorageError."""
        with self._lock, self._storage_errors(), self._file_path.open("rb") as file:
            return work(file)

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
            raise StorageError("the upload was given up")
        return self._path

    @contextlib.contextmanager
    def _storage_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"cannot write {self._path}: {error.strerror}", code=storage_code(error)) from error
        except ValueError as error:  # closed meanwhile
            raise StorageError("the upload was given up") from error
