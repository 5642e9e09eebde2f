"""The payloads of acknowledged updates, one file for each silo: ``updates/000013/SILO.f32`` while round 13 is open."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...base.errors import DataError, StorageError
from ...base.files import FileStamp, fsync_directory, sha256_file, storage_code
from ...fedproto.head import HeadSpec, Params, TensorLayout
from ...fedproto.tensors import decode_params
from .damaged_files import damaged_file_error, keep_damaged, reading
from .spool import Spool, keep_spare, remove_any


@dataclass(frozen=True)
class StoredContribution:
    """An acknowledged update on disk; nothing of it is in memory before it is read."""

    silo: str
    examples: int
    head: HeadSpec
    path: Path

    @property
    def params(self) -> Params:
        """Read all parameters. Raises DataError (``corrupt_update``; ``not_finite``), StorageError."""
        values = np.empty(self.head.parameters, np.float32)
        self.read(0, values)
        return decode_params(self.head, values.data.cast("B"), whose=str(self.path))

    def check(self, spec: TensorLayout) -> None:
        """Do nothing: the size is checked when it is read, the digest was checked when it arrived."""

    def read(self, start: int, out: npt.NDArray[np.float32]) -> None:
        """Fill ``out`` with the values from ``start`` on. Raises DataError (``corrupt_update``), StorageError."""
        with reading(self.path, code="corrupt_update"):
            handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                got = os.preadv(handle, [out.data], 4 * start)
            finally:
                os.close(handle)
        if got != out.nbytes:
            raise damaged_file_error(self.path, "it is cut short", code="corrupt_update")
        if sys.byteorder == "big":
            out.byteswap(inplace=True)


@dataclass(frozen=True)
class StoredContributions:
    """Acknowledged updates on disk, in order; each file is checked when the iteration reaches it.

    A file that is the one hashed when it came (same stamp) is not hashed again.
    Raises DataError (``corrupt_update``) for a payload that is not what was acknowledged.
    """

    head: HeadSpec
    stored: tuple[tuple[str, int, str, Path], ...]  # silo, examples, SHA-256 of the payload, its file
    hashed: Mapping[Path, FileStamp] = field(default_factory=dict)

    def __iter__(self) -> Iterator[StoredContribution]:
        for silo, examples, sha256, path in self.stored:
            with reading(path, code="corrupt_update"):
                known = self.hashed.get(path) == FileStamp.of(path)
            if not known and _digest(path) != sha256:
                raise damaged_file_error(path, "its digest is not the acknowledged one", code="corrupt_update")
            yield StoredContribution(silo, examples, self.head, path)


def _digest(path: Path) -> str:
    """Return a payload's SHA-256. Raises DataError (``corrupt_update``) for what is not a file, StorageError."""
    try:
        return sha256_file(path)
    except DataError as error:
        raise damaged_file_error(path, error.message, code="corrupt_update") from error


class Payloads:
    """The folder of a run's payloads; remembers which of them this process has hashed."""

    def __init__(self, folder: Path, head: HeadSpec) -> None:
        self.folder = folder
        self._head = head
        self._hashed: dict[Path, FileStamp] = {}  # payloads whose content this process has checked

    def keep(self, round_number: int, silo: str, spool: Spool) -> None:
        """Give an upload that is whole and durable its final name; the name is durable when this returns."""
        path = self._path(round_number, silo)
        try:
            if not path.parent.exists():
                path.parent.mkdir(mode=0o700)
                fsync_directory(path.parent.parent)
            spool.move_to(path)
            fsync_directory(path.parent)
            self._hashed[path] = FileStamp.of(path)
        except OSError as error:
            raise StorageError(
                f"cannot write {path}: {error.strerror}",
                fix="check free space and permissions of the state folder",
                code=storage_code(error),
            ) from error

    def contributions(self, round_number: int, updates: Sequence[tuple[str, int, str]]) -> StoredContributions:
        """Return the round's updates (silo, examples, SHA-256); they can be iterated more than once."""
        stored = [(silo, examples, sha256, self._path(round_number, silo)) for silo, examples, sha256 in updates]
        return StoredContributions(self._head, tuple(stored), self._hashed)

    def silos(self, round_number: int) -> set[str]:
        """Return the silos whose payloads of a round are on disk."""
        return {path.stem for path in self._round_folder(round_number).glob("*.f32")}

    def one(self, round_number: int, silo: str, sha256: str) -> StoredContribution:
        """Return a silo's update in a round. Raises DataError (``corrupt_update``)."""
        return next(iter(self.contributions(round_number, [(silo, 1, sha256)])))

    def round_ended(self) -> None:
        """Forget the stamps: the round's payloads are not read again."""
        self._hashed.clear()

    def recycle(self, round_number: int, spool_folder: Path) -> None:
        """Hand a round's files to the next uploads, which overwrite them."""
        folder = self._round_folder(round_number)
        with contextlib.suppress(OSError):
            for path in folder.iterdir():
                keep_spare(path, spool_folder)
        shutil.rmtree(folder, ignore_errors=True)

    def keep_damaged(self, round_number: int, target: Path) -> None:
        """Move a round's files out of the way, for later inspection. Raises StorageError."""
        keep_damaged(self._round_folder(round_number), target)

    def remove_all_but(self, round_number: int | None, silos: Iterable[str]) -> None:
        """Remove every payload but those of these silos in this round."""
        current = None if round_number is None else self._round_folder(round_number)
        for folder in self.folder.iterdir():
            if folder != current:
                remove_any(folder)
        if round_number is not None and current is not None and current.exists():
            for path in set(current.iterdir()) - {self._path(round_number, silo) for silo in silos}:
                remove_any(path)

    def _round_folder(self, round_number: int) -> Path:
        return self.folder / f"{round_number:06d}"

    def _path(self, round_number: int, silo: str) -> Path:
        return self._round_folder(round_number) / f"{silo}.f32"
