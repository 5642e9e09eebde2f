"""From videos to one feature store per extractor, by the two commands that a silo's administrator uses.

Resumable: a bundle made from the requested weights is reused, and its store is brought up to date. A bundle
of other weights is built again, and the store of the old one is moved aside. An extractor whose network is
not trained leaves a marker, and its rows say "untrained"; a failure does not end the other extractors.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from ...agent.extraction.clips import find_clips
from ...base.errors import (
    DataError,
    FlamestError,
    MissingExtra,
    SettingsError,
    StorageError,
    UnreachableError,
    UsageError,
)
from ...base.extras import EXPORT_MODULES, missing_package
from ...base.files import printable_path, write_atomic
from ...base.progress import Progress, progress_bar
from ..miniworld.videos import CLASSES, EXPERIMENT_GROUPS, EXPERIMENT_SEED, render_dataset
from ..processes import CommandFailed, run_command
from .features import SINGLE, VARIANTS, untrained_marker
from .printed_values import MINIWORLD

VARIANT_OPTIONS = {
    "blip-4frames": ("--extractor", "blip", "--captioned-frames", "4"),
    "blip-causal-last": ("--extractor", "blip", "--cross-attention", "causal-last"),
    "blip-causal-first": ("--extractor", "blip", "--cross-attention", "causal-first"),
}
MINIWORLD_CLIPS = EXPERIMENT_GROUPS * len(CLASSES)


@dataclass(frozen=True)
class ExtractionRequest:
    """Extractors to run, on which videos, with which weights."""

    folder: Path  # of the stores; bundles and reports are next to them
    videos: Path
    weights: str  # miniworld, published, random:tiny, …
    extractors: tuple[str, ...] = (*SINGLE, *VARIANTS)
    captions: Path | None = None  # CLIP's: a file with a caption per class
    sources: Mapping[str, str] = field(default_factory=dict)  # by network, in place of ``weights``
    chosen: bool = True  # the user chose ``weights``; a default accepts the existing bundle


class BundleOrigin(msgspec.Struct, frozen=True):
    """Origin of a bundle, in a file next to it."""

    weights: str
    sources: dict[str, str] = {}
    captions_sha256: str = ""
    trained_sha256: str = ""  # of the mini-world's weights files


def check_extractors(names: Sequence[str]) -> None:
    """Check that every name is a single extractor's. Raises UsageError otherwise."""
    for name in names:
        if name not in SINGLE and name not in VARIANTS:
            raise UsageError(
                f"there is no single extractor {name!r}; known: {', '.join([*SINGLE, *VARIANTS])}",
                fix="--extractors blip,slow",
            )


def check_export_packages(folder: Path, names: Sequence[str]) -> None:
    """Raise MissingExtra where an extractor has no bundle in ``folder`` and the packages to make one are missing."""
    if all((folder / "bundles" / name).is_dir() for name in names):
        return
    if package := missing_package(EXPORT_MODULES):
        raise MissingExtra(package, extra="export")


def extract_all(request: ExtractionRequest, progress: Progress) -> dict[str, Any]:
    """Extract with every extractor; returns its report, or ``status`` and ``why`` where it failed.

    Raises UnreachableError at the first source that cannot be reached, SettingsError where a package is missing, the
    last failure, with its exit code, when none could be extracted, UsageError on an unknown name.
    """
    check_extractors(request.extractors)
    done: dict[str, Any] = {}
    failed: CommandFailed | None = None
    for name in request.extractors:
        progress.describe(name)
        try:
            done[name] = _extract_one(request, name)
        except CommandFailed as error:
            if error.exit_status < 0 or error.exit_status > 128:  # ended by a signal
                raise
            if error.exit_status == UnreachableError.exit_code:  # the next source is on the same network
                raise _unreachable(name, error) from error
            if error.error_code == MissingExtra.code:  # the next extractor needs the same packages
                raise SettingsError(error.error_message, fix=error.error_fix, code=error.error_code) from error
            failed = error
            done[name] = {"status": "not extracted", "why": error.error_message or error.message}
        progress.advance()
    if failed is not None and all(report.get("status") == "not extracted" for report in done.values()):
        raise _with_exit_code(failed)
    return done


