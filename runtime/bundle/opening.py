"""Open a bundle: no file is parsed before it is known to be the exported one.

The order matters: the signatures over the manifest's raw bytes, then the manifest (plain JSON, strict), its names,
the listing of the folder, every file's SHA-256. Only then may a parser or a runtime open a file: a TensorRT engine is
native code.

The opened files are the hashed ones (docs/decisions/011-what-was-hashed-is-what-is-opened.md). Engines and the
tokenizer are passed on as the bytes that were hashed (``Bundle.read``). An ONNX graph of half a gigabyte is opened by
its name, so that it is not in memory twice; ``Bundle.verify_unchanged`` follows before anything is run.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from ...base.errors import DataError, StorageError
from ...base.files import HASH_CHUNK, FileStamp, printable_path, sha256_bytes
from .external_data import has_external_data
from .manifest import MANIFEST_FILE, TOKENIZER_FILE, Manifest, decode_manifest, no_bundle_error
from .signature import MAX_SIGNATURE_BYTES, SIGNATURE_FILE, PublicKey, TrustedKeys, check_signatures

MAX_MANIFEST_BYTES = 16 << 20  # bytes; it holds CLIP's thousands of captions


@dataclass(frozen=True)
class Bundle:
    """A bundle folder whose every file has been checked against its manifest."""

    path: Path
    manifest: Manifest
    signers: tuple[PublicKey, ...] = ()  # keys with a valid signature; trusted ones carry the name given here
    stamps: Mapping[str, FileStamp] = field(default_factory=dict, repr=False)

    def graph(self, name: str) -> Path:
        """The ONNX file of the graph ``name`` (manifest.py lists the names)."""
        return self.path / self.manifest.graphs[name].file

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's file, where ``manifest.needs_tokenizer``."""
        return self.path / TOKENIZER_FILE

    def read(self, name: str) -> bytes:
        """The content of the bundle's file ``name``, hashed as it is read: these bytes are the exported ones."""
        data = _read_plain(self.path, name, self.manifest.files[name].bytes)
        if sha256_bytes(data) != self.manifest.files[name].sha256:
            raise _tampered_error(self.path, name, "was changed after the bundle was checked")
        return data

    def verify_unchanged(self) -> None:
        """Raise DataError when any file was replaced or written to after it was hashed.

        Call it after a runtime has opened files by name, and before it runs anything.
        """
        for name, stamp in self.stamps.items():
            try:
                now = FileStamp.from_status((self.path / name).lstat())
            except OSError as error:
                raise _tampered_error(self.path, name, "was removed after the bundle was checked") from error
            if now != stamp:
                raise _tampered_error(self.path, name, "was changed after the bundle was checked")


def open_bundle(path: Path, trusted: TrustedKeys = ()) -> Bundle:
    """Check the bundle folder ``path`` completely.

    ``trusted``: keys one of which must have signed; empty: signatures need only be valid.
    Raises DataError: ``UNTRUSTED`` when a signature is wrong or none is of a trusted key, ``bad_data``
    when the folder holds no manifest of this schema, ``bundle_tampered`` (naming the file) when a file
    is missing, extra, a link (hard links too), outside of the folder, not the one that was exported, or
    an ONNX graph that takes data from another file.
    """
    path = Path(path)
    manifest, signers = open_manifest(path, trusted)
    _check_names(path, manifest)
    _check_listing(path, manifest)
    stamps = {}
    for name, entry in manifest.files.items():
        size, sha256, stamps[name] = _measure(path, name)
        if (size, sha256) != (entry.bytes, entry.sha256):
            raise _tampered_error(path, name, f"has {size} bytes and SHA-256 {sha256[:12]}…, not those of the manifest")
    for name in manifest.files:
        if name.endswith(".onnx") and has_external_data(path / name):
            raise _tampered_error(path, name, "takes tensors from another file; a graph must be one file")
    return Bundle(path, manifest, signers, stamps)


def open_manifest(path: Path, trusted: TrustedKeys = ()) -> tuple[Manifest, tuple[PublicKey, ...]]:
    """The manifest of the bundle folder ``path`` and its signers; signatures are checked before it is decoded.

    The other files are not opened. Raises DataError as ``open_bundle`` does.
    """
    data = read_manifest_bytes(path)
    signers = check_signatures(data, read_signatures(path), trusted, bundle=path)
    return decode_manifest(data, path / MANIFEST_FILE), signers


