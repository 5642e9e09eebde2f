"""Open a bundle: no file is parsed before it is known to be the exported one.

The order matters: the signatures over the manifest's raw bytes, then the manifest (plain JSON, strict), its names,
the listing of the folder, every file's SHA-256, and what its graphs hold (graph_check.py). Only then may a parser or a
runtime open a file: a TensorRT engine is native code.

What is opened is what was hashed (docs/decisions/011-what-was-hashed-is-what-is-opened.md): the folder is held open
(folder.py), the manifest and the signatures are read once, and every other file is used as a private copy that was
hashed when it was made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .folder import BundleFolder
from .graph_check import check_graph
from .manifest import MANIFEST_FILE, TOKENIZER_FILE, Manifest
from .manifest_reading import MAX_MANIFEST_BYTES, decode_manifest, no_bundle_error
from .signature import MAX_SIGNATURE_BYTES, SIGNATURE_FILE, PublicKey, TrustedKeys, check_signatures


@dataclass(frozen=True)
class Bundle:
    """A bundle folder whose every file has been checked against its manifest."""

    folder: BundleFolder
    manifest: Manifest
    signed: bytes  # the manifest as it was read, and as it is signed
    signatures: bytes | None  # bundle.sig as it was read; None where there is none
    signers: tuple[PublicKey, ...] = ()  # keys with a valid signature; trusted ones carry the name given here

    @property
    def path(self) -> Path:
        """The folder's path, for messages, and for those who compare a hash with what they read there."""
        return self.folder.path

    def graph(self, name: str) -> Path:
        """The path of the graph ``name`` (manifest.py lists the names); as ``path``."""
        return self.path / self.manifest.graphs[name].file

    @contextlib.contextmanager
    def private_graph(self, name: str) -> Iterator[Path]:
        """A path at which a runtime of this process may open the graph ``name``: a copy that nobody can change.

        It is there until the context ends; the path says nothing about the graph. Raises DataError
        ``bundle_tampered`` when the file is another by now.
        """
        file = self.manifest.graphs[name].file
        with self.folder.private_copy(file, self.manifest.files[file]) as copy:
            yield copy

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's path, where ``manifest.needs_tokenizer``; as ``path``."""
        return self.path / TOKENIZER_FILE

    def read(self, name: str) -> bytes:
        """The content of the bundle's file ``name``, hashed as it is read: these bytes are the exported ones."""
        return self.folder.read_listed(name, self.manifest.files[name])


def open_bundle(path: Path, trusted: TrustedKeys = (), *, stop: Callable[[], bool] = lambda: False) -> Bundle:
    """Check the bundle folder ``path`` completely.

    ``trusted``: keys one of which must have signed; empty: signatures need only be valid.
    Raises DataError: ``UNTRUSTED`` when a signature is wrong or none is of a trusted key, ``bad_data``
    when the folder holds no manifest of this schema, ``bundle_tampered`` (naming the file) when a file
    is missing, extra, a link (hard links too), outside of the folder, or not the one that was exported,
    ``bad_graph`` and ``graph_refused`` as ``graph_check.check_graph``. ``stop`` is asked while a file is read, then and
    whenever a graph is opened later: Stopped when it returns True.
    """
    bundle = _open_signed(Path(path), trusted, stop)
    manifest, folder = bundle.manifest, bundle.folder
    folder.check_listing(frozenset({MANIFEST_FILE, *manifest.files}), frozenset({SIGNATURE_FILE}))
    graphs = {graph.file for graph in manifest.graphs.values()}
    for name, entry in manifest.files.items():
        if name in graphs or name.endswith(".onnx"):
            with folder.private_copy(name, entry) as copy:
                check_graph(copy, str(bundle.path / name))
        else:
            folder.verify(name, entry)
    return bundle


def open_manifest(path: Path, trusted: TrustedKeys = ()) -> tuple[Manifest, tuple[PublicKey, ...]]:
    """The manifest of the bundle folder ``path`` and its signers; signatures are checked before it is decoded.

    The other files are not opened. Raises DataError as ``open_bundle`` does.
    """
    bundle = _open_signed(Path(path), trusted)
    return bundle.manifest, bundle.signers


def _open_signed(path: Path, trusted: TrustedKeys, stop: Callable[[], bool] = lambda: False) -> Bundle:
    """Open the folder and check the manifest's signatures before it is decoded; nothing else is looked at."""
    folder = BundleFolder(path, stop)
    if not folder.holds(MANIFEST_FILE):
        raise no_bundle_error(path, "no such file")
    signed = folder.read(MANIFEST_FILE, MAX_MANIFEST_BYTES)
    signatures = folder.read(SIGNATURE_FILE, MAX_SIGNATURE_BYTES) if folder.holds(SIGNATURE_FILE) else None
    signers = check_signatures(signed, signatures, trusted, bundle=path)
    return Bundle(folder, decode_manifest(signed, path / MANIFEST_FILE), signed, signatures, signers)