def _unreachable(name: str, failed: CommandFailed) -> UnreachableError:
    """The error of a hub that cannot be reached, naming the extractor and what was tried."""
    return UnreachableError(
        f"the weights of {name} cannot be fetched, so the extraction stops here: "
        f"{failed.error_message or failed.message}",
        fix=(
            "connect this machine, or give local files (flamest-experiment extract --blip DIR --slow FILE …) or "
            "--weights miniworld, and run the command again: finished extractors are kept"
        ),
        code=failed.error_code or None,
    )


def _with_exit_code(failed: CommandFailed) -> FlamestError:
    """The failure as an error with the exit code of the failed command."""
    kinds: tuple[type[FlamestError], ...] = (UsageError, DataError, StorageError, SettingsError)
    known = {kind.exit_code: kind for kind in kinds}
    if failed.exit_status not in known:
        return failed
    return known[failed.exit_status](
        f"no extractor could be used; the last error: {failed.error_message or failed.message}", fix=failed.error_fix
    )


def report_file(folder: Path, name: str) -> Path:
    """Report of the last extraction that extracted a clip: times per stage and memory."""
    return folder / f"{name}.extraction.json"


def _extract_one(request: ExtractionRequest, name: str) -> dict[str, Any]:
    marker = untrained_marker(request.folder, name)
    bundle = request.folder / "bundles" / name
    store = request.folder / f"{name}.sqlite"
    origin = _origin(request, name)
    if not _is_current(bundle, origin, request):
        building = bundle.with_name(f"{name}.new")
        shutil.rmtree(building, ignore_errors=True)
        try:
            run_command("export", *_export_arguments(request, name, building))
        except CommandFailed as error:
            if error.error_code != "untrained":
                raise
            write_atomic(marker, error.message.encode())
            return {"status": "untrained"}
        _replace(bundle, building, store)
        write_atomic(_origin_file(bundle), msgspec.json.encode(origin))
    marker.unlink(missing_ok=True)
    report = run_command("agent", "extract", "--bundle", bundle, "--videos", request.videos, "--store", store)
    if report.get("extracted"):
        write_atomic(report_file(request.folder, name), json.dumps(report, indent=1).encode())
    return report


def _origin_file(bundle: Path) -> Path:
    return bundle.with_name(f"{bundle.name}.origin.json")


def _networks(name: str) -> tuple[str, ...]:
    from ...export.networks.extractors import find_extractor

    return tuple(find_extractor("blip" if name in VARIANTS else name).needed_networks)


def _origin(request: ExtractionRequest, name: str) -> BundleOrigin:
    networks = _networks(name)
    sources = {network: source for network, source in request.sources.items() if network in networks}
    captions = request.captions if name == "clip" else None
    return BundleOrigin(
        request.weights,
        sources,
        "" if captions is None else _file_digest([captions]),
        _trained_digest(request, networks),
    )


def _trained_digest(request: ExtractionRequest, networks: Sequence[str]) -> str:
    """Digest of the mini-world's weights of these networks, so that a new training is noticed."""
    from ...export.networks.small import SMALL_FORMS, weights_file

    used = [name for name in networks if request.sources.get(name, request.weights) == MINIWORLD]
    return _file_digest([weights_file(name) for name in used if name == "blip" or name in SMALL_FORMS])


