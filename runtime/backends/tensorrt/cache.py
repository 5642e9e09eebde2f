"""Cache of the engines that were built on this node, outside of the bundle: a signed bundle does not change.

An engine is native code, and nobody signs those of the cache. So the folder belongs to this user alone (0700, checked
each time), an entry holds the engine's SHA-256, and its key is all that the engine was built from and for: ONNX
graph, TensorRT, GPU and options.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ....base.errors import DataError, StorageError
from ....base.files import cache_folder, open_regular, sha256_bytes, write_atomic
from ...bundle.graph_records import EngineOptions, EngineRecord
from .engine import MAX_TRUSTED_BYTES
from .verdict import Verdict

RECORD, ENGINE, TIMINGS, VERDICT = ".json", ".plan", ".timings", ".verdict"
VERDICT_FORM = 2  # of the comparison; a stricter one has another, and verdicts of this one do not count
MAX_VERDICT_BYTES = 1 << 20


class EngineKey(msgspec.Struct, frozen=True):
    """All that must be equal for an engine to be used again."""

    onnx_sha256: str
    tensorrt: str
    gpu: str
    compute_capability: str
    options: EngineOptions

    @property
    def digest(self) -> str:
        """SHA-256, 64 hexadecimal digits: the name of the entry."""
        return sha256_bytes(msgspec.json.encode(self, order="deterministic"))


class VerdictKey(msgspec.Struct, frozen=True):
    """All that a verdict was made on: with another driver, GPU or TensorRT an engine is compared again."""

    engine_sha256: str
    onnx_sha256: str
    tensorrt: str
    cuda: str  # newest CUDA that the driver supports
    driver: str
    gpu: str
    compute_capability: str
    form: int = VERDICT_FORM

    @property
    def digest(self) -> str:
        """SHA-256, 64 hexadecimal digits: the name of the entry."""
        return sha256_bytes(msgspec.json.encode(self, order="deterministic"))


class _KeptVerdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: VerdictKey
    verdict: Verdict
    sha256: str  # of the two above


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: EngineKey
    record: EngineRecord = msgspec.field(name="plan")
    sha256: str  # of the engine file


@dataclass(frozen=True)
class CachedEngine:
    record: EngineRecord
    data: bytes  # hashed as it was read


@dataclass(frozen=True)
class EngineCache:
    """A user's folder of engines. Open with ``open_cache``."""

    folder: Path

    def find(self, key: EngineKey) -> CachedEngine | None:
        """The engine of ``key``; None when there is none that is complete."""
        stem = self.folder / key.digest
        try:
            entry = msgspec.json.decode(_read_own(stem.with_suffix(RECORD), 1 << 20), type=_Entry)
            data = _read_own(stem.with_suffix(ENGINE), MAX_TRUSTED_BYTES)
        except (FileNotFoundError, ValueError, RecursionError):  # ValueError: msgspec's, and not UTF-8
            return None
        if entry.key != key or sha256_bytes(data) != entry.sha256:
            return None
        return CachedEngine(entry.record, data)

    def keep(self, key: EngineKey, record: EngineRecord, data: bytes) -> Path:
        """Write the engine, then its record, so that an incomplete entry is not found. Return the engine's path."""
        stem = self.folder / key.digest
        write_atomic(stem.with_suffix(ENGINE), data, mode=0o600)
        entry = _Entry(key, record, sha256_bytes(data))
        write_atomic(stem.with_suffix(RECORD), msgspec.json.encode(entry), mode=0o600)
        return stem.with_suffix(ENGINE)

    def path(self, key: EngineKey) -> Path:
        """Path of the engine of ``key``."""
        return self.folder / f"{key.digest}{ENGINE}"

    def remove(self, key: EngineKey) -> None:
        """Remove the engine of ``key``, its record first; verdicts stay."""
        for suffix in (RECORD, ENGINE):
            try:
                (self.folder / f"{key.digest}{suffix}").unlink(missing_ok=True)
            except OSError as error:
                raise StorageError(
                    f"cannot remove {self.folder / key.digest}{suffix}: {error.strerror}",
                    fix="check the permissions of the folder for engines",
                ) from error

    def verdict(self, key: VerdictKey) -> Verdict | None:
        """The verdict of ``key``; None when there is none, or its file is not what was written."""
        path = self.folder / f"{key.digest}{VERDICT}"
        try:
            kept = msgspec.json.decode(_read_own(path, MAX_VERDICT_BYTES), type=_KeptVerdict)
        except (FileNotFoundError, ValueError, RecursionError, StorageError):
            return None
        return kept.verdict if kept == _kept(key, kept.verdict) else None

    def verdicts_on(self, engine_sha256: str) -> list[tuple[VerdictKey, Verdict]]:
        """Every verdict on an engine, whatever driver and GPU it was made with."""
        found = []
        for path in sorted(self.folder.glob(f"*{VERDICT}")):
            try:
                kept = msgspec.json.decode(_read_own(path, MAX_VERDICT_BYTES), type=_KeptVerdict)
            except (FileNotFoundError, ValueError, RecursionError, StorageError):
                continue
            if kept.key.engine_sha256 == engine_sha256 and self.verdict(kept.key) == kept.verdict:
                found.append((kept.key, kept.verdict))
        return found

    def keep_verdict(self, key: VerdictKey, verdict: Verdict) -> None:
        data = msgspec.json.encode(_kept(key, verdict))
        write_atomic(self.folder / f"{key.digest}{VERDICT}", data, mode=0o600)

    def timings(self, tensorrt: str, gpu: str) -> Path:
        """Path of the builder's timing cache for this version and GPU."""
        return self.folder / f"{sha256_bytes(f'{tensorrt} {gpu}'.encode())[:16]}{TIMINGS}"


def _kept(key: VerdictKey, verdict: Verdict) -> _KeptVerdict:
    return _KeptVerdict(key, verdict, sha256_bytes(msgspec.json.encode((key, verdict), order="deterministic")))


def existing_cache() -> EngineCache | None:
    """The user's cache if it is there and in order; nothing is made."""
    folder = cache_folder("plans")
    if folder is None or not folder.is_dir():
        return None
    try:
        return open_cache(folder)
    except (DataError, StorageError):
        return None


def open_cache(folder: Path | None = None) -> EngineCache:
    """Open the cache in ``folder`` (default: the user's cache folder ``plans``), which is made where it is missing.

    Raises StorageError when it cannot be made, DataError when another user owns it or others may write to it.
    """
    folder = cache_folder("plans") if folder is None else Path(folder)
    if folder is None:
        raise StorageError("this user has no home folder to keep engines in", fix="set HOME or XDG_CACHE_HOME")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.lstat()
    except OSError as error:
        raise StorageError(
            f"cannot make the folder for engines {folder}: {error.strerror}",
            fix="give another one with --plan-cache DIR",
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
            f"the folder for engines {folder} {problem}; engines are native code, expected a folder of this user alone",
            fix=f"chmod 700 {folder}, or give another one with --plan-cache DIR",
            code="UNTRUSTED",
        )
    return EngineCache(folder)


def _read_own(path: Path, largest: int) -> bytes:
    """The content of a plain file of this user; links are not followed. Raises FileNotFoundError, StorageError."""
    try:
        with open_regular(path, largest=largest, follow=False) as file:
            if os.fstat(file.fileno()).st_uid != os.geteuid():
                raise FileNotFoundError(path)
            return file.read()
    except DataError as error:
        if path.is_symlink():
            raise StorageError(error.message, fix=error.fix) from error
        raise FileNotFoundError(path) from error
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise error.__cause__ from error
        raise
