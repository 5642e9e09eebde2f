"""From a command line to a desk: defaults of the data set, features found or extracted, worker processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ...base.errors import UsageError
from ...base.progress import progress_bar
from ...base.shutdown import Shutdown
from ..datasets import KNOWN, find_videos
from .commands import Desk
from .extraction import ExtractionRequest, default_weights, extract_all, miniworld_videos
from .features import SINGLE, VARIANTS, FeatureSource, open_features, untrained_marker
from .given import read_given
from .numbers import MINIWORLD
from .pool import Workplace
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
    results: Path | None = None
    classes: tuple[str, ...] = ()
    jobs: int = 1


def open_desk(request: Request) -> Desk:
    """Find the features (extracting them first where videos are given and stores are missing) and fill in the defaults.

    Raises UsageError on a name that does not exist, DataError when there are no features.
    """
    if request.dataset and request.dataset not in SCALES:
        raise UsageError(f"--dataset {request.dataset}: expected one of {', '.join(SCALES)}")
    source = _source(request)
    data = open_features(source)
    settings = _settings(request)
    context = Context(data, settings, read_given(request.results, request.dataset))
    place = Workplace(source, request.out / "runs", settings.dataset, request.videos, request.jobs)
    return Desk(context, place, request.out, Shutdown.on_signals())


def extract_features(
    dataset: str, videos: Path | None, out: Path, weights: str, names: Sequence[str], captions: Path | None
) -> dict[str, Any]:
    """Every single extractor's features into ``out``/features. Raises as the two commands behind it do."""
    if dataset and dataset not in SCALES:
        raise UsageError(f"--dataset {dataset}: expected one of {', '.join(SCALES)}")
    if videos is None:
        if dataset != MINIWORLD:
            raise UsageError(
                f"extract needs --videos DIR for {dataset or 'your own clips'}; only miniworld is rendered"
            )
        videos = miniworld_videos(out / "videos")
    elif dataset in KNOWN:
        find_videos(KNOWN[dataset], videos)
    folder = out / "features"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = tuple(names) or (*SINGLE, *VARIANTS)
    request = ExtractionRequest(folder, videos, weights or default_weights(dataset), wanted, captions)
    with progress_bar("extracting", len(wanted), unit="extractors") as progress:
        return extract_all(request, progress)


def _source(request: Request) -> FeatureSource:
    if request.store is not None:
        return FeatureSource(folder=request.store) if request.store.is_dir() else FeatureSource(store=request.store)
    folder = request.out / "features"
    if request.videos is not None or (request.dataset == MINIWORLD and not folder.is_dir()):
        missing = [
            name
            for name in (*SINGLE, *VARIANTS)
            if not (folder / f"{name}.sqlite").is_file() and not untrained_marker(folder, name).is_file()
        ]
        if missing:
            extract_features(request.dataset, request.videos, request.out, "", missing, None)
    return FeatureSource(folder=folder)


def _settings(request: Request) -> Settings:
    scale: Scale = SCALES.get(request.dataset, OTHER)
    asked = {
        "epochs": request.epochs,
        "batch_size": request.batch_size,
        "learning_rate": request.learning_rate,
    }
    train = msgspec.structs.replace(scale.train, **{name: value for name, value in asked.items() if value is not None})
    if request.split and request.split not in SPLITS:
        raise UsageError(f"--split {request.split}: expected one of {', '.join(SPLITS)}")
    split = SplitRule(request.split) if request.split else scale.split  # type: ignore[arg-type]
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
