"""Proving an existing bundle again: its files first, then its graphs against PyTorch."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..base.errors import DataError, UnreachableError
from ..base.files import printable_path
from ..base.progress import Progress
from ..runtime.bundle import open_bundle
from ..runtime.manifest import GraphParity, Manifest, Source
from .bundle import phase
from .parity import compare_blip, compare_slow
from .sources import DEFAULT_SLOW, is_hub_id, is_random, open_blip, open_slow

PHASES = 3  # of a verification
Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Verified:
    """What was compared. ``not_compared``: per source that cannot be loaded again, what to give."""

    manifest: Manifest
    graphs: dict[str, GraphParity]
    captions_equal: bool | None  # None: BLIP was not compared
    not_compared: dict[str, str]
    seconds: float


def verify_bundle(
    bundle: Path, progress: Progress, *, blip: str | None = None, slow: str | None = None, threads: int | None = None
) -> Verified:
    """Check every file's hash, then compare the graphs with PyTorch where the weights can be had.

    ``blip``, ``slow``: the sources to compare with; None takes the manifest's, where its name alone
    brings the weights (``random:*``, a hub id, ``slow_r50``). Raises DataError (``bundle_tampered``)
    for a changed file, (``parity_failed``) for a graph that computes something else, and
    (``other_weights``) when a source's weights are not those of the bundle.
    """
    started = time.monotonic()
    with phase(progress, "check files"):
        manifest = open_bundle(bundle).manifest
    graphs: dict[str, GraphParity] = {}
    not_compared: dict[str, str] = {}
    captions_equal: bool | None = None

    with phase(progress, "compare BLIP with PyTorch"):
        captioner = _load(open_blip, manifest.sources["blip"], blip)
        if captioner is None:
            not_compared["blip"] = _advice(manifest.sources["blip"], "--blip", bundle)
        else:
            _check_same(captioner.source, manifest.sources["blip"], "--blip")
            compared = compare_blip(captioner.model, bundle, manifest.vlm, threads=threads)
            graphs |= compared.graphs
            captions_equal = compared.captions_equal
            del captioner
            gc.collect()

    with phase(progress, "compare Slow with PyTorch"):
        network = _load(open_slow, manifest.sources["slow"], slow)
        if network is None:
            not_compared["slow"] = _advice(manifest.sources["slow"], "--slow", bundle)
        else:
            _check_same(network.source, manifest.sources["slow"], "--slow")
            graphs |= compare_slow(network.net, bundle, network.form, threads=threads)
    return Verified(manifest, graphs, captions_equal, not_compared, time.monotonic() - started)


def _load(opener: Callable[[str], Loaded], recorded: Source, given: str | None) -> Loaded | None:
    """The source as given, or as recorded; None when the recorded name does not bring the weights."""
    if given is not None:
        return opener(given)
    if is_random(recorded.name):
        return opener(recorded.name)
    if not (is_hub_id(recorded.name) or recorded.name == DEFAULT_SLOW):
        return None
    try:
        return opener(recorded.name)
    except UnreachableError:
        return None


def _advice(recorded: Source, option: str, bundle: Path) -> str:
    return f"flamest-export verify {printable_path(bundle)} {option} SRC, where SRC is '{recorded.name}' of the export"


def _check_same(found: Source, recorded: Source, option: str) -> None:
    if found.weights_sha256 != recorded.weights_sha256:
        raise DataError(
            f"{option} {found.name} holds other weights (SHA-256 {found.weights_sha256[:12]}…) than the bundle was "
            f"exported from ({recorded.weights_sha256[:12]}…, {recorded.name}, {recorded.revision})",
            fix=f"give the source that the bundle was exported from with {option}",
            code="other_weights",
        )
