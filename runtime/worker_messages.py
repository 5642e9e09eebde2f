"""Messages between an extraction and its worker processes, over base/child_process.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..base.channel import Failed, Message
from .backends.options import BackendOptions
from .bundle.signature import TrustedKeys
from .pipeline_options import PipelineOptions
from .video.decoder import DecodeLimits


@dataclass(frozen=True)
class WorkerSetup:
    """Everything that a worker opens its extractor with. It travels pickled, from the process that started it."""

    bundle: Path
    needs_gpu: bool
    threads: int
    pipeline: PipelineOptions
    limits: DecodeLimits
    trusted: TrustedKeys
    backend_options: BackendOptions


class Setup(Message, frozen=True):
    """Sent once. Payload: a pickled WorkerSetup."""


class ExtractClip(Message, frozen=True):
    """Extract a clip; answered by ClipDone or ClipFailed, in any order."""

    number: int
    path: str
    sha256: str
    segment: tuple[int, int] | None = None  # start and end, microseconds


class Placement(Message, frozen=True):
    """A GraphPlacement without the candidates that were skipped."""

    graph: str
    backend: str
    where: str
    precision: str


class WorkerOpened(Message, frozen=True):
    """The networks are open."""

    placements: tuple[Placement, ...]
    readers: int
    batch: int
    captions: int
    in_work: int  # clips that it takes at once


class Notice(Message, frozen=True):
    """Something that takes minutes begins."""

    text: str


class ClipDone(Message, frozen=True):
    """Payload: the vectors of the two parts, float32, one after the other."""

    number: int
    vlm: int  # values of the first part
    caption: str
    token_ids: tuple[int, ...]
    keyframe: int
    times_s: tuple[float, ...]
    fingerprint: str
    precision: str
    stages_ms: dict[str, float]
    warnings: tuple[str, ...]
    peak_mb: float  # of the worker and its decoders so far


class ClipFailed(Message, frozen=True):
    number: int
    code: str
    message: str
    fix: str


WorkerAnswer = WorkerOpened | Notice | ClipDone | ClipFailed | Failed
LARGEST_PAYLOAD = 4 << 20  # bytes; two vectors of at most 65,536 values
