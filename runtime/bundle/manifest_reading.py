"""Reading of ``bundle.json``: from bytes that anyone may have written to a manifest that holds together.

The types bound every value; what they cannot express is checked here. Whoever gets a manifest can rely on it: its names
are plain names inside the folder, what its extractor needs is listed, and its sizes fit into memory.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET

from ...base.errors import DataError, StorageError, printable
from ...base.files import printable_path, read_regular
from .manifest import MANIFEST_FILE, SCHEMAS, TOKENIZER_FILE, Manifest, VisionLanguage
from .signature import SIGNATURE_FILE

MAX_MANIFEST_BYTES = 16 << 20  # bytes; it holds CLIP's thousands of captions
MAX_PIXELS = 1 << 25  # of all frames that a part is given of a clip: 400 MB as float32
MAX_KEPT = 1 << 16  # keys of a caption's token in all layers: 260 MB for 512 tokens, with the values
MAX_GRAPH_BYTES = 2 << 30  # no parser of ONNX takes a larger file; a copy of it is in memory while it is opened
MAX_TOKENIZER_BYTES = 64 << 20
MAX_BUNDLE_BYTES = 16 << 30  # of all files: 20 s to hash
_READ = f"{', '.join(map(str, SCHEMAS[:-1]))} or {SCHEMAS[-1]}"
_FIX = "export the bundle again with this version of flamest-export"
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}")  # of a file's name, between slashes


def read_manifest(bundle: Path) -> Manifest:
    """The manifest of the bundle folder ``bundle``; raises DataError when it is not one.

    It is not yet to be trusted: opening.py's ``open_manifest`` checks its signatures first.
    """
    path = Path(bundle) / MANIFEST_FILE
    try:
        data = read_regular(path, largest=MAX_MANIFEST_BYTES)
    except (DataError, StorageError) as error:
        raise no_bundle_error(bundle, error.message) from error
    return decode_manifest(data, path)


def no_bundle_error(bundle: Path, reason: str) -> DataError:
    return DataError(
        f"{printable_path(bundle)} is not a bundle: cannot read {MANIFEST_FILE} ({reason})",
        fix="get the bundle from the operator, or build one: flamest-export --backend onnx --out DIR",
    )


def decode_manifest(data: bytes, path: Path) -> Manifest:
    """Decode the bytes ``data`` of the file ``path``; raises DataError that names ``path``."""
    try:
        schema = msgspec.json.decode(data, type=_Version).schema
        if schema not in SCHEMAS:
            raise DataError(f"{path} has schema {schema}, this version reads schema {_READ}", fix=_FIX)
        manifest = msgspec.json.decode(data, type=Manifest)
        json.loads(data, object_pairs_hook=_no_name_twice)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:  # ValueError: UTF-8, and numbers of many digits
        reason = "nested too deeply" if isinstance(error, RecursionError) else printable(str(error))[:500]
        raise DataError(f"{path} is not a manifest of schema {_READ}: {reason}", fix=_FIX) from error
    _check_parts(path, manifest)
    _check_names(path.parent, manifest)
    _check_file_sizes(path.parent, manifest)
    return manifest


def _no_name_twice(pairs: list[tuple[str, Any]]) -> None:
    """Raise ValueError for an object that gives a name twice: readers differ in which value they take."""
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name is given twice in one object")


class _Version(msgspec.Struct, frozen=True):
    """The field that a manifest of any schema has."""

    schema: int


def _check_parts(path: Path, manifest: Manifest) -> None:
    """Check what the types alone cannot express."""
    if manifest.vlm is None and manifest.cnn is None:  # cnn2 is a second one
        raise DataError(
            f"{path}: it has neither vlm nor cnn, expected at least one of them",
            fix="export the bundle again; its manifest was changed by hand",
        )
    captioned = 1 if manifest.vlm is None else manifest.vlm.captioned_frames
    if not 1 <= captioned <= manifest.keyframes.count:
        raise DataError(
            f"{path}: vlm.captioned_frames is {captioned}, expected 1 to {manifest.keyframes.count}, the keyframes",
            fix="export the bundle again; its manifest was changed by hand",
        )
    _check_sizes(path, manifest)
    for graph, part in manifest.spatio_temporal.items():
        if part.frames < 1:
            raise DataError(
                f"{path}: {graph}.frames is {part.frames}, expected at least 1",
                fix="export the bundle again; its manifest was changed by hand",
            )


def _check_sizes(path: Path, manifest: Manifest) -> None:
    """Check the sizes that only their product makes too large."""
    keyframes, vlm = manifest.keyframes, manifest.vlm
    pixels = {"keyframes": keyframes.candidates * keyframes.preprocessing.size**2}
    if vlm is not None:
        pixels["vlm"] = vlm.captioned_frames * vlm.preprocessing.size**2
    for graph, part in manifest.spatio_temporal.items():
        pixels[graph] = part.frames * part.preprocessing.size**2
        rule = part.preprocessing
        if rule.short_side is not UNSET and (rule.fit != "crop" or rule.short_side < rule.size):
            problem = f"{graph} has short_side {rule.short_side}, expected at least {rule.size}, with fit crop"
            raise DataError(f"{path}: {problem}", fix=_FIX)
    for name, count in pixels.items():
        if count > MAX_PIXELS:
            problem = f"{name} takes frames of {count} pixels in all, expected at most {MAX_PIXELS}"
            raise DataError(f"{path}: {problem}", fix=_FIX)
    if isinstance(vlm, VisionLanguage) and vlm.text.layers * vlm.text.heads * vlm.text.head_dim > MAX_KEPT:
        text = vlm.text
        raise DataError(
            f"{path}: vlm.text has {text.layers} layers x {text.heads} heads x {text.head_dim}, expected at most "
            f"{MAX_KEPT} in all",
            fix=_FIX,
        )


def _check_file_sizes(bundle: Path, manifest: Manifest) -> None:
    """Check that the files, as the manifest lists them, can be hashed in seconds and held in memory where they must."""
    graphs = {graph.file for graph in manifest.graphs.values()}
    for name, entry in manifest.files.items():
        largest = MAX_GRAPH_BYTES if name in graphs or name.endswith(".onnx") else MAX_BUNDLE_BYTES
        largest = MAX_TOKENIZER_BYTES if name == TOKENIZER_FILE else largest
        if entry.bytes > largest:
            problem = f"lists {name} with {entry.bytes} bytes, expected at most {largest}"
            raise tampered_error(bundle, MANIFEST_FILE, problem)
    if (total := sum(entry.bytes for entry in manifest.files.values())) > MAX_BUNDLE_BYTES:
        problem = f"lists files of {total} bytes in all, expected at most {MAX_BUNDLE_BYTES}"
        raise tampered_error(bundle, MANIFEST_FILE, problem)


def _check_names(bundle: Path, manifest: Manifest) -> None:
    """Allow plain relative names only; the graphs and files that an extractor needs must be listed."""
    for name in manifest.files:
        if name in (MANIFEST_FILE, SIGNATURE_FILE) or not all(map(_PART.fullmatch, name.split("/"))):
            problem = f"lists {ascii(name)[:200]}, which is not a plain name inside the folder"
            raise tampered_error(bundle, MANIFEST_FILE, problem)
    missing = [graph for graph in manifest.needed_graphs if graph not in manifest.graphs]
    if missing:
        raise DataError(f"{printable_path(bundle)}: its manifest lacks graph {', '.join(missing)}", fix=_FIX)
    tokenizer = (TOKENIZER_FILE,) if manifest.needs_tokenizer else ()
    engines = (engine.file for graph in manifest.graphs.values() for engine in graph.engines)
    for needed in (*tokenizer, *(graph.file for graph in manifest.graphs.values()), *engines):
        if needed not in manifest.files:
            raise tampered_error(bundle, MANIFEST_FILE, f"lists no hash for {ascii(needed)[:200]}")


def tampered_error(bundle: Path, name: str, problem: str) -> DataError:
    """The error of a bundle's file that is not as exported."""
    return DataError(
        f"bundle {printable_path(bundle)}: {printable_path(Path(name))} {problem}",
        fix="copy the bundle again from its source, or export it again; do not edit its files",
        code="bundle_tampered",
    )
