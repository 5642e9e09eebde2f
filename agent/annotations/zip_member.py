"""A file inside a .zip, read as a stream: nothing is unpacked to disk, names inside choose no path."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import BinaryIO

from ...base.errors import DataError

MAX_DIRECTORY = 32 << 20  # bytes of the list of files
MAX_FILES = 300_000
_ENTRY = b"PK\1\2"  # begins each entry of the list


@contextmanager
def open_member(file: BinaryIO, wanted: str, name: str) -> Iterator[Callable[[int], bytes]]:
    """Open the only file called ``wanted``, in whatever folder of the .zip; yields a function that reads bytes of it.

    Raises DataError ``annotations_zip`` where there is none, or several, or the .zip is damaged or encrypted.
    """
    bounded = _Bounded(file, name)
    try:
        with zipfile.ZipFile(bounded) as archive:
            member = _find(archive, wanted, name)
            with archive.open(member) as opened:
                yield opened.read
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, OSError, ValueError) as error:
        raise _no_zip(name, f"is a damaged .zip: {error}") from error
    except (RuntimeError, NotImplementedError) as error:
        raise _no_zip(name, "is encrypted, or packed in a way that is not read") from error


class _Bounded:
    """A .zip's file of which at most MAX_DIRECTORY bytes are read at once: zipfile reads the whole list of files so.

    Where the list is and how long, a .zip says in up to three places, and versions of zipfile differ in whom they
    believe; whatever they read comes through here. Raises DataError ``too_large``.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(MAX_DIRECTORY + 1 if size < 0 else size) if size <= MAX_DIRECTORY else None
        if data is None or len(data) > MAX_DIRECTORY or data.count(_ENTRY) > MAX_FILES:
            raise DataError(
                f"{self._name} lists more files than can be right", fix="export without images", code="too_large"
            )
        return data


def _find(archive: zipfile.ZipFile, wanted: str, name: str) -> zipfile.ZipInfo:
    names = [entry for entry in archive.infolist() if PurePosixPath(entry.filename.replace("\\", "/")).name == wanted]
    top = [entry for entry in names if entry.filename == wanted]
    found = top if len(top) == 1 else names
    if len(found) == 1:
        if found[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack without a bound
            raise NotImplementedError
        return found[0]
    if names:
        raise _no_zip(name, f"holds {len(names)} files called {wanted}: which of them counts is unknown")
    backup = any(entry.filename == "task.json" for entry in archive.infolist())
    raise _no_zip(name, "is a task's backup, not an export" if backup else f"holds no {wanted}")


def _no_zip(name: str, problem: str) -> DataError:
    return DataError(
        f"{name} {problem}",
        fix="in CVAT: Export task dataset, CVAT for video 1.1 or CVAT for images 1.1; give that .zip, or its "
        "annotations.xml",
        code="annotations_zip",
    )
