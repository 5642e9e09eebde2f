"""Labels for new videos: the bundle's embeddings through a trained head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..base.errors import DataError, StorageError
from ..base.files import FileStamp
from ..fedproto.model_file import ModelFile, read_model
from ..runtime.autotune.selection import AutotuneRequest, autotune_backends
from ..runtime.backends.opening import GraphPlacement, OpeningOptions
from ..runtime.bundle.manifest import Manifest
from ..runtime.bundle.signature import TrustedKeys
from ..runtime.clip_records import Clip, Segment, clip_identity
from ..runtime.extractor import open_extractor
from ..runtime.video.decoder import DecodeLimits
from .answers import UNKNOWN, Answers, LabelProbability
from .extraction.contents import content_hash
from .named_videos import NamedVideo


@dataclass(frozen=True)
class Prediction:
    """The labels of one video, or of a segment; ``reason`` is set instead when it could not be read."""

    video: Path
    labels: tuple[LabelProbability, ...] = ()  # most probable first
    caption: str = ""
    reason: str = ""
    segment: Segment | None = None  # None: the whole file
    warnings: tuple[str, ...] = ()  # problems of a video that could be read
    known: bool = True  # False: no label is likely enough

    @property
    def answer(self) -> str:
        """The most probable label, or ``unknown`` where none is likely enough; empty for a video that was not read."""
        return self.label if self.known else UNKNOWN

    @property
    def label(self) -> str:
        """The most probable label; empty when the video could not be read."""
        return self.labels[0].label if self.labels else ""

    @property
    def name(self) -> str:
        """The video's path; of a segment followed by its times, ``clip.mp4#t=12.5,17``."""
        return f"{self.video}#{self.segment}" if self.segment else str(self.video)


def predict_videos(
    bundle: Path,
    model: Path | ModelFile,
    videos: Sequence[Path | NamedVideo],
    *,
    top: int = 5,
    threshold: float | None = None,
    opening: OpeningOptions | None = None,
    trusted: TrustedKeys = (),
    on_open: Callable[[Sequence[GraphPlacement]], None] = lambda _: None,
) -> Iterator[Prediction]:
    """Yield one Prediction per video, in order; a broken one yields its reason, and the others are not affected.

    ``threshold``: the answer is unknown where no label's probability reaches it; None: where the model's calibration
    says so. ``opening`` chooses where the networks run, ``on_open`` is called once with where they do. Raises DataError
    when the model was trained on another bundle's features, or none of the ``trusted`` keys, where some are given, has
    signed the bundle.
    """
    opening = opening or OpeningOptions()
    named = [video if isinstance(video, NamedVideo) else NamedVideo(video) for video in videos]
    opening = tuned_opening(opening, bundle, named, trusted)
    read = model if isinstance(model, ModelFile) else read_model(model)
    answers = Answers(read, top=top, threshold=threshold, threads=opening.threads)
    with open_extractor(bundle, opening=opening, trusted=trusted) as extractor:
        on_open(tuple(extractor.placements.values()))
        check_bundle(read, None if read is model else model, extractor.manifest, bundle)
        files = _HashedFiles()
        for video in named:
            try:
                features = extractor.extract(files.clip(video))
            except (DataError, StorageError) as error:
                yield Prediction(video.path, reason=f"{error.code}: {error.message}", segment=video.segment)
                continue
            x = np.concatenate([features.vlm, features.cnn])[None]
            [probability] = answers.probabilities(x)
            yield Prediction(
                video.path,
                answers.labels(probability),
                features.caption.text,
                segment=video.segment,
                warnings=features.warnings,
                known=answers.is_known(probability),
            )


def tuned_opening(
    opening: OpeningOptions, bundle: Path, videos: Sequence[NamedVideo], trusted: TrustedKeys
) -> OpeningOptions:
    """Return the options with the backends that are fastest on these videos, where they ask to measure that."""
    if not opening.backend_options.autotune:
        return opening
    question = AutotuneRequest(bundle, threads=opening.threads, trusted=trusted)
    choice = autotune_backends(question, _readable(videos), notice=opening.notice)
    opening.notice(choice.line)
    return replace(opening, backend_options=choice.backend_options)


def check_bundle(read: ModelFile, model: object, manifest: Manifest, bundle: Path) -> None:
    """Raise DataError (``other_bundle``) unless the model was trained on features of this bundle.

    ``model``: its file, for the message; None where it has none.
    """
    if read.fingerprint != manifest.fingerprint:
        raise DataError(
            f"{'the model' if model is None else model} was trained on features of bundle {read.fingerprint[:12]}, "
            f"{bundle} is {manifest.fingerprint[:12]}",
            fix="use the bundle that the run's features were extracted with",
            code="other_bundle",
        )


class _HashedFiles:
    """Clips of named videos; a file whose segments come in a row is hashed once."""

    def __init__(self) -> None:
        self._last: tuple[Path, FileStamp, str] | None = None

    def clip(self, video: NamedVideo) -> Clip:
        """Raises DataError as ``content_hash``."""
        sha256 = self._sha256(video.path)
        if video.segment is None:
            return Clip(video.path, sha256)
        return Clip(video.path, clip_identity(sha256, video.segment), segment=video.segment, file_sha256=sha256)

    def _sha256(self, path: Path) -> str:
        with suppress(OSError):  # ``content_hash`` says what is wrong
            stamp = FileStamp.of(path)
            if self._last is None or self._last[:2] != (path, stamp):
                self._last = path, stamp, content_hash(path, DecodeLimits())
            return self._last[2]
        return content_hash(path, DecodeLimits())


def _readable(videos: Sequence[NamedVideo]) -> Iterator[Clip]:
    files = _HashedFiles()
    for video in videos:
        with suppress(DataError):  # reported when its turn comes
            yield files.clip(video)
