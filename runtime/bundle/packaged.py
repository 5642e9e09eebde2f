"""The bundle that comes with the package: the mini-world's small networks, as ``make bundle`` exports them.

It is one archive, unpacked where it is used: installers may link a package's files from their cache, and a bundle with
hard links is refused (docs/decisions/029-a-bundle-comes-with-the-package.md).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import shutil
import zipfile
from importlib import resources
from pathlib import Path

from ...base.errors import StorageError
from ...base.files import cache_folder, new_directory, storage_code

MINIWORLD = "miniworld"  # its name, where a bundle's folder is expected
ARCHIVE = "miniworld.zip"  # next to this file


def resolve_bundle(given: Path) -> Path:
    """Return the folder of the bundle ``given``: that folder, or the unpacked mini-world bundle for ``miniworld``.

    A folder of that name comes first. Raises StorageError as ``miniworld_bundle``.
    """
    return miniworld_bundle() if str(given) == MINIWORLD and not given.exists() else given


def miniworld_bundle(folder: Path | None = None) -> Path:
    """Return a folder with the mini-world's bundle (docs/explanation/miniworld.md).

    It has 7.7 MB, and its embeddings are float32 of 128 + 256 values.

    ``folder``: a new or empty one to unpack into. None: one in the user's cache (``~/.cache/flamest``, or
    ``$XDG_CACHE_HOME/flamest``) that later calls share; its files are compared with the package's on every call.
    Raises StorageError when the folder cannot be written, or ``folder`` is not empty.
    """
    packed = resources.files(__package__).joinpath(ARCHIVE).read_bytes()
    files = unpacked(packed)
    if folder is not None:
        _write(files, Path(folder))
        return Path(folder)
    cache = cache_folder("bundles")
    if cache is None:
        raise StorageError(
            "no place to unpack the mini-world's bundle: this user has no home folder",
            fix="set XDG_CACHE_HOME to a folder that this user may write to",
        )
    shared = cache / f"{MINIWORLD}-{hashlib.sha256(packed).hexdigest()[:16]}"
    was_there = shared.exists()
    if not _holds(shared, files):
        if was_there:  # else what is there now is another process's, which uses it
            shutil.rmtree(shared, ignore_errors=True)
        try:
            _write(files, shared)
        except StorageError as error:
            if not _holds(shared, files):  # else another process has unpacked it meanwhile
                fix = "check free space (8 MB) and permissions, or set XDG_CACHE_HOME to another folder"
                raise StorageError(error.message, fix=fix, code=error.code) from error
    return shared


def unpacked(archive: bytes) -> dict[str, bytes]:
    """Content of every file of the archive, by name."""
    with zipfile.ZipFile(io.BytesIO(archive)) as packed:
        return {name: packed.read(name) for name in packed.namelist()}


def _holds(folder: Path, files: dict[str, bytes]) -> bool:
    """True when ``folder`` holds just these files, each with one name on the disk."""
    with contextlib.suppress(OSError):
        found = list(folder.iterdir())
        return {file.name for file in found} == set(files) and all(
            file.is_file()
            and not file.is_symlink()
            and file.stat().st_nlink == 1
            and file.read_bytes() == files[file.name]
            for file in found
        )
    return False


def _write(files: dict[str, bytes], folder: Path) -> None:
    try:
        with new_directory(folder) as building:
            for name, data in files.items():
                (building / name).write_bytes(data)
    except OSError as error:
        raise StorageError(
            f"cannot unpack the mini-world's bundle into {folder}: {error.strerror}",
            fix=f"check free space and permissions of {folder}",
            code=storage_code(error),
        ) from error
