"""A bundle's folder, held open: its files are found by descriptor and used as private copies.

A path may lead elsewhere a moment later, and a file may be written to while it is used. So the folder is opened once
and every file is looked up in it, without links; a file that a library wants to open itself is copied into sealed
memory first, and hashed on the way (docs/decisions/011-what-was-hashed-is-what-is-opened.md).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from ...base.errors import DataError, StorageError
from ...base.files import HASH_CHUNK, Stopped, open_regular, printable_path, storage_code
from .manifest import FileEntry
from .manifest_reading import no_bundle_error, tampered_error

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_MAX_DEPTH, _MAX_FOLDERS = 8, 100  # folders inside each other, and in all


class BundleFolder:
    """The folder that ``path`` leads to now; it stays the same one whatever the path leads to later.

    ``stop`` is asked for every MiB that is read; when it returns True, Stopped is raised.
    """

    def __init__(self, path: Path, stop: Callable[[], bool] = lambda: False) -> None:
        """Raises DataError when there is no such folder."""
        self.path = path
        self._stop = stop
        try:
            self._handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            reason = "no such folder" if isinstance(error, ValueError) else (error.strerror or str(error))
            raise no_bundle_error(path, reason) from error
        weakref.finalize(self, os.close, self._handle)

    def holds(self, name: str) -> bool:
        """True when the folder has an entry ``name``, of whatever kind."""
        try:
            os.stat(name, dir_fd=self._handle, follow_symlinks=False)
        except OSError:
            return False
        return True

    def read(self, name: str, longest: int) -> bytes:
        """The content of a plain file of at most ``longest`` bytes."""
        data = bytearray()
        for chunk in self._chunks(name, longest):
            data += chunk
        return bytes(data)

    def read_listed(self, name: str, entry: FileEntry) -> bytes:
        """The content of a file of the manifest, hashed as it is read."""
        data = bytearray()
        self._check(name, entry, data.extend)
        return bytes(data)

    def verify(self, name: str, entry: FileEntry) -> None:
        """Raise DataError unless the file is the manifest's."""
        self._check(name, entry, lambda chunk: None)

    @contextlib.contextmanager
    def private_copy(self, name: str, entry: FileEntry) -> Iterator[Path]:
        """A path to a copy of the file that nobody can change, for a library that opens files itself.

        The copy is memory of this process, sealed and hashed as it was read; the path is this process's alone.
        """
        copy = os.memfd_create("flamest-bundle-file", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with os.fdopen(copy, "wb", buffering=0, closefd=False) as file:
                self._check(name, entry, lambda chunk: _write_all(file, chunk))
            fcntl.fcntl(copy, fcntl.F_ADD_SEALS, _SEALS)
            yield Path(f"/proc/self/fd/{copy}")
        finally:
            os.close(copy)

    def check_listing(self, expected: frozenset[str], optional: frozenset[str]) -> None:
        """Allow the ``expected`` and ``optional`` files, nothing else, and no links. Reads no further than the first
        that is too many."""
        found, folders = set(), 0
        for name, mode in self._walk(self._handle, "", 0):
            if stat.S_ISDIR(mode):
                folders += 1
                if folders > _MAX_FOLDERS:
                    raise self.tampered(name, f"is a folder after {_MAX_FOLDERS} others")
                continue
            if not stat.S_ISREG(mode):
                raise self.tampered(name, "is a link or a special file, expected a plain one")
            if name not in expected and name not in optional:
                raise self.tampered(name, "is not in the manifest")
            found.add(name)
        for name in sorted(expected - found):
            raise self.tampered(name, "is missing")

    def tampered(self, name: str, problem: str) -> DataError:
        """The error of a file that is not as exported."""
        return tampered_error(self.path, name, problem)

    def _check(self, name: str, entry: FileEntry, use: Callable[[bytes], object]) -> None:
        """Call ``use`` with every chunk of the file; raise DataError at its end unless it is the manifest's."""
        digest, size = hashlib.sha256(), 0
        for chunk in self._chunks(name, entry.bytes):
            digest.update(chunk)
            size += len(chunk)
            use(chunk)
        if (size, digest.hexdigest()) != (entry.bytes, entry.sha256):
            found = f"has {size} bytes and SHA-256 {digest.hexdigest()[:12]}…"
            raise self.tampered(name, f"{found}, not those of the manifest")

    def _chunks(self, name: str, longest: int) -> Iterator[bytes]:
        with self._open(name, longest) as file:
            size = 0
            try:
                while chunk := file.read(HASH_CHUNK):
                    if self._stop():
                        raise Stopped
                    size += len(chunk)
                    if size > longest:
                        raise self.tampered(name, f"is longer than {longest} bytes")
                    yield chunk
            except OSError as error:
                raise self._unreadable(name, error) from error

    def _open(self, name: str, longest: int) -> BinaryIO:
        """Open a file that is no link, no pipe, and has no second name through which it could be written."""
        *folders, last = name.split("/")
        with contextlib.ExitStack() as opened:
            here = self._handle
            for folder in folders:
                here = self._open_folder(name, folder, here)
                opened.callback(os.close, here)
            try:
                file = open_regular(last, follow=False, folder=here)
            except DataError as error:
                raise self.tampered(name, "is a link, a special file or a folder, expected a plain one") from error
            except StorageError as error:
                if isinstance(error.__cause__, FileNotFoundError):
                    raise self.tampered(name, "is missing") from error
                raise StorageError(
                    f"cannot read {printable_path(self.path / name)}: {error.message}",
                    fix="check that this user may read it, or copy the bundle again",
                ) from error
        status = os.fstat(file.fileno())
        problem = ""
        if status.st_nlink != 1:
            problem = f"is a hard link, the same file has {status.st_nlink} names: expected a copy of its own (cp -r)"
        elif status.st_size > longest:
            problem = f"has {status.st_size} bytes, expected at most {longest}"
        if problem:
            file.close()
            raise self.tampered(name, problem)
        return file

    def _open_folder(self, name: str, folder: str, inside: int) -> int:
        try:
            return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=inside)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.ENOENT):
                raise self.tampered(name, "is not in a plain folder of the bundle") from error
            raise self._unreadable(name, error) from error

    def _walk(self, handle: int, inside: str, depth: int) -> Iterator[tuple[str, int]]:
        """Name and mode of everything in the folder, and in the folders inside it."""
        if depth > _MAX_DEPTH:
            raise self.tampered(inside, f"is a folder more than {_MAX_DEPTH} folders deep")
        with os.scandir(handle) as entries:
            for entry in entries:
                name = f"{inside}{entry.name}"
                try:
                    mode = entry.stat(follow_symlinks=False).st_mode
                except FileNotFoundError:
                    continue
                yield name, mode
                if not stat.S_ISDIR(mode):
                    continue
                folder = self._open_folder(name, entry.name, handle)
                try:
                    yield from self._walk(folder, f"{name}/", depth + 1)
                finally:
                    os.close(folder)

    def _unreadable(self, name: str, error: OSError) -> StorageError:
        return StorageError(
            f"cannot read {printable_path(self.path / name)}: {error.strerror}",
            fix="check that this user may read it, or copy the bundle again",
            code=storage_code(error),
        )


def _write_all(file: BinaryIO, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[file.write(view) :]
