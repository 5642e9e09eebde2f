"""Verification of published weights: SHA-256 of their files, and BLIP's caption of a known picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from ...base.clock import utc_date
from ...base.errors import DataError, StorageError, UsageError
from ...base.files import printable_path, read_regular, sha256_file, write_atomic
from ...runtime.bundle.manifest import FramePreprocessing
from .checkpoints import MAX_FILE, PICKLED, WEIGHT_FILES
from .golden import decode
from .hub import cached_folder
from .releases import BY_SOURCE, RELEASES, Release
from .source import parse_source, split_hub_id
from .video import zoo_cache

if TYPE_CHECKING:
    from .loading import LoadedBlip

MAX_RECORD = 1 << 20  # bytes of a JSON file
_MODEL_TYPES = {"blip": "blip", "clip": "clip", "videomae": "videomae"}  # of config.json -> network


@dataclass(frozen=True)
class FileVerdict:
    """One weights file. ``verdict``: "known", "differs", "unknown here"."""

    file: str
    bytes: int
    sha256: str
    verdict: str
    release: Release | None


class KnownCaption(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A captioner's caption of the picture, when its weights were first verified."""

    caption: str
    token_ids: tuple[int, ...]
    recorded: str  # date
    versions: dict[str, str]


@dataclass(frozen=True)
class CaptionVerdict:
    caption: KnownCaption
    verdict: str  # "recorded now", "the same as recorded"


def find_weight_files(source: str) -> list[Path]:
    """Weights files of a file, a folder as the hub has it, or a published source in this machine's caches.

    Raises UsageError when there is no such thing here.
    """
    path = Path(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        files = [path / name for name in WEIGHT_FILES if (path / name).is_file()]
        files += sorted(file for file in path.iterdir() if file.suffix in PICKLED and file.name not in WEIGHT_FILES)
        if files:
            return files
        raise DataError(
            f"{printable_path(path)} holds no weights: expected {' or '.join(WEIGHT_FILES)}, or a .pth",
            fix="give the folder as the hub has it, or the weights file itself",
        )
    hub_id = split_hub_id(source)
    folder = None if hub_id is None else cached_folder(*hub_id)
    if folder is not None and any((folder / name).is_file() for name in WEIGHT_FILES):
        return find_weight_files(str(folder))
    if source in BY_SOURCE and hub_id is None:
        cached = zoo_cache() / BY_SOURCE[source].file
        if cached.is_file():
            return [cached]
    raise UsageError(
        f"{source}: no such file or folder, and not in this machine's caches",
        fix="flamest-export verify-weights FOLDER, with the files listed in docs/guides/export.md, Sources of weights",
    )


def identify_file(path: Path) -> FileVerdict:
    """Compare the file with the release of its name and network."""
    digest, size = sha256_file(path, largest=MAX_FILE), path.stat().st_size
    for release in RELEASES:
        if release.sha256 == digest:
            return FileVerdict(path.name, size, digest, "known", release)
    named = _release_of(path)
    verdict = "differs" if named is not None and named.sha256 else "unknown here"
    return FileVerdict(path.name, size, digest, verdict, named)


def caption_verdict(source: Path, weights: Path, record: Path, *, loaded: LoadedBlip | None = None) -> CaptionVerdict:
    """Compare the caption that the model in the folder ``source`` gives our picture with the one in ``record``.

    ``weights``: its file, by whose SHA-256 the caption is recorded; ``loaded``: the model, where it has been loaded. A
    caption of weights that are new to ``record`` is added to it. Raises DataError ``other_caption`` when it is another
    one now.
    """
    known = _read_record(record)
    digest = sha256_file(weights, largest=MAX_FILE)
    now = _caption(source, loaded)
    if digest in known:
        before = known[digest]
        if now.token_ids != before.token_ids:
            raise DataError(
                f"{printable_path(source)}: the caption of the picture is '{now.caption}', recorded on "
                f"{before.recorded} was '{before.caption}', of the same weights",
                fix=f"libraries then: {before.versions}; now: {now.versions}",
                code="other_caption",
            )
        return CaptionVerdict(before, "the same as recorded")
    content = msgspec.json.encode({**known, digest: now}, order="deterministic")
    write_atomic(record, msgspec.json.format(content, indent=2) + b"\n")
    return CaptionVerdict(now, "recorded now")


def _caption(source: Path, loaded: LoadedBlip | None = None) -> KnownCaption:
    """Greedy, at most 20 tokens, of a seeded picture, by Hugging Face's own forward."""
    from ..bundle import versions
    from ..parity.blip import captions_of
    from ..parts import vision_language
    from .loading import open_blip

    loaded = loaded or open_blip(parse_source("blip", str(source)))
    spec = vision_language(loaded.model, loaded.tokenizer, "bidirectional", 1)
    (ids,) = captions_of(loaded.model, _seeded_picture(spec.preprocessing), spec)
    text = decode(loaded.tokenizer, ids)
    packages = {name: version for name, version in versions().items() if name in ("torch", "transformers")}
    return KnownCaption(text, ids, utc_date(), packages)


def _seeded_picture(rule: FramePreprocessing) -> npt.NDArray[np.float32]:
    """The picture whose captions records hold: float32 [1, 3, size, size]. It must not change from version to version,
    so it is not rounded to whole bytes as the frames of the comparisons are."""
    from ..parity.comparison import SEED
    from ..precision.calibration import calibration_clips

    rgb = calibration_clips(SEED, clips=1, frames=1, size=rule.size, mean=0.0, std=1.0)[:, :, 0]
    mean, std = np.reshape(rule.mean, (3, 1, 1)), np.reshape(rule.std, (3, 1, 1))
    return np.asarray((rgb - mean) / std, dtype=np.float32)


def _read_record(path: Path) -> dict[str, KnownCaption]:
    if not path.exists():
        return {}
    try:
        return msgspec.json.decode(read_regular(path, largest=MAX_RECORD), type=dict[str, KnownCaption])
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise DataError(
            f"{printable_path(path)} is no record of captions: {error}", fix="give another --record"
        ) from error


def network_of(path: Path) -> str | None:
    """Network of a weights file, by its folder's config.json or its name; None when unknown."""
    config = path.parent / "config.json"
    if path.name in WEIGHT_FILES and config.is_file():
        try:
            described: Any = json.loads(read_regular(config, largest=MAX_RECORD))
        except (ValueError, RecursionError, DataError, StorageError):
            return None
        kind = described.get("model_type") if isinstance(described, Mapping) else None
        return _MODEL_TYPES.get(str(kind))
    return next((release.network for release in RELEASES if release.file == path.name), None)


def _release_of(path: Path) -> Release | None:
    network = network_of(path)
    return next((one for one in RELEASES if one.network == network and one.file == path.name), None)
