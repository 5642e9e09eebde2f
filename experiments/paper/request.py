"""From a request to an experiment's context: defaults of the data set, features found or extracted first."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from ...agent.extraction.clips import check_videos_folder, find_clips
from ...base.errors import DataError, UsageError
from ...base.files import printable_path
from ...base.process import Shutdown
from ...base.progress import progress_bar
from ...fedproto.records import Strategy
from ..datasets import KNOWN, find_videos
from ..silos import is_miniworld
from .experiments import ExperimentContext
from .external_runs import read_external_runs
from .extraction import (
    ExtractionRequest,
    check_export_packages,
    check_extractors,
    default_weights,
    extract_all,
    miniworld_videos,
    rendering_warnings,
    stored_clips,
)
from .features import SINGLE, VARIANTS, FeatureSource, open_features, untrained_marker
from .grid import GridInputs, variants
from .inputs import OTHER, SCALES, ExperimentInputs, Scale, Settings
from .output_folder import changed_texts, output_folder, setting_texts
from .pool import WorkerConfig
from .printed_values import MINIWORLD
from .splits import SPLITS, SplitRule


@dataclass(frozen=True)
class ExperimentRequest:
    """Options of an experiment; None and "" mean the data set's defaults."""

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
    strategy: Strategy | None = None  # None: the experiment's own
    split: str = ""
    test_share: float | None = None  # of the clips, where whole groups are held out
    results: Path | None = None
    classes: tuple[str, ...] = ()
    jobs: int = 1
    captions: Path | None = None  # CLIP's, where features are extracted first
    fingerprint: str | None = None  # of the features, where a store holds several kinds
    precision: str | None = None
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # values of the options that take lists

    def variants(self) -> list[tuple[Mapping[str, str], ExperimentRequest]]:
        """The request of every combination of the choices, with the labels of its rows."""
        return [
            (
                variant.labels,
                replace(
                    self, choices={}, **{"strategy" if k == "strategies" else k: v for k, v in variant.values.items()}
                ),
            )
            for variant in variants(self.choices)
        ]


@dataclass(frozen=True)
class ExtractOptions:
    """Options of ``extract``."""

    out: Path
    dataset: str = ""
    videos: Path | None = None  # None: the mini-world's, rendered if missing
    weights: str = ""  # "": the data set's
    names: tuple[str, ...] = ()  # all by default
    captions: Path | None = None
    sources: Mapping[str, str] = field(default_factory=dict)  # by network, in place of ``weights``


@dataclass(frozen=True)
class ExtractedDataset:
    """The weights that were used, a report per extractor, and in what the videos differ from the whole data set."""

    weights: str
    reports: Mapping[str, Any]
    warnings: tuple[str, ...] = ()


def open_context(request: ExperimentRequest, fixed: Collection[str] = ()) -> ExperimentContext:
    """Find the features and fill in the defaults; with videos, missing stores are extracted first.

    ``fixed``: settings that the experiment has of its own. Raises UsageError on an unknown name, DataError when there
    are no features.
    """
    _check_dataset(request.dataset)
    if request.videos is not None:
        check_videos_folder(request.videos)
    if request.split and request.split not in SPLITS:
        raise UsageError(
            f"--split {request.split}: expected one of {', '.join(SPLITS)}", fix=f"--split {SPLITS[0]}, or leave it out"
        )
    if request.test_share is not None and _settings(request).split.kind != "groups":
        raise UsageError(f"--test-share {request.test_share:g} needs a split by whole groups", fix="add --split groups")
    if request.results is not None and not request.results.is_dir():
        raise UsageError(
            f"--results {request.results}: there is no such folder",
            fix="give the folder that flamest-experiment kd or actionclip wrote with --out",
        )
    requests = request.variants()
    settings = _settings(requests[0][1])
    source = feature_source(request)
    data = open_features(source)
    external = read_external_runs(request.results, request.dataset)
    grid = tuple(GridInputs(labels, ExperimentInputs(data, _settings(one), external)) for labels, one in requests)
    texts = setting_texts(settings, request.choices, _features_text(request))
    changed = changed_texts(texts, setting_texts(_settings(ExperimentRequest(dataset=request.dataset)), {}), fixed)
    worker = WorkerConfig(source, request.out / "runs", settings.dataset, request.videos, request.jobs)
    return ExperimentContext(
        grid[0].inputs,
        worker,
        output_folder(request.out, texts, changed, fixed),
        Shutdown.on_signals(),
        grid=grid,
        changed=tuple(changed.values()),
    )


