"""Records that the feature store takes and gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ...runtime.clip_records import Clip, ClipFeatures, Segment


class FeatureKind(NamedTuple):
    """Features that may be trained on together."""

    fingerprint: str
    precision: str
    clips: int


class ListedClip(NamedTuple):
    """The row of a clip with a label, as it was last listed."""

    path: str
    label: str
    group: str
    person: str
    camera: str


class Failure(NamedTuple):
    """The reason why a clip could not be used when it was last tried."""

    code: str
    message: str
    limit_s: float | None = None  # seconds that decoding was allowed; None: not stored yet


@dataclass(frozen=True, eq=False)
class FeatureRow:
    """The embedding of one clip, as it is stored."""

    clip: Clip
    x: npt.NDArray[np.float32]  # [D]
    vlm_width: int
    fingerprint: str
    precision: str
    caption: str = ""
    keyframe: int = 0
    times_s: tuple[float, ...] = ()

    @classmethod
    def of(cls, clip: Clip, features: ClipFeatures) -> FeatureRow:
        """Return what an extraction made of a clip."""
        return cls(
            clip=clip,
            x=np.concatenate([features.vlm, features.cnn]),
            vlm_width=len(features.vlm),
            fingerprint=features.fingerprint,
            precision=features.precision,
            caption=features.caption.text,
            keyframe=features.keyframe,
            times_s=features.keyframe_times_s,
        )


@dataclass(frozen=True, eq=False)
class StoredFeatures:
    """All features of one kind, ordered by the clips' SHA-256."""

    x: npt.NDArray[np.float32]  # [N, D]
    labels: tuple[str | None, ...]  # None: not known, or the clip is listed no more
    groups: tuple[str, ...]
    clips: tuple[str, ...]  # identities: SHA-256 of a file's content, or of content, start and end
    captions: tuple[str, ...]
    paths: tuple[str, ...]  # relative to the video folder, as last seen; of a segment PATH#t=12.5,17
    fingerprint: str
    precision: str
    vlm_width: int  # x[:, :vlm_width] is the vision-language part; 0 where the parts are not known
    segments: tuple[Segment | None, ...] = ()  # None: a whole file; as the next two, left out: none of them is known
    persons: tuple[str, ...] = ()  # empty text where not known
    cameras: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.clips)
        for name, missing in (("segments", None), ("persons", ""), ("cameras", "")):
            if not getattr(self, name):
                object.__setattr__(self, name, (missing,) * count)

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of the video files: of a segment without ``#t=12.5,17``."""
        return tuple(file_of(path, segment) for path, segment in zip(self.paths, self.segments, strict=True))


@dataclass(frozen=True)
class ClipNote:
    """Everything that a store holds of a clip except its embedding."""

    sha256: str
    label: str | None  # None: not known, or the clip is listed no more
    group: str
    path: str  # relative to the video folder, as last seen; of a segment PATH#t=12.5,17
    caption: str
    times_s: tuple[float, ...]  # of the keyframes, seconds from clip start; empty where not known
    segment: Segment | None = None  # None: the whole file
    person: str = ""
    camera: str = ""

    @property
    def file(self) -> str:
        """Path of the video file: of a segment without ``#t=12.5,17``."""
        return file_of(self.path, self.segment)


def file_of(name: str, segment: Segment | None) -> str:
    """Return the video file of a clip's name: ``a.mp4`` of ``a.mp4#t=12.5,17`` where that is its segment."""
    return name if segment is None else name.removesuffix(f"#{segment}")
