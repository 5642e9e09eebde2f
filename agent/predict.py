"""Labels for new videos: the bundle's embeddings through a trained head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..base.errors import DataError, StorageError
from ..fedproto.model_file import ModelFile, read_model
from ..runtime.autotune.selection import AutotuneRequest, autotune_backends
from ..runtime.backends.opening import GraphPlacement, OpeningOptions
from ..runtime.bundle.signature import TrustedKeys
from ..runtime.clip_records import Clip
from ..runtime.extractor import open_extractor
from ..runtime.video.decoder import DecodeLimits
from .extraction.clips import scan_clips
from .extraction.contents import content_hash
from .training.trainer import HeadTrainer, log_softmax


@dataclass(frozen=True)
class LabelProbability:
    label: str
    probability: float  # softmax, 0 to 1


@dataclass(frozen=True)
class Prediction:
    """The labels of one video; ``reason`` is set instead when it could not be read."""

    video: Path
    labels: tuple[LabelProbability, ...] = ()  # most probable first
    caption: str = ""
    reason: str = ""

    @property
    def label(self) -> str:
        """The most probable label; empty when the video could not be read."""
        return self.labels[0].label if self.labels else ""


def predict_videos(
    bundle: Path,
    model: Path | ModelFile,
    videos: Sequence[Path],
    *,
    top: int = 5,
    opening: OpeningOptions | None = None,
    trusted: TrustedKeys = (),
    on_open: Callable[[Sequence[GraphPlacement]], None] = lambda _: None,
) -> Iterator[Prediction]:
    """Yield one Prediction per video, in order; a broken one yields its reason, and the others are not affected.

    ``opening`` chooses where the networks run, ``on_open`` is called once with where they do. Raises DataError when
    the model was trained on another bundle's features, or none of the ``trusted`` keys, where some are
    given, has signed the bundle.
    """
    opening = opening or OpeningOptions()
    if opening.backend_options.autotune:
        question = AutotuneRequest(bundle, threads=opening.threads, trusted=trusted)
        choice = autotune_backends(question, _readable(videos), notice=opening.notice)
        opening.notice(choice.line)
        opening = replace(opening, backend_options=choice.backend_options)
    read = model if isinstance(model, ModelFile) else read_model(model)
    trainer = HeadTrainer(read.head, threads=opening.threads)
    with open_extractor(bundle, opening=opening, trusted=trusted) as extractor:
        on_open(tuple(extractor.placements.values()))
        if read.fingerprint != extractor.manifest.fingerprint:
            raise DataError(
                f"{'the model' if read is model else model} was trained on features of bundle {read.fingerprint[:12]}, "
                f"{bundle} is {extractor.manifest.fingerprint[:12]}",
                fix="use the bundle that the run's features were extracted with",
                code="other_bundle",
            )
        for video in videos:
            try:
                features = extractor.extract(Clip(path=video, sha256=content_hash(video, DecodeLimits())))
            except (DataError, StorageError) as error:
                yield Prediction(video, reason=f"{error.code}: {error.message}")
                continue
            x = np.concatenate([features.vlm, features.cnn])[None]
            yield Prediction(video, _top_labels(trainer, read, x, top), features.caption.text)


def find_videos(paths: Sequence[Path]) -> tuple[list[Path], list[Prediction]]:
    """Return the video files of ``paths``, folders searched as by ``extract``, and what of them cannot be a video.

    A path that is no folder is taken as a video file, whatever it is.
    """
    videos, problems = [], []
    for path in paths:
        if not path.is_dir():
            videos.append(path)
            continue
        try:
            folder = scan_clips(path, labelled=False)
        except (DataError, StorageError) as error:
            problems.append(Prediction(path, reason=f"{error.code}: {error.message}"))
            continue
        videos += [clip.path for clip in folder.clips]
        problems += [Prediction(path / found.name, reason=f"{found.code}: {found.reason}") for found in folder.problems]
        if not folder.clips and not folder.problems:
            problems.append(Prediction(path, reason="no_clips: there are no video files in this folder"))
    return videos, problems


def _readable(videos: Sequence[Path]) -> Iterator[Clip]:
    for video in videos:
        with suppress(DataError):  # reported when its turn comes
            yield Clip(path=video, sha256=content_hash(video, DecodeLimits()))


def _top_labels(trainer: HeadTrainer, model: ModelFile, x: np.ndarray, top: int) -> tuple[LabelProbability, ...]:
    probability = np.exp(log_softmax(trainer.logits(model.params, x)))[0]
    best = np.argsort(-probability, kind="stable")[:top]
    return tuple(LabelProbability(model.labels[index], float(probability[index])) for index in best)
