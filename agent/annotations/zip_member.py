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

MAX_DIRECTORY = 256 << 20  # bytes of the list of files
_END = struct.Struct("<4s4H2LH")  # end of central directory
_END64 = struct.Struct("<4sQ2H2L4Q")


@contextmanager
def open_member(file: BinaryIO, wanted: str, name: str) -> Iterator[Callable[[int], bytes]]:
    """Open the only file called ``wanted``, in whatever folder of the .zip; yields a function that reads bytes of it.

    Raises DataError ``annotations_zip`` where there is none, or several, or the .zip is damaged or encrypted.
    """
    try:
        _check_directory(file, name)
        with zipfile.ZipFile(file) as archive:
            with archive.open(_find(archive, wanted, name)) as member:
                yield member.read
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, OSError, ValueError) as error:
        raise _no_zip(name, f"is a damaged .zip: {error}") from error
    except (RuntimeError, NotImplementedError) as error:
        raise _no_zip(name, "is encrypted, or packed in a way that is not read") from error


def _find(archive: zipfile.ZipFile, wanted: str, name: str) -> zipfile.ZipInfo:
    names = [entry for entry in archive.infolist() if PurePosixPath(entry.filename.replace("\\", "/")).name == wanted]
    top = [entry for entry in names if entry.filename == wanted]
    if len(top) == 1:
        return top[0]
    if len(names) == 1:
        return names[0]
    if names:
        raise _no_zip(name, f"holds {len(names)} files called {wanted}: which of them counts is unknown")
    backup = any(entry.filename == "task.json" for entry in archive.infolist())
    raise _no_zip(name, "is a task's backup, not an export" if backup else f"holds no {wanted}")


def _check_directory(file: BinaryIO, name: str) -> None:
    """Refuse a .zip whose list of files would not fit into memory."""
    size = file.seek(0, 2)
    file.seek(max(size - 65_557 - 20, 0))
    tail = file.read(65_577)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < _END.size:
        raise _no_zip(name, "is no .zip: it has no list of files")
    length = _END.unpack_from(tail, at)[5]
    if length == 0xFFFFFFFF and at >= 20 and tail[at - 20 : at - 16] == b"PK\6\7":
        file.seek(struct.unpack_from("<Q", tail, at - 12)[0])
        record = file.read(_END64.size)
        length = _END64.unpack(record)[8]
    if length > MAX_DIRECTORY:
        raise DataError(f"{name} lists more files than can be right", fix="export without images", code="too_large")
    file.seek(0)


def _no_zip(name: str, problem: str) -> DataError:
    return DataError(
        f"{name} {problem}",
        fix="in CVAT: Export task dataset, CVAT for video 1.1 or CVAT for images 1.1; give that .zip, or its "
        "annotations.xml",
        code="annotations_zip",
    )