def _file_digest(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        try:
            digest.update(path.read_bytes() + b"\0")
        except FileNotFoundError:
            digest.update(b"missing\0")
    return digest.hexdigest() if paths else ""


def _is_current(bundle: Path, origin: BundleOrigin, request: ExtractionRequest) -> bool:
    """True when the bundle exists and is made from the requested weights; a default accepts any."""
    if not bundle.is_dir():
        return False
    try:
        made = msgspec.json.decode(_origin_file(bundle).read_bytes(), type=BundleOrigin)
    except (FileNotFoundError, msgspec.DecodeError):
        made = _from_manifest(bundle, origin)
    if not request.chosen and not request.sources and request.captions is None:
        return made.weights != origin.weights or made.trained_sha256 in ("", origin.trained_sha256)
    same_captions = made.captions_sha256 == origin.captions_sha256 or request.captions is None
    same_weights = (made.weights == origin.weights or not request.chosen) and made.sources == origin.sources
    return same_weights and same_captions and made.trained_sha256 in ("", origin.trained_sha256)


def _from_manifest(bundle: Path, origin: BundleOrigin) -> BundleOrigin:
    """Origin of a bundle without a record, from the names of its sources."""
    from ...runtime.bundle.manifest_reading import read_manifest

    names = {source.name for source in read_manifest(bundle).sources.values()}
    name = names.pop() if len(names) == 1 else ""
    self_contained = name == MINIWORLD or name.startswith("random:")
    weights = name if self_contained else "published"
    sources = origin.sources if name in origin.sources.values() else {}
    return BundleOrigin(weights, sources)


def _replace(bundle: Path, building: Path, store: Path) -> None:
    """Put the new bundle in place; if its embeddings differ, keep the old store under another name."""
    from ...runtime.bundle.manifest_reading import read_manifest

    if bundle.is_dir():
        before, now = read_manifest(bundle).fingerprint, read_manifest(building).fingerprint
        if before != now:
            for end in ("", "-wal", "-shm"):
                old = store.with_name(store.name + end)
                if old.is_file():
                    old.rename(store.with_name(f"{store.stem}.{before[:12]}.sqlite{end}"))
            report_file(store.parent, store.stem).unlink(missing_ok=True)
        shutil.rmtree(bundle)
    if building.is_dir():
        building.rename(bundle)


def _export_arguments(request: ExtractionRequest, name: str, bundle: Path) -> list[str | Path]:
    chosen: Sequence[str] = VARIANT_OPTIONS.get(name, ("--extractor", name))
    arguments: list[str | Path] = ["--backend", "onnx", *chosen, "--weights", request.weights, "--out", bundle]
    if request.captions is not None and name == "clip":
        arguments += ["--captions", request.captions]
    for network in _networks(name) if request.sources else ():
        if network in request.sources:
            arguments += [f"--{network}", request.sources[network]]
    return arguments


def miniworld_videos(folder: Path) -> Path:
    """The experiments' mini-world in ``folder``, rendered if missing (whole or not at all)."""
    if not (folder / "labels.csv").is_file():
        with progress_bar("rendering the mini-world", MINIWORLD_CLIPS, unit="clips") as progress:
            render_dataset(folder, groups=EXPERIMENT_GROUPS, seed=EXPERIMENT_SEED, progress=progress)
    return folder


def rendering_warnings(folder: Path) -> tuple[str, ...]:
    """A warning if ``folder`` holds another mini-world than this version renders."""
    clips = len(find_clips(folder))
    if clips == MINIWORLD_CLIPS:
        return ()
    where = printable_path(folder)
    return (
        f"{where} holds {clips} clips, the mini-world has {MINIWORLD_CLIPS:,}: remove the folder to render it again",
    )


def stored_clips(store: Path) -> int:
    """Number of clips of the largest kind of features in the store; 0 without a store."""
    from ...agent.extraction.store import FeatureStore

    if not store.is_file():
        return 0
    with FeatureStore.open(store, create=False, read_only=True) as opened:
        return max((kind.clips for kind in opened.kinds()), default=0)


def default_weights(dataset: str) -> str:
    """The weights of a data set: the mini-world's own, and published ones for all others."""
    return "miniworld" if dataset == MINIWORLD else "published"
