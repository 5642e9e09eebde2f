"""Plans that were built on this node: kept outside of the bundle, because a signed bundle does not change.

A plan is native code, and what lies here was signed by nobody. So the folder belongs to this user and to
no one else (0700, checked each time), a plan's record holds its SHA-256, and the key of an entry is all that
the plan was built from and for: another ONNX graph, TensorRT, GPU or option is another entry.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ....base.errors import DataError, StorageError
from ....base.files import sha256_bytes, write_atomic
from ...bundle.records import EngineOptions, EngineRecord

RECORD, PLAN, TIMINGS = ".json", ".plan", ".timings"


class EngineKey(msgspec.Struct, frozen=True):
    """What decides whether a plan may be used again."""

    onnx_sha256: str
    tensorrt: str
    gpu: str
    compute_capability: str
    options: EngineOptions

    @property
    def digest(self) -> str:
        """SHA-256, 64 hexadecimal digits: the name of the entry."""
        return sha256_bytes(msgspec.json.encode(self, order="deterministic"))


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: EngineKey
    record: EngineRecord = msgspec.field(name="plan")
    sha256: str  # of the plan file


@dataclass(frozen=True)
class CachedEngine:
    record: EngineRecord
    data: bytes  # hashed as it was read


@dataclass(frozen=True)
class EngineCache:
    """A folder of plans of one user. Open with ``open_cache``."""

    folder: Path

    def find(self, key: EngineKey) -> CachedEngine | None:
        """The plan of ``key``, or None when there is none that is whole: it is then built again."""
        stem = self.folder / key.digest
        try:
            entry = msgspec.json.decode(_read_own(stem.with_suffix(RECORD)), type=_Entry)
            data = _read_own(stem.with_suffix(PLAN))
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        if entry.key != key or sha256_bytes(data) != entry.sha256:
            return None
        return CachedEngine(entry.record, data)

    def keep(self, key: EngineKey, record: EngineRecord, data: bytes) -> Path:
        """Write the plan, then its record: an entry that a crash cut short is not found. The plan's path."""
        stem = self.folder / key.digest
        write_atomic(stem.with_suffix(PLAN), data, mode=0o600)
        entry = _Entry(key, record, sha256_bytes(data))
        write_atomic(stem.with_suffix(RECORD), msgspec.json.encode(entry), mode=0o600)
        return stem.with_suffix(PLAN)

    def timings(self, tensorrt: str, gpu: str) -> Path:
        """Where the builder's timing cache of this version and GPU lies."""
        return self.folder / f"{sha256_bytes(f'{tensorrt} {gpu}'.encode())[:16]}{TIMINGS}"


def default_folder() -> Path:
    """``$XDG_CACHE_HOME/flamest/plans``, or ``~/.cache/flamest/plans``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "flamest" / "plans"


def open_cache(folder: Path | None = None) -> EngineCache:
    """The cache in ``folder`` (default: ``default_folder``), made where it is not there.

    Raises StorageError when it cannot be made, DataError when others than this user own it or may write to it.
    """
    folder = default_folder() if folder is None else Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.lstat()
    except OSError as error:
        raise StorageError(
            f"cannot make the folder for plans {folder}: {error.strerror}", fix="give another one with --plan-cache DIR"
        ) from error
    problem = ""
    if not stat.S_ISDIR(found.st_mode):
        problem = "is a link or no folder"
    elif found.st_uid != os.geteuid():
        problem = f"belongs to user {found.st_uid}, this is user {os.geteuid()}"
    elif found.st_mode & 0o077:
        problem = f"is open to others (mode {stat.S_IMODE(found.st_mode):o})"
    if problem:
        raise DataError(
            f"the folder for plans {folder} {problem}; a plan is native code, expected a folder of this user alone",
            fix=f"chmod 700 {folder}, or give another one with --plan-cache DIR",
            code="UNTRUSTED",
        )
    return EngineCache(folder)


def _read_own(path: Path) -> bytes:
    """The content of a plain file of this user; links are not followed. Raises FileNotFoundError, StorageError."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
                raise FileNotFoundError(path)
            return file.read()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
