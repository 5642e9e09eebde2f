"""Engines in a bundle's folder: the manifest with one more, the files of it, and files that it does not list."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import msgspec

from ....base.errors import StorageError
from ....base.files import fsync_directory, sha256_bytes, write_atomic
from ...bundle.graph_records import EngineRecord
from ...bundle.manifest import MANIFEST_FILE, FileEntry, Manifest, encode_manifest
from ...bundle.manifest_reading import read_manifest

ENGINE_SUFFIX = ".plan"


def with_engine(manifest: Manifest, name: str, record: EngineRecord, data: bytes) -> Manifest:
    """The manifest with one more engine, or another one of the same file; its fingerprint is the same."""
    graph = manifest.graphs[name]
    others = (other for other in graph.engines if other.file != record.file)
    graphs = {**manifest.graphs, name: msgspec.structs.replace(graph, engines=(*others, record))}
    files = {**manifest.files, record.file: FileEntry(sha256=sha256_bytes(data), bytes=len(data))}
    files = dict(sorted(files.items()))
    return msgspec.structs.replace(manifest, graphs=graphs, files=files)


def remove_unlisted_engines(folder: Path) -> None:
    """Remove engines that the manifest does not list: a crash between the two writes of ``put_engine`` leaves one."""
    known = read_manifest(folder).files
    for file in folder.glob(f"*{ENGINE_SUFFIX}"):
        if file.name not in known and file.is_file() and not file.is_symlink():
            file.unlink()


def put_engine(folder: Path, file: str, data: bytes, manifest: Manifest) -> None:
    """Write the engine next to the bundle, move it in, then replace the manifest."""
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".plans", dir=folder.resolve().parent))
    except OSError as error:
        raise StorageError(
            f"cannot write next to {folder}: {error.strerror}",
            fix="check free space and permissions of the folder that the bundle is in",
        ) from error
    try:
        write_atomic(scratch / file, data)
        os.replace(scratch / file, folder / file)
        fsync_directory(folder)
    except OSError as error:
        raise StorageError(
            f"cannot write {folder / file}: {error.strerror}",
            fix="check free space and permissions of the bundle's folder",
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    write_atomic(folder / MANIFEST_FILE, encode_manifest(manifest))
