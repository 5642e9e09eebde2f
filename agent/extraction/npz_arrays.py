"""Arrays of an ``.npz`` file, checked before they are read: sizes and types are known from their headers alone.

A compressed file of megabytes can stand for arrays of terabytes, so nothing is allocated by what a file says before
it was compared with a limit. Only arrays that are asked for are looked at. An ``.npz`` is a ZIP file of ``.npy`` files
(https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html); their headers are Python literals, which are
matched here and never evaluated.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, NoReturn

import numpy as np
import numpy.typing as npt

from ...base.errors import DataError, StorageError
from ...base.files import open_regular, printable_path

Array = npt.NDArray[np.generic]

MAX_FILE = 8 << 30  # bytes
MAX_READ = 1 << 20  # bytes in one read, also of the ZIP file's directory: an honest one has some hundred
MAX_HEADER = 10_000  # bytes of one array's header: the most that NumPy itself takes
MAX_CHARACTERS = 4096  # of one text: longer ones are no names, and every text takes the room of the longest
_DEFLATE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what NumPy writes; others may need much memory to unpack
_NOT_NPZ = (ValueError, OverflowError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error)
_ENTRY = re.compile(
    r"""\s*(?:['"]descr['"]\s*:\s*['"](?P<descr>[<>|=]?[a-zA-Z]\d{0,7})['"]"""
    r"""|['"]fortran_order['"]\s*:\s*(?P<order>True|False)"""
    r"""|['"]shape['"]\s*:\s*\((?P<shape>(?:\s*\d{1,15}\s*,)*\s*(?:\d{1,15})?)\s*\))\s*,?\s*"""
)


@dataclass(frozen=True)
class Declared:
    """One array as its header declares it; nothing of it has been read."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    columns_first: bool  # Fortran order

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size in the file, unpacked."""
        return self.count * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


class NpzFile:
    """An open ``.npz`` file. ``arrays``: those of the names asked for, as declared; ``names``: all.

    Open with ``open_npz``.
    """

    def __init__(self, path: Path, file: BinaryIO, names: Collection[str]) -> None:
        self.path = path
        self._archive = zipfile.ZipFile(_ShortReads(file))
        self.names = {info.filename.removesuffix(".npy") for info in self._archive.infolist()}
        self._members = self._find(names)
        self.arrays = {name: self._declared(name) for name in self._members}

    def read(self, name: str, dtype: type[np.generic]) -> Array:
        """Return an array as ``dtype``, read in pieces: memory is that of the result, [shape], and a few MiB.

        Texts keep their width. Raises DataError when the file holds less, more or other bytes than it declares.
        """
        declared = self.arrays[name]
        kept = declared.dtype.newbyteorder("=") if dtype is np.str_ else np.dtype(dtype)
        flat = np.empty(declared.count, kept)
        with self._opened(name) as member:
            self._read_header(name, member)
            itemsize = declared.dtype.itemsize
            step = max(1, MAX_READ // itemsize) if itemsize else declared.count
            for start in range(0, declared.count, step):
                wanted = min(step, declared.count - start) * itemsize
                piece = _read_all(member, wanted)
                if len(piece) < wanted:
                    self._refuse(f"{name} is cut short")
                with np.errstate(over="ignore"):
                    flat[start : start + step] = np.frombuffer(piece, declared.dtype)
            if member.read(1):  # at the end of the data the checksum is compared
                self._refuse(f"{name} holds more bytes than its header says")
        return flat.reshape(declared.shape[::-1]).T if declared.columns_first else flat.reshape(declared.shape)

    def _find(self, names: Collection[str]) -> dict[str, zipfile.ZipInfo]:
        found: dict[str, zipfile.ZipInfo] = {}
        for info in self._archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name not in names or not info.filename.endswith(".npy"):
                continue
            if name in found:
                self._refuse(f"{name} is there twice")
            if info.flag_bits & 1:
                self._refuse(f"{name} is encrypted")
            if info.compress_type not in _DEFLATE:
                self._refuse(f"{name} is compressed with method {info.compress_type}, expected stored or deflated")
            found[name] = info
        return found

    def _declared(self, name: str) -> Declared:
        with self._opened(name) as member:
            header, length = self._read_header(name, member)
        declared = self._parse(name, header)
        if declared.dtype.kind in "US" and declared.dtype.itemsize > 4 * MAX_CHARACTERS:
            self._refuse(f"{name} is {declared}, expected texts of at most {MAX_CHARACTERS} characters")
        if self._members[name].file_size != length + declared.bytes:
            self._refuse(f"{name} is {declared}, and holds {self._members[name].file_size - length} bytes")
        return declared

    def _read_header(self, name: str, member: IO[bytes]) -> tuple[str, int]:
        """Read an array's header: its text, and its length with all that comes before the data."""
        start = _read_all(member, 10)
        if start[:6] != b"\x93NUMPY" or len(start) < 10 or start[6] not in (1, 2, 3):
            self._refuse(f"{name} is not a NumPy array")
        if start[6] == 1:
            (length,), before = struct.unpack("<H", start[8:10]), 10
        else:
            rest = _read_all(member, 2)
            (length,), before = struct.unpack("<I", (start[8:10] + rest).ljust(4, b"\xff")), 12
        if length > MAX_HEADER:
            self._refuse(f"{name} has a header of {length} bytes, expected at most {MAX_HEADER}")
        return _read_all(member, length).decode("latin-1"), before + length

    def _parse(self, name: str, header: str) -> Declared:
        values = _header_values(header)
        if values.keys() != {"descr", "order", "shape"}:
            self._refuse(f"{name} is no plain array of numbers or text")
        try:
            dtype = np.dtype(values["descr"])
        except (TypeError, ValueError, OverflowError):
            self._refuse(f"{name} has the unknown type {values['descr']}")
        if dtype.hasobject:
            self._refuse(f"{name} holds Python objects")
        if not dtype.itemsize:
            self._refuse(f"{name} is text of no width")
        shape = tuple(int(length) for length in values["shape"].split(",") if length.strip())
        return Declared(name, dtype, shape, values["order"] == "True")

    @contextmanager
    def _opened(self, name: str) -> Iterator[IO[bytes]]:
        with self._archive.open(self._members[name]) as member:
            yield member

    def _refuse(self, problem: str) -> NoReturn:
        raise _refusal(self.path, problem)


@contextmanager
def open_npz(path: Path, names: Collection[str]) -> Iterator[NpzFile]:
    """Open the file and read the headers of the arrays in ``names``; others are not looked at.

    What fails in the block, too, is raised as DataError when the file is not what it should be, and StorageError when
    it cannot be read.
    """
    with open_regular(path, largest=MAX_FILE) as file:
        try:
            yield NpzFile(path, file, names)
        except OSError as error:
            raise StorageError(
                f"cannot read {printable_path(path)}: {error.strerror or error}",
                fix="check the path, and that this user may read it",
            ) from error
        except _NOT_NPZ as error:
            raise _refusal(path, str(error)) from error


def _refusal(path: Path, problem: str) -> DataError:
    return DataError(
        f"{printable_path(path)} cannot be read as .npz: {problem}",
        fix="write it with np.savez; text as fixed width, np.array(names, dtype=str): object arrays would need "
        "unpickling",
    )


def _header_values(header: str) -> dict[str, str]:
    """Return the three entries of an array's header as text; fewer where it is another kind of literal."""
    inside, values, position = header.strip().removeprefix("{").removesuffix("}"), dict[str, str](), 0
    while entry := _ENTRY.match(inside, position):
        values |= {key: value for key, value in entry.groupdict().items() if value is not None}
        position = entry.end()
    return values if position == len(inside) else {}


def _read_all(member: IO[bytes], size: int) -> bytes:
    """Read ``size`` bytes, or fewer at the end of the data."""
    data = bytearray()
    while len(data) < size and (piece := member.read(size - len(data))):
        data += piece
    return bytes(data)


class _ShortReads(io.BufferedReader):
    """A file whose reads are short: a ZIP file chooses how long a directory it makes its reader load at once."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)  # type: ignore[arg-type]

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = MAX_READ
        if size > MAX_READ:
            raise zipfile.BadZipFile(f"its directory takes {size} bytes, expected at most {MAX_READ}")
        return super().read(size)
