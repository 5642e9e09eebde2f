"""Opening a bundle: nothing in it is parsed before it is known to be what was exported.

The order matters: the manifest (plain JSON, strict), then the listing of the folder, then every
file's SHA-256. Only then may a parser or a runtime open a file.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import DataError, StorageError
from ..base.files import HASH_CHUNK, printable_path
from .manifest import MANIFEST_FILE, TOKENIZER_FILE, Manifest, read_manifest
from .onnx_outside import names_outside_data


@dataclass(frozen=True)
class Bundle:
    """A bundle folder whose every file has been checked against its manifest."""

    path: Path
    manifest: Manifest

    def graph(self, name: str) -> Path:
        """The ONNX file of the graph ``name`` (manifest.py lists the names)."""
        return self.path / self.manifest.graphs[name].file

    @property
    def tokenizer(self) -> Path:
        """There is one where the manifest's ``needs_tokenizer`` says so."""
        return self.path / TOKENIZER_FILE


def open_bundle(path: Path) -> Bundle:
    """Check the bundle folder ``path`` completely.

    Raises DataError: ``bad_data`` when the folder holds no manifest of this schema,
    ``bundle_tampered`` (naming the file) when a file is missing, extra, a link, outside of the
    folder, not the one that was exported, or an ONNX graph that takes data from another file.
    """
    path = Path(path)
    manifest = read_manifest(path)
    _check_names(path, manifest)
    _check_listing(path, manifest)
    for name, entry in manifest.files.items():
        size, sha256 = _measure(path, name)
        if (size, sha256) != (entry.bytes, entry.sha256):
            raise _tampered(path, name, f"has {size} bytes and SHA-256 {sha256[:12]}…, not those of the manifest")
    for name in manifest.files:
        if name.endswith(".onnx") and names_outside_data(path / name):
            raise _tampered(path, name, "takes tensors from another file; a graph must be one file")
    return Bundle(path, manifest)


def _check_names(path: Path, manifest: Manifest) -> None:
    """Plain relative names only, and the files that an extractor needs are among them."""
    for name in manifest.files:
        parts = name.split("/")
        if name == MANIFEST_FILE or "\\" in name or any(part in ("", ".", "..") for part in parts):
            raise _tampered(path, MANIFEST_FILE, f"lists {name!r}, which is no plain name inside the folder")
    missing = [graph for graph in manifest.needed_graphs if graph not in manifest.graphs]
    if missing:
        raise DataError(
            f"{printable_path(path)}: its manifest names no graph {', '.join(missing)}",
            fix="export the bundle again with this version of flamest-export",
        )
    tokenizer = (TOKENIZER_FILE,) if manifest.needs_tokenizer else ()
    plans = (plan.file for graph in manifest.graphs.values() for plan in graph.plans)
    for needed in (*tokenizer, *(graph.file for graph in manifest.graphs.values()), *plans):
        if needed not in manifest.files:
            raise _tampered(path, MANIFEST_FILE, f"lists no hash for {needed!r}")


def _check_listing(path: Path, manifest: Manifest) -> None:
    """The folder holds the manifest's files and no other, and no links."""
    found = set()
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            full = Path(folder, name)
            inside = full.relative_to(path).as_posix()
            mode = full.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise _tampered(path, inside, "is a link or a special file, expected a plain one")
            if stat.S_ISREG(mode):
                found.add(inside)
    expected = {MANIFEST_FILE, *manifest.files}
    for name in sorted(expected - found):
        raise _tampered(path, name, "is missing")
    for name in sorted(found - expected):
        raise _tampered(path, name, "is not in the manifest")


def _measure(path: Path, name: str) -> tuple[int, str]:
    """Size in bytes and SHA-256 of a bundle's file; a link put there meanwhile is not followed."""
    digest = hashlib.sha256()
    size = 0
    try:
        fd = os.open(path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            while chunk := file.read(HASH_CHUNK):
                digest.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise StorageError(f"cannot read {printable_path(path / name)}: {error.strerror}") from error
    return size, digest.hexdigest()


def _tampered(path: Path, name: str, problem: str) -> DataError:
    return DataError(
        f"bundle {printable_path(path)}: {name} {problem}",
        fix="copy the bundle again from where it came, or export it again; do not edit its files",
        code="bundle_tampered",
    )
