"""From a command line to a desk: defaults of the data set, features found or extracted, worker processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from ...agent.extraction.clips import find_clips
from ...base.errors import DataError, UsageError
from ...base.files import printable_path
from ...base.process import Shutdown
from ...base.progress import progress_bar
from ..datasets import KNOWN, find_videos
from ..silos import is_miniworld
from .commands import ExperimentContext
from .external_runs import read_given
from .extraction import (
    ExtractionRequest,
    check_extractors,
    default_weights,
    extract_all,
    miniworld_videos,
    rendered_before,
    stored_clips,
)
from .features import SINGLE, VARIANTS, FeatureSource, open_features, untrained_marker
from .numbers import MINIWORLD
from .pool import WorkerConfig
from .settings import OTHER, SCALES, Context, Scale, Settings
from .splits import SPLITS, SplitRule


@dataclass(frozen=True)
class Request:
    """What was asked for; None and "" leave it to the data set's defaults."""

    store: Path | None = None  # one store, or a folder of NAME.sqlite
    dataset: str = ""
    videos: Path | None = None
    out: Path = Path("experiments-out")
    seeds: int | None = None
    rounds: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    silos: int = 4
    beta: float = 0.6
    split: str = ""
    test_share: float | None = None  # of the clips, where whole groups are held out
    results: Path | None = None
    classes: tuple[str, ...] = ()
    jobs: int = 1
    captions: Path | None = None  # CLIP's, where features are extracted first
    fingerprint: str | None = None  # of the features, where a store holds several kinds
    precision: str | None = None


@dataclass(frozen=True)
class Extraction:
    """What ``extract`` was asked for."""

    out: Path
    dataset: str = ""
    videos: Path | None = None  # None: the mini-world's, rendered where they are missing
    weights: str = ""  # "": the data set's
    names: tuple[str, ...] = ()  # all by default
    captions: Path | None = None
    sources: Mapping[str, str] = field(default_factory=dict)  # by network, in place of ``weights``


@dataclass(frozen=True)
class Extracted:
    """``weights``: those that were used; ``reports``: by extractor; ``warnings``: how the videos differ from the
    whole data set."""

    weights: str
    reports: Mapping[str, Any]
    warnings: tuple[str, ...] = ()


def open_desk(request: Request) -> ExperimentContext:
    """Find the features (extracting them first where videos are given and stores are missing) and fill in the defaults.

    Raises UsageError on a name that does not exist, DataError when there are no features.
    """
    _check_dataset(request.dataset)
    if request.split and request.split not in SPLITS:
        raise UsageError(f"--split {request.split}: expected one of {', '.join(SPLITS)}")
    if request.test_share is not None and _settings(request).split.kind != "groups":
        raise UsageError(
            f"--test-share {request.test_share:g} is of whole groups that are held out", fix="add --split groups"
        )
    if request.results is not None and not request.results.is_dir():
        raise UsageError(
            f"--results {request.results}: there is no such folder",
            fix="give the folder that flamest-experiment kd or actionclip wrote with --out",
        )
    settings = _settings(request)
    source = _source(request)
    data = open_features(source)
    context = Context(data, settings, read_given(request.results, request.dataset))
    place = WorkerConfig(source, request.out / "runs", settings.dataset, request.videos, request.jobs)
    return ExperimentContext(context, place, request.out, Shutdown.on_signals())


def extract_features(asked: Extraction) -> Extracted:
    """Every single extractor's features into ``out``/features.

    Everything that can be refused is refused before anything is rendered. Raises UsageError, DataError
    and StorageError so, and what ``extract_all`` raises.
    """
    _check_dataset(asked.dataset)
    check_extractors(asked.names)
    if asked.captions is not None and not asked.captions.is_file():
        raise UsageError(f"--captions {asked.captions}: there is no such file")
    dataset, videos = asked.dataset, asked.videos
    warnings: tuple[str, ...] = ()
    if videos is None:
        if dataset not in ("", MINIWORLD):
            raise UsageError(f"extract needs --videos DIR for {dataset}; only miniworld is rendered")
        dataset, videos = MINIWORLD, miniworld_videos(asked.out / "videos")
        warnings = rendered_before(videos)
    elif dataset in KNOWN:
        warnings = find_videos(KNOWN[dataset], videos).warnings
    elif not find_clips(videos):
        raise DataError(
            f"{printable_path(videos)} holds no clips", fix="arrange them as LABEL/clip.ext in --videos DIR"
        )
    if not dataset and is_miniworld(videos):
        dataset = MINIWORLD
    folder = asked.out / "features"
    folder.mkdir(parents=True, exist_ok=True)
    weights = asked.weights or default_weights(dataset)
    wanted = asked.names or (*SINGLE, *VARIANTS)
    request = ExtractionRequest(folder, videos, weights, wanted, asked.captions, asked.sources, bool(asked.weights))
    with progress_bar("extracting", len(wanted), unit="extractors") as progress:
        return Extracted(weights, extract_all(request, progress), warnings)


def _check_dataset(dataset: str) -> None:
    if dataset and dataset not in SCALES:
        raise UsageError(f"--dataset {dataset}: expected one of {', '.join(SCALES)}")


def _source(request: Request) -> FeatureSource:
    kind = FeatureSource(fingerprint=request.fingerprint, precision=request.precision)
    if request.store is not None:
        given = request.store
        return replace(kind, folder=given) if given.is_dir() else replace(kind, store=given)
    folder = request.out / "features"
    missing = _unfinished(request, folder)
    if missing:
        asked = Extraction(request.out, request.dataset, request.videos, "", missing, request.captions)
        extract_features(asked)
    return replace(kind, folder=folder)


def _unfinished(request: Request, folder: Path) -> tuple[str, ...]:
    """The extractors whose store is missing or holds fewer clips than the videos are.

    Without videos nothing is missing, but the mini-world's on a machine that has no features yet.
    """
    every = (*SINGLE, *VARIANTS)
    if request.videos is None:
        return every if request.dataset == MINIWORLD and not folder.is_dir() else ()
    clips = len(find_clips(request.videos))
    return tuple(
        name
        for name in every
        if not untrained_marker(folder, name).is_file() and stored_clips(folder / f"{name}.sqlite") < clips
    )


def _settings(request: Request) -> Settings:
    scale: Scale = SCALES.get(request.dataset, OTHER)
    asked = {
        "epochs": request.epochs,
        "batch_size": request.batch_size,
        "learning_rate": request.learning_rate,
    }
    train = msgspec.structs.replace(scale.train, **{name: value for name, value in asked.items() if value is not None})
    split = scale.split
    if request.split not in ("", split.kind):
        split = SplitRule(request.split)  # type: ignore[arg-type]
    if request.test_share is not None:
        split = msgspec.structs.replace(split, share=request.test_share)
    return Settings(
        request.dataset,
        scale,
        request.rounds or scale.rounds,
        request.seeds or scale.seeds,
        train,
        split,
        request.silos,
        request.beta,
        request.results,
        request.videos,
        request.classes,
    )
