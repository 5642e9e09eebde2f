"""Files that are opened safely, or appear whole or not at all; their hashes; locks between processes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import os
import shlex
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from .environment import CACHE_HOME
from .errors import DataError, LockedError, StorageError
from .file_access import Access

HASH_CHUNK = 1 << 20  # bytes read at a time while hashing


def sha256_bytes(data: bytes | bytearray | memoryview) -> str:
    """SHA-256 of ``data`` as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


class Stopped(Exception):
    """Long work was given up because its ``stop`` returned True. Not an error: the caller ends as it was asked to."""


def open_regular(
    path: str | Path,
    *,
    largest: int | None = None,
    follow: bool = True,
    folder: int | None = None,
    inside: Path | None = None,
) -> BinaryIO:
    """Open a regular file to read, never anything else: a FIFO or a device neither blocks nor answers.

    ``largest``: bytes, of the file as it is now; ``follow=False`` refuses a link at the end of the path; ``folder``: a
    folder's descriptor that a relative ``path`` starts from; ``inside``: the real path of a folder that the opened file
    must be in, wherever links led when it was opened. Raises StorageError when the file cannot be opened; DataError
    ``not_a_file`` for a folder, a link where none may be, a FIFO, a socket or a device, ``outside_folder``,
    ``too_large``.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | (0 if follow else os.O_NOFOLLOW)
    shown = printable_path(Path(path))
    try:
        handle = os.open(path, flags, dir_fd=folder)
    except ValueError as error:  # a NUL in the name, or a character that the file system cannot have
        raise DataError(
            f"{shown} cannot be a file's name", fix="use another name, without control characters", code="not_a_file"
        ) from error
    except OSError as error:
        if error.errno == errno.ENXIO or (error.errno == errno.ELOOP and not follow):
            raise _not_a_file(shown) from error
        raise StorageError(
            f"cannot read {shown}: {error.strerror}", fix="check the path, and that this user may read it"
        ) from error
    if inside is not None and not _is_inside(handle, inside):
        os.close(handle)
        raise DataError(
            f"{shown} leads to a place outside of the folder",
            fix="keep the file inside the folder, not a link to another place",
            code="outside_folder",
        )
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or (largest is not None and status.st_size > largest):
        os.close(handle)
        raise _too_large(shown, largest) if stat.S_ISREG(status.st_mode) else _not_a_file(shown)
    return os.fdopen(handle, "rb", buffering=0)


def _is_inside(handle: int, folder: Path) -> bool:
    """True when the open file is in ``folder``, a real path: the kernel says where it is, no name is followed again."""
    try:
        return folder in Path(os.readlink(f"/proc/self/fd/{handle}")).parents
    except OSError:
        return False


def read_regular(
    path: str | Path,
    *,
    largest: int,
    follow: bool = True,
    folder: int | None = None,
    inside: Path | None = None,
) -> bytes:
    """Return the content of a regular file of at most ``largest`` bytes, also of one that grows meanwhile.

    Opens it as ``open_regular`` does and raises the same.
    """
    with open_regular(path, largest=largest, follow=follow, folder=folder, inside=inside) as file:
        parts, size = [], 0
        wanted = os.fstat(file.fileno()).st_size + 1  # all of it at once, so that it is not copied
        try:
            while chunk := file.read(min(wanted, largest + 1 - size)):
                parts.append(chunk)
                size += len(chunk)
                wanted = max(wanted - len(chunk), HASH_CHUNK)
        except OSError as error:
            raise StorageError(
                f"cannot read {printable_path(Path(path))}: {error.strerror}",
                fix="try again; if it fails again, check the disk",
            ) from error
    if size > largest:
        raise _too_large(printable_path(Path(path)), largest)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def sha256_file(
    path: Path,
    *,
    largest: int | None = None,
    inside: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> str:
    """SHA-256 of a regular file's content as 64 lower-case hexadecimal digits.

    ``largest``: bytes; a larger file is refused before it is read, one that grows beyond while it is. ``stop`` is asked
    for every MiB: a command that handles signals passes it, so that a signal ends the hashing too. Raises Stopped, and
    as ``open_regular`` does.
    """
    digest = hashlib.sha256()
    size = 0
    with open_regular(path, largest=largest, inside=inside) as file:
        try:
            while chunk := file.read(HASH_CHUNK):
                if stop():
                    raise Stopped
                digest.update(chunk)
                size += len(chunk)
                if largest is not None and size > largest:
                    raise _too_large(printable_path(path), largest)
        except OSError as error:
            raise StorageError(
                f"cannot read {printable_path(path)}: {error.strerror}",
                fix="try again; if it fails again, check the disk",
            ) from error
    return digest.hexdigest()


def _not_a_file(shown: str) -> DataError:
    return DataError(
        f"{shown} is a link, a folder or a special file, expected a regular file",
        fix="give the file itself",
        code="not_a_file",
    )


def _too_large(shown: str, largest: int | None) -> DataError:
    return DataError(
        f"{shown} is larger than {largest} bytes, the most that can be right",
        fix="check that it is the right file; it may be damaged",
        code="too_large",
    )


class FileStamp(NamedTuple):
    """Identity of a file's content without reading it: changes when the file is written to or replaced."""

    device: int
    inode: int
    size: int  # bytes
    mtime_ns: int  # last change of the content
    ctime_ns: int  # last change of content, name count or permissions; a program cannot set it

    @property
    def content(self) -> tuple[int, int, int]:
        """Inode, size and mtime: equal after a change of permissions, names or attributes alone."""
        return self.inode, self.size, self.mtime_ns

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        """Return the stamp of the file that ``path`` leads to, links followed. Raises OSError."""
        return cls.from_status(os.stat(path))

    @classmethod
    def from_status(cls, status: os.stat_result) -> FileStamp:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def storage_code(error: OSError) -> str:
    """Return the code for a StorageError: ``disk_full``, or ``storage`` for any other failure."""
    return "disk_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError.code


