"""From videos to one feature store per extractor: the same two commands that a silo's administrator types.

Resumable: a bundle that is there is used, a store is brought up to date. An extractor whose network
is not trained leaves a marker, and its rows say "untrained".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...base.errors import UsageError
from ...base.files import write_atomic
from ...base.progress import Progress, progress_bar
from ..processes import CommandFailed, run_command
from .features import SINGLE, VARIANTS, untrained_marker
from .numbers import MINIWORLD

VARIANT_OPTIONS = {
    "blip-4frames": ("--extractor", "blip", "--captioned-frames", "4"),
    "blip-causal-last": ("--extractor", "blip", "--cross-attention", "causal-last"),
    "blip-causal-first": ("--extractor", "blip", "--cross-attention", "causal-first"),
}
MINIWORLD_GROUPS = 30  # scenes; every class once in each: 750 clips
MINIWORLD_SEED = 0


@dataclass(frozen=True)
class ExtractionRequest:
    folder: Path  # of the stores; bundles and reports stand beside them
    videos: Path
    weights: str  # miniworld, published, random:tiny, …
    extractors: tuple[str, ...] = (*SINGLE, *VARIANTS)
    captions: Path | None = None  # CLIP's, a file of caption per class


def extract_all(request: ExtractionRequest, progress: Progress) -> dict[str, Any]:
    """Every extractor's state: its extraction's report, or why there is none. Raises CommandFailed."""
    for name in request.extractors:
        if name not in SINGLE and name not in VARIANTS:
            raise UsageError(f"there is no single extractor {name!r}; known: {', '.join([*SINGLE, *VARIANTS])}")
    done: dict[str, Any] = {}
    for name in request.extractors:
        progress.describe(name)
        done[name] = _extract_one(request, name)
        progress.advance()
    return done


def report_file(folder: Path, name: str) -> Path:
    """What the last extraction that did something said: times per stage and memory."""
    return folder / f"{name}.extraction.json"


def _extract_one(request: ExtractionRequest, name: str) -> dict[str, Any]:
    marker = untrained_marker(request.folder, name)
    bundle = request.folder / "bundles" / name
    if not bundle.is_dir():
        try:
            run_command("export", *_export_arguments(request, name, bundle))
        except CommandFailed as error:
            if error.reported != "untrained":
                raise
            write_atomic(marker, error.message.encode())
            return {"status": "untrained"}
    marker.unlink(missing_ok=True)
    store = request.folder / f"{name}.sqlite"
    report = run_command("agent", "extract", "--bundle", bundle, "--videos", request.videos, "--store", store)
    if report.get("extracted"):
        write_atomic(report_file(request.folder, name), json.dumps(report, indent=1).encode())
    return report


def _export_arguments(request: ExtractionRequest, name: str, bundle: Path) -> list[str | Path]:
    chosen: Sequence[str] = VARIANT_OPTIONS.get(name, ("--extractor", name))
    arguments: list[str | Path] = ["--backend", "onnx", *chosen, "--weights", request.weights, "--out", bundle]
    if request.captions is not None and name == "clip":
        arguments += ["--captions", request.captions]
    return arguments


def miniworld_videos(folder: Path) -> Path:
    """The experiments' mini-world in ``folder``, rendered when it is not there."""
    if not (folder / "labels.csv").is_file():
        from ..miniworld import MOTIONS, OBJECTS, render_dataset

        clips = MINIWORLD_GROUPS * len(OBJECTS) * len(MOTIONS)
        with progress_bar("rendering the mini-world", clips, unit="clips") as progress:
            render_dataset(folder, groups=MINIWORLD_GROUPS, seed=MINIWORLD_SEED, progress=progress)
    return folder


def default_weights(dataset: str) -> str:
    return "miniworld" if dataset == MINIWORLD else "published"