def _features_text(request: ExperimentRequest) -> str:
    """The features that were asked for, as text; empty for those in OUT."""
    store = "" if request.store is None else str(request.store.resolve())
    return " ".join(part for part in (store, request.fingerprint, request.precision) if part)


def extract_features(options: ExtractOptions) -> ExtractedDataset:
    """Every single extractor's features into ``out``/features.

    Options are checked before anything is rendered. Raises UsageError, DataError and StorageError, and what
    ``extract_all`` raises.
    """
    _check_dataset(options.dataset)
    check_extractors(options.names)
    if options.captions is not None and not options.captions.is_file():
        raise UsageError(
            f"--captions {options.captions}: there is no such file", fix="give a text file with one caption per line"
        )
    dataset, videos = options.dataset, options.videos
    warnings: tuple[str, ...] = ()
    if videos is not None:
        check_videos_folder(videos)
    folder, names = options.out / "features", options.names or (*SINGLE, *VARIANTS)
    check_export_packages(folder, names)
    if videos is None:
        if dataset not in ("", MINIWORLD):
            raise UsageError(
                f"extract needs --videos DIR for {dataset}; only miniworld is rendered",
                fix=f"flamest-experiment extract --dataset {dataset} --videos DIR",
            )
        dataset, videos = MINIWORLD, miniworld_videos(options.out / "videos")
        warnings = rendering_warnings(videos)
    elif dataset in KNOWN:
        warnings = find_videos(KNOWN[dataset], videos).warnings
    else:
        _count_clips(videos)
    if not dataset and is_miniworld(videos):
        dataset = MINIWORLD
    folder.mkdir(parents=True, exist_ok=True)
    weights = options.weights or default_weights(dataset)
    request = ExtractionRequest(
        folder, videos, weights, names, options.captions, options.sources, bool(options.weights)
    )
    with progress_bar("extracting", len(names), unit="extractors") as progress:
        return ExtractedDataset(weights, extract_all(request, progress), warnings)


def _check_dataset(dataset: str) -> None:
    if dataset and dataset not in SCALES:
        raise UsageError(
            f"--dataset {dataset}: expected one of {', '.join(SCALES)}", fix=f"--dataset {next(iter(SCALES))}"
        )


def feature_source(request: ExperimentRequest) -> FeatureSource:
    """The requested store, or OUT/features after extracting what is missing there."""
    kind = FeatureSource(fingerprint=request.fingerprint, precision=request.precision)
    if request.store is not None:
        is_folder = request.store.is_dir()
        return replace(kind, folder=request.store) if is_folder else replace(kind, store=request.store)
    folder = request.out / "features"
    missing = _unfinished(request, folder)
    if missing:
        extract_features(ExtractOptions(request.out, request.dataset, request.videos, "", missing, request.captions))
    return replace(kind, folder=folder)


def _unfinished(request: ExperimentRequest, folder: Path) -> tuple[str, ...]:
    """The extractors whose store is missing or holds fewer clips than there are videos.

    Without videos nothing is missing, except for the mini-world on a machine without features. Raises DataError when
    the folder of videos holds no clip.
    """
    extractors = (*SINGLE, *VARIANTS)
    if request.videos is None:
        return extractors if request.dataset == MINIWORLD and not folder.is_dir() else ()
    clips = _count_clips(request.videos)
    return tuple(
        name
        for name in extractors
        if not untrained_marker(folder, name).is_file() and stored_clips(folder / f"{name}.sqlite") < clips
    )


def _count_clips(videos: Path) -> int:
    """Number of clips in the folder given as ``--videos``. Raises DataError when it holds none."""
    clips = len(find_clips(videos))
    if not clips:
        raise DataError(
            f"{printable_path(videos)} holds no clips",
            fix="arrange them as LABEL/clip.ext in --videos DIR",
            code="no_clips",
        )
    return clips


def _settings(request: ExperimentRequest) -> Settings:
    scale: Scale = SCALES.get(request.dataset, OTHER)
    changes = {
        "epochs": request.epochs,
        "batch_size": request.batch_size,
        "learning_rate": request.learning_rate,
    }
    train = msgspec.structs.replace(
        scale.train, **{name: value for name, value in changes.items() if value is not None}
    )
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
        request.strategy,
    )