def printable_path(path: Path) -> str:
    """Return the path for a message: as it is, or escaped when a name holds a newline or is not UTF-8."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


def cache_folder(name: str) -> Path | None:
    """Return ``$XDG_CACHE_HOME/flamest/NAME``, or ``~/.cache/flamest/NAME``; None for a user without a home.

    A relative XDG_CACHE_HOME is ignored (https://specifications.freedesktop.org/basedir-spec/latest/).
    """
    base = CACHE_HOME.value()
    try:
        return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "flamest" / name
    except RuntimeError:
        return None


def fsync_directory(path: Path) -> None:
    """Make the names inside a folder durable (POSIX needs this after a rename)."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, data: bytes | memoryview, *, mode: int = 0o644, access: Access | None = None) -> None:
    """Write ``data`` to ``path`` so that a crash leaves the old content or the new, never a part.

    Writes a temporary file in the same folder, fsyncs it, renames it and fsyncs the folder. No content is in it before
    it has its permissions: ``mode``, or ``access``. Raises StorageError.
    """
    path = Path(path)
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            (access or Access(mode)).give_to(handle)
            file.write(data)
            file.flush()
            os.fsync(handle)
        os.replace(temporary, path)
        temporary = None
        fsync_directory(path.parent)
    except OSError as error:
        if not path.parent.exists():
            raise StorageError(
                f"cannot write {path}: the folder {path.parent} does not exist",
                fix=f"make it: mkdir -p {shlex.quote(str(path.parent))}",
            ) from error
        raise StorageError(
            f"cannot write {path}: {error.strerror}",
            fix="check free space and permissions of the folder, then run the command again",
            code=storage_code(error),
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def remove_unfinished(path: Path) -> None:
    """Remove what a ``write_atomic`` of ``path`` left whose process was ended; call where no other one may write."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):
            left.unlink()


def write_new(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write like ``write_atomic``, but raise FileExistsError when ``path`` exists (a rename would replace it)."""
    whole = path.with_name(f".{path.name}.new")
    write_atomic(whole, data, mode=mode)
    try:
        os.link(whole, path)
    finally:
        whole.unlink()
    fsync_directory(path.parent)


@contextlib.contextmanager
def new_directory(path: Path, *, mode: int = 0o755) -> Iterator[Path]:
    """Make a folder that appears whole: fill the yielded one; it is renamed to ``path`` at the end.

    If the block raises, nothing is left behind. ``mode``: the folder's permissions. Raises StorageError when ``path``
    exists and is not an empty folder.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise StorageError(
            f"{path} exists already and is not empty", fix="name a folder that does not exist yet, or an empty one"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".building", dir=path.parent))
    except OSError as error:
        raise StorageError(
            f"cannot create {path}: {error.strerror}",
            fix="check the path and the permissions of the folder above it, or choose another one",
        ) from error
    try:
        yield building
        for file in building.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        fsync_directory(building)
        building.chmod(mode)
        os.replace(building, path)
        fsync_directory(path.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)


class FileLock:
    """An exclusive lock on a file, held by this process until ``release`` or its end.

    ``FileLock.take(path, owner="the coordinator")`` raises LockedError at once when another
    process holds it. The kernel frees the lock with the process, so a crash leaves none behind.
    """

    def __init__(self, handle: int) -> None:
        self._handle = handle

    @classmethod
    def take(cls, path: Path, *, owner: str, access: Access | None = None) -> FileLock:
        """Take the lock. ``access``: of the file, where this user made it; by default this user's alone."""
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(
                f"cannot open the lock file {path}: {error.strerror}",
                fix="check that the folder exists and that this user may write into it",
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise LockedError(
                f"{path} is held by another process: {owner} is running already",
                fix="stop the other process first, or give this one a state folder of its own",
            ) from error
        if access is not None and os.fstat(handle).st_uid == os.geteuid():
            access.give_to(handle)
        return cls(handle)

    @staticmethod
    def is_held(path: Path) -> bool:
        """Return True when another process holds the lock now. Creates nothing; takes a shared lock for an instant."""
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO has no other end
        except OSError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def release(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
