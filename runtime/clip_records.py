"""Records of an extraction, in the order in which they are made, and its stages. All records are immutable.

Clip -> Candidates -> Keyframes -> Caption -> ClipFeatures
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .bundle.manifest import Manifest, VisionLanguage


@dataclass(frozen=True, order=True)
class Segment:
    """Part of a video: the frames shown from ``start_us`` until before ``end_us``, 0 <= start < end."""

    start_us: int  # microseconds from the video's first frame
    end_us: int

    @classmethod
    def of_seconds(cls, start_s: float, end_s: float) -> Segment:
        """Return the segment from ``start_s`` until before ``end_s``, rounded to microseconds."""
        return cls(round(start_s * 1e6), round(end_s * 1e6))

    @property
    def start_s(self) -> float:
        """Start in seconds from the video's first frame."""
        return self.start_us / 1e6

    @property
    def end_s(self) -> float:
        """End in seconds from the video's first frame; its frame is not part of the segment."""
        return self.end_us / 1e6

    def __str__(self) -> str:
        """``t=12.5,17``: the notation of W3C Media Fragments (https://www.w3.org/TR/media-frags/#naming-time)."""
        return f"t={seconds_text(self.start_us)},{seconds_text(self.end_us)}"


def seconds_text(microseconds: int) -> str:
    """Seconds with up to 6 decimals and no trailing zeros: ``12.5``."""
    whole, rest = divmod(microseconds, 1_000_000)
    return f"{whole}.{rest:06}".rstrip("0").rstrip(".")


def clip_identity(file_sha256: str, segment: Segment | None) -> str:
    """Hash that a clip is known by, 64 hexadecimal digits: of the file's content, or of content, start and end."""
    if segment is None:
        return file_sha256
    return hashlib.sha256(f"segment:{file_sha256}:{segment.start_us}:{segment.end_us}".encode()).hexdigest()


@dataclass(frozen=True)
class Clip:
    """One labelled video file, or a segment of one."""

    path: Path
    sha256: str  # its identity, ``clip_identity``: 64 hexadecimal digits
    label: str | None = None  # class name; None where it is not known
    group: str | None = None  # clips of one scene or person share it; held out together
    segment: Segment | None = None  # None: the whole file
    file_sha256: str = ""  # of the file's content; empty for a whole file, whose identity it is
    person: str = ""  # who is seen; empty where not known
    camera: str = ""
    next_us: int | None = None  # of windows that overlap: where the next one begins, microseconds from the first frame


@dataclass(frozen=True, eq=False)
class Candidates:
    """Small frames, spread evenly over a clip, from which the keyframes are chosen."""

    path: Path
    number: int  # counts opened clips: only the last one can give its frames at full size
    pixels: npt.NDArray[Any]  # float32 [N, 3, S, S] or uint8 [N, S, S, 3], as graph keyframes takes them
    t_s: npt.NDArray[np.float64]  # [N], seconds from the clip's first frame, not decreasing
    frames: int  # of the clip
    warnings: tuple[str, ...]  # problems of a file that can be used nevertheless
    decoded: int = 0  # frames that were decoded for it: of a segment, its own and those from the key frame before it


@dataclass(frozen=True, eq=False)
class FrameTimes:
    """Times of all frames of a video, read from its container without decoding."""

    t_us: npt.NDArray[np.int64]  # [N >= 1], microseconds from the first frame, not decreasing
    key_frames: npt.NDArray[np.int64]  # [K], numbers of the frames that decoding can begin with
    end_us: int  # where the last frame ends
    exact: bool = True  # False: the container states no usable times; these are spread by its rate


@dataclass(frozen=True, eq=False)
class Keyframes:
    """The frames that represent a clip (paper eq. 3), in time order."""

    rgb: npt.NDArray[np.uint8]  # [K, H, W, 3], at the video's own size
    t_s: npt.NDArray[np.float64]  # [K], seconds from clip start, not decreasing


@dataclass(frozen=True)
class Caption:
    """The caption of a frame (paper eq. 5), generated or retrieved."""

    text: str
    token_ids: tuple[int, ...]  # generated ids, without start and end token; empty for a retrieved caption


@dataclass(frozen=True, eq=False)
class ClipFeatures:
    """The embedding of one clip (paper eqs. 6 and 7) and its provenance. A part that the extractor lacks is empty."""

    vlm: npt.NDArray[np.float32]  # [768] for BLIP, cross-attention embedding
    cnn: npt.NDArray[np.float32]  # [2048] for Slow, spatio-temporal embedding; of two networks one after the other
    caption: Caption  # empty text without a vision-language part
    keyframe: int  # index of the captioned keyframe, of several the first drawn; -1 for none
    keyframe_times_s: tuple[float, ...]  # seconds from clip start, of the first part's frames
    fingerprint: str  # of the bundle's meaning (Manifest.fingerprint)
    precision: str  # of the networks' matmuls: fp32, or cnn=int8,text=fp32 where they differ
    stages_ms: dict[str, float] = field(default_factory=dict)  # wall milliseconds per stage
    warnings: tuple[str, ...] = ()  # problems of the file: cut off, damaged frames


@dataclass(frozen=True)
class WorkerCrash:
    """A worker process that ended before its work was done."""

    device: str
    reason: str
    clips: int  # that it held: they went to other workers


STAGES = ("decode", "keyframes", "prepare", "vision", "caption", "embed", "cnn")
_GRAPHS = {"keyframes": "keyframes", "vision": "vision", "caption": "text", "embed": "text", "cnn": "cnn"}


def stages_of(manifest: Manifest) -> tuple[str, ...]:
    """Stages of this manifest's extractor, in order."""
    parts = manifest.spatio_temporal.values()
    passed = {"decode", "prepare"} | ({"cnn"} if parts else set())
    if manifest.vlm is not None or any(part.choice == "keyframes" for part in parts):
        passed.add("keyframes")
    if manifest.vlm is not None:
        passed.add("vision")
    if isinstance(manifest.vlm, VisionLanguage):
        passed |= {"caption", "embed"}
    return tuple(stage for stage in STAGES if stage in passed)


def graph_of(stage: str, graphs: Container[str]) -> str | None:
    """The graph of ``graphs`` that a stage runs; None where it runs none. CLIP's graph runs in the stage ``vision``."""
    if stage == "vision" and "clip" in graphs:
        return "clip"
    if stage == "embed" and "words" in graphs:
        return "words"
    return _GRAPHS.get(stage)


@contextmanager
def timed(stages: dict[str, float], stage: str) -> Iterator[None]:
    """Add the block's wall time in milliseconds to ``stages[stage]``."""
    start = time.perf_counter()
    yield
    stages[stage] += (time.perf_counter() - start) * 1e3
