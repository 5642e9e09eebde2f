"""Work of the suggestions' child process: the bundle and the model stay open from one video to the next."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...base.errors import DataError
from ...fedproto.model_file import ModelFile, read_model
from ...runtime.bundle.signature import TrustedKeys

LOW_PRIORITY = 15  # of -20 to 19: labels are saved and videos play meanwhile
MAX_FILE = 4_000_000_000  # bytes: a longer recording is not decoded for one suggestion


@dataclass(frozen=True)
class SuggestionRequest:
    """Model, bundle and store to suggest with."""

    bundle: Path
    model: Path
    store: Path | None = None  # the feature store of the same folder, read only
    trusted: TrustedKeys = ()
    threads: int | None = 1


_open: dict[SuggestionRequest, tuple[Any, Any, ModelFile]] = {}  # in the child process
_stack = contextlib.ExitStack()


def suggest_from_store(request: SuggestionRequest) -> list[tuple[str, str, float]]:
    """Return path, label and probability for each whole video whose features the store holds. Raises FlamestError."""
    from ..extraction.store import FeatureStore
    from ..training.trainer import HeadTrainer

    _lower_priority()
    assert request.store is not None
    model = read_model(request.model)
    with FeatureStore.open(request.store, read_only=True) as store:
        kinds = [kind for kind in store.kinds() if kind.fingerprint == model.fingerprint]
        if not kinds:
            return []
        features = store.read(kinds[0].fingerprint, kinds[0].precision)
    trainer = HeadTrainer(model.head, threads=request.threads)
    found = []
    for row, (path, segment) in enumerate(zip(features.paths, features.segments, strict=True)):
        if segment is None:
            found.append((path, *_best(trainer, model, features.x[row : row + 1])))
    return found


def open_networks(request: SuggestionRequest, root: Path) -> None:
    """Open bundle and model, which stay open. Raises FlamestError for what no video could be suggested with."""
    _lower_priority()
    _opened(request, root)


def suggest_for_video(request: SuggestionRequest, root: Path, path: str) -> tuple[str, float]:
    """Return label and probability for a video of the folder ``root``. Raises FlamestError."""
    from ...runtime.clip_records import Clip
    from ...runtime.video.decoder import DecodeLimits
    from ..extraction.contents import content_hash

    extractor, trainer, model = _opened(request, root)
    limits = DecodeLimits(largest_file=MAX_FILE, inside=root)
    features = extractor.extract(Clip(path=root / path, sha256=content_hash(root / path, limits)))
    return _best(trainer, model, np.concatenate([features.vlm, features.cnn])[None])


def _opened(request: SuggestionRequest, root: Path) -> tuple[Any, Any, ModelFile]:
    if request not in _open:
        from ...runtime.backends.opening import OpeningOptions
        from ...runtime.extractor import open_extractor
        from ...runtime.video.decoder import DecodeLimits
        from ..training.trainer import HeadTrainer

        model = read_model(request.model)
        opening = OpeningOptions(threads=request.threads)
        limits = DecodeLimits(largest_file=MAX_FILE, inside=root)
        extractor = _stack.enter_context(
            open_extractor(request.bundle, opening=opening, trusted=request.trusted, limits=limits)
        )
        if model.fingerprint != extractor.manifest.fingerprint:
            raise DataError(
                f"the model was trained on features of bundle {model.fingerprint[:12]}, not of this one",
                fix="give the bundle that the run's features were extracted with: --bundle DIR",
                code="other_bundle",
            )
        _open[request] = extractor, HeadTrainer(model.head, threads=request.threads), model
    return _open[request]


def _best(trainer: Any, model: ModelFile, x: Any) -> tuple[str, float]:
    from ..training.trainer import log_softmax

    probability = np.exp(log_softmax(trainer.logits(model.params, x)))[0]
    best = int(np.argmax(probability))
    return model.labels[best], float(probability[best])


def _lower_priority() -> None:
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, LOW_PRIORITY)