def read_manifest_bytes(path: Path) -> bytes:
    """The signed bytes. Raises DataError when the folder holds no such file, or no plain one."""
    if not os.path.lexists(path / MANIFEST_FILE):
        raise no_bundle_error(path, "no such file")
    return _read_plain(path, MANIFEST_FILE, MAX_MANIFEST_BYTES)


def read_signatures(path: Path) -> bytes | None:
    """The bytes of the bundle's ``bundle.sig``; None when there is none."""
    if not os.path.lexists(path / SIGNATURE_FILE):
        return None
    return _read_plain(path, SIGNATURE_FILE, MAX_SIGNATURE_BYTES)


def _check_names(path: Path, manifest: Manifest) -> None:
    """Allow plain relative names only; the files that an extractor needs must be listed."""
    for name in manifest.files:
        parts = name.split("/")
        if (
            name in (MANIFEST_FILE, SIGNATURE_FILE)
            or "\\" in name
            or "\0" in name
            or any(part in ("", ".", "..") for part in parts)
        ):
            raise _tampered_error(path, MANIFEST_FILE, f"lists {name!r}, which is not a plain name inside the folder")
    missing = [graph for graph in manifest.needed_graphs if graph not in manifest.graphs]
    if missing:
        raise DataError(
            f"{printable_path(path)}: its manifest lacks graph {', '.join(missing)}",
            fix="export the bundle again with this version of flamest-export",
        )
    tokenizer = (TOKENIZER_FILE,) if manifest.needs_tokenizer else ()
    engines = (engine.file for graph in manifest.graphs.values() for engine in graph.engines)
    for needed in (*tokenizer, *(graph.file for graph in manifest.graphs.values()), *engines):
        if needed not in manifest.files:
            raise _tampered_error(path, MANIFEST_FILE, f"lists no hash for {needed!r}")


def _check_listing(path: Path, manifest: Manifest) -> None:
    """Allow the manifest's files and the signatures in the folder, nothing else, and no links."""
    found = set()
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            full = Path(folder, name)
            inside = full.relative_to(path).as_posix()
            mode = full.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise _tampered_error(path, inside, "is a link or a special file, expected a plain one")
            if stat.S_ISREG(mode):
                found.add(inside)
    expected = {MANIFEST_FILE, *manifest.files}
    for name in sorted(expected - found):
        raise _tampered_error(path, name, "is missing")
    for name in sorted(found - expected - {SIGNATURE_FILE}):
        raise _tampered_error(path, name, "is not in the manifest")


def _measure(path: Path, name: str) -> tuple[int, str, FileStamp]:
    """Size in bytes, SHA-256 and stamp of a bundle's file."""
    digest = hashlib.sha256()
    size = 0
    file, before = _open_plain(path, name)
    with file:
        try:
            while chunk := file.read(HASH_CHUNK):
                digest.update(chunk)
                size += len(chunk)
        except OSError as error:
            raise _unreadable_error(path, name, error) from error
        if FileStamp.from_status(os.fstat(file.fileno())) != before:
            raise _tampered_error(path, name, "changed while it was read")
    return size, digest.hexdigest(), before


def _read_plain(path: Path, name: str, longest: int) -> bytes:
    file, _ = _open_plain(path, name)
    with file:
        try:
            data = file.read(longest + 1)
        except OSError as error:
            raise _unreadable_error(path, name, error) from error
    if len(data) > longest:
        raise _tampered_error(path, name, f"is longer than {longest} bytes")
    return data


def _open_plain(path: Path, name: str) -> tuple[BinaryIO, FileStamp]:
    """Open a file that is no link, no pipe, and has no second name through which it could be written."""
    try:
        handle = os.open(path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if (path / name).is_symlink():
            raise _tampered_error(path, name, "is a link, expected a plain file") from error
        raise _unreadable_error(path, name, error) from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        os.close(handle)
        problem = (
            f"is a hard link, the same file has {status.st_nlink} names: expected a copy of its own (cp -r)"
            if stat.S_ISREG(status.st_mode)
            else "is a special file or a folder, expected a plain one"
        )
        raise _tampered_error(path, name, problem)
    return os.fdopen(handle, "rb"), FileStamp.from_status(status)


def _unreadable_error(path: Path, name: str, error: OSError) -> StorageError:
    return StorageError(f"cannot read {printable_path(path / name)}: {error.strerror}")


def _tampered_error(path: Path, name: str, problem: str) -> DataError:
    return DataError(
        f"bundle {printable_path(path)}: {name} {problem}",
        fix="copy the bundle again from its source, or export it again; do not edit its files",
        code="bundle_tampered",
    )
