"""From clips to embeddings: the paper's Figure 1, from a bundle and without PyTorch.

    video/read_ahead.py   file -> frames for the networks (keyframes.py chooses them); several clips at once, ahead
    captioner.py          frames -> caption and vector; several frames at once
    graph cnn             frames -> vector

The manifest defines the parts, how many frames each gets and how they are chosen. The parts are independent: the
embedding of a pair is, bit for bit, its two parts' embeddings one after the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from ..base.errors import DataError
from ..base.files import printable_path
from ..base.process import usable_cores
from .backends.opening import GraphOpener, GraphPlacement, OpeningOptions, effective_precision
from .backends.session import check_shape
from .bundle.manifest import Manifest
from .bundle.opening import Bundle, open_bundle
from .bundle.signature import TrustedKeys
from .captioner import GPU_BATCH, FrameEmbedding, open_captioner
from .clip_records import STAGES, Caption, Clip, ClipFeatures, stages_of, timed
from .keyframes import load_clustering
from .video.clip_reader import ClipReader, KeyframeFeatures, PreparedClip, open_decoder
from .video.decoder import DecodeLimits, VideoDecoder
from .video.read_ahead import ReadAhead, RefusedClip

__all__ = ["STAGES", "ExtractionResult", "Extractor", "PipelineOptions", "open_extractor"]

_NOTHING = np.empty(0, dtype=np.float32)
_NO_CAPTION = Caption("", ())
CPU_READERS = 3  # two or three keep a CPU's networks busy; each may hold 256 MB of frames (docs/benchmarks/speed.md)
GPU_READERS = 8


@dataclass(frozen=True)
class PipelineOptions:
    """Concurrency of an extraction. Memory grows with it; embeddings do not depend on it."""

    readers: int | None = (
        None  # decoder processes; None: one per core, at most CPU_READERS for networks on the CPU, else GPU_READERS
    )
    batch: int | None = None  # clips in one run of a graph; None: one on the CPU, GPU_BATCH elsewhere
    captions: int = 4  # captions generated at once; at full size each holds 42 MB of keys and values


@dataclass(frozen=True, eq=False)
class ExtractionResult:
    """Outcome of a clip: ``features``, or ``error`` with the reason why there are none."""

    clip: Clip
    features: ClipFeatures | None
    error: DataError | None = None


class Extractor:
    """Turns clips into ClipFeatures. Open with ``open_extractor``; a context manager; one thread at a time."""

    def __init__(
        self, bundle: Bundle, videos: Sequence[VideoDecoder], pipeline: PipelineOptions, opening: OpeningOptions
    ) -> None:
        self.manifest: Manifest = bundle.manifest
        self.stages = stages_of(bundle.manifest)
        self.precision = effective_precision(bundle.manifest, opening.backend_options)
        opener = GraphOpener(bundle, opening)
        self._captioner = open_captioner(bundle, opener.open, rows=pipeline.captions, batch=pipeline.batch)
        self._cnn = opener.open("cnn") if bundle.manifest.cnn else None
        on_host = self._cnn is None or self._cnn.computes_on_host
        self.batch = pipeline.batch or (1 if on_host else GPU_BATCH)
        self.readers = pipeline.readers or min(len(videos), CPU_READERS if on_host else GPU_READERS)
        keyframes = KeyframeFeatures(opener.open("keyframes")) if "keyframes" in self.stages else None
        self.placements: dict[str, GraphPlacement] = opener.placements  # by graph
        self._ahead = ReadAhead([ClipReader(bundle.manifest, video, keyframes) for video in videos[: self.readers]])

    def extract(self, clip: Clip) -> ClipFeatures:
        """Return the clip's embedding (paper eqs. 3 to 7). Same clip, bundle and machine: same bytes.

        Raises DataError with a named reason when the file cannot be used (video/decoder.py lists the codes)
        or a network's output is not finite.
        """
        (done,) = self.extract_all([clip])
        if done.features is None:
            raise done.error or DataError(
                f"{printable_path(clip.path)} was not extracted",
                fix="run the command again with --retry; flamest-agent doctor shows if this machine can decode video",
            )
        return done.features

    def extract_all(
        self, clips: Iterable[Clip], *, stop: Callable[[], bool] = lambda: False
    ) -> Generator[ExtractionResult, None, None]:
        """Yield the outcome of every clip, in order; a clip that fails does not stop the others.

        A few more clips are taken from ``clips`` than have been yielded; closing the iterator drops those. Raises
        Stopped when ``stop`` returns True and the clip that is waited for is not decoded a few seconds later.
        """
        coming = iter(clips)
        jobs: deque[_Job | RefusedClip] = deque()  # in the order of the clips
        try:
            while True:
                for clip in islice(coming, self.readers + self.batch - len(self._ahead)):
                    self._ahead.submit(clip)
                if not (len(self._ahead) or jobs):
                    return
                jobs += self._start_jobs(stop)
                self._advance_captions()
                while jobs and (isinstance(jobs[0], RefusedClip) or jobs[0].done):
                    yield self._result(jobs.popleft())
        finally:
            self._ahead.cancel()
            if self._captioner is not None:
                self._captioner.cancel()

    @property
    def decoder_peak_mb(self) -> float:
        """Largest resident memory of the decoder processes so far, MB."""
        return self._ahead.peak_kb * 1024 / 1e6

    def close(self) -> None:
        self._ahead.close()

    def __enter__(self) -> Extractor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start_jobs(self, stop: Callable[[], bool]) -> list[_Job | RefusedClip]:
        """Start the networks on clips that are read, at most ``batch`` of them; return those and the refused clips."""
        started: list[_Job | RefusedClip] = []
        batch: list[_Job] = []
        while self._can_start_another(batch):
            prepared = self._ahead.next(stop)
            if isinstance(prepared, RefusedClip):
                started.append(prepared)
                continue
            job = _Job(prepared, stages_ms=dict(prepared.stages_ms))
            started.append(job)
            batch.append(job)
            if self._captioner is not None:
                for index, pixels in enumerate(prepared.captioned):
                    self._captioner.add((job, index), pixels)
        self._embed_cnn(batch)
        for job in batch:
            job.release_frames()
        return started

    def _can_start_another(self, batch: Sequence[_Job]) -> bool:
        """True when the next clip fits, and is read or worth waiting for: the networks have nothing else to do."""
        captioner = self._captioner
        fits = len(batch) < self.batch and (captioner is None or captioner.capacity > 0)
        if not (len(self._ahead) and fits):
            return False
        idle = not batch and (captioner is None or not captioner.unfinished)
        return self._ahead.ready or idle

    def _advance_captions(self) -> None:
        """Do a part of the captioner's work, and hand finished frames to their jobs."""
        for frame in self._captioner.advance() if self._captioner else ():
            job, index = cast("tuple[_Job, int]", frame.key)
            job.embedded[index] = frame

    def _embed_cnn(self, jobs: list[_Job]) -> None:
        """Run graph ``cnn`` on the frames of all jobs at once (paper eq. 7)."""
        if self._cnn is None or not jobs:
            return
        taken = {"cnn": 0.0}
        with timed(taken, "cnn"):
            frames = np.stack([job.prepared.cnn_frames for job in jobs])
            vectors = self._cnn.run({"frames": frames}, ["embedding"])["embedding"]
        check_shape(vectors, (len(jobs), None), output="embedding")
        for job, vector in zip(jobs, vectors, strict=True):
            job.cnn = vector
            job.stages_ms["cnn"] = taken["cnn"] / len(jobs)

    def _result(self, job: _Job | RefusedClip) -> ExtractionResult:
        if isinstance(job, RefusedClip):
            return ExtractionResult(job.clip, None, job.error)
        vlm, cnn = self.manifest.vlm, self.manifest.cnn
        try:
            return ExtractionResult(
                job.clip,
                ClipFeatures(
                    vlm=_finite(job.vector(), 0 if vlm is None else vlm.width, "vlm", job.clip),
                    cnn=_finite(job.cnn, 0 if cnn is None else cnn.width, "cnn", job.clip),
                    caption=job.caption,
                    keyframe=job.prepared.keyframe,
                    keyframe_times_s=job.prepared.times_s,
                    fingerprint=self.manifest.fingerprint,
                    precision=self.precision,
                    stages_ms={stage: job.milliseconds(stage) for stage in self.stages},
                    warnings=job.prepared.warnings,
                ),
            )
        except DataError as error:
            return ExtractionResult(job.clip, None, error)


@dataclass(eq=False)
class _Job:
    """A clip in the networks."""

    prepared: PreparedClip
    stages_ms: dict[str, float]
    cnn: npt.NDArray[np.float32] = field(default_factory=lambda: _NOTHING)
    embedded: list[FrameEmbedding | None] = field(init=False)  # by captioned frame

    def __post_init__(self) -> None:
        self.embedded = [None] * self.prepared.frames

    @property
    def clip(self) -> Clip:
        return self.prepared.clip

    @property
    def done(self) -> bool:
        return all(self.embedded)

    @property
    def caption(self) -> Caption:
        first = self.embedded[0] if self.embedded else None
        return first.caption if first else _NO_CAPTION

    def release_frames(self) -> None:
        """Drop the frames: the networks have them, and the caption may take long."""
        self.prepared = replace(self.prepared, captioned=_NOTHING, cnn_frames=_NOTHING)

    def vector(self) -> npt.NDArray[np.float32]:
        """Mean of the frames' vectors; a single one is unchanged, bit for bit."""
        found = [each.vector for each in self.embedded if each is not None]
        return np.asarray(np.mean(found, axis=0, dtype=np.float32)) if found else _NOTHING

    def milliseconds(self, stage: str) -> float:
        return self.stages_ms.get(stage, 0.0) + sum(each.stages_ms.get(stage, 0.0) for each in self.embedded if each)


def open_extractor(
    bundle: Path,
    *,
    threads: int | None = None,
    pipeline: PipelineOptions | None = None,
    limits: DecodeLimits | None = None,
    trusted: TrustedKeys = (),
    opening: OpeningOptions | None = None,
) -> Extractor:
    """Check the bundle, open its graphs and prepare the decoders.

    ``trusted``: keys one of which must have signed the bundle; empty: any signature, or none. ``opening``: backends
    and cores, and a ``stop``; ``threads`` is short for its field of that name. Raises DataError for a bundle that is
    not what was exported, SettingsError ``no_backend`` when a graph cannot run as requested, MissingExtra when a
    package of ``flamest[agent]`` is not installed; Stopped.
    """
    opening = opening or OpeningOptions(threads=threads)
    checked = open_bundle(bundle, trusted, stop=opening.stop)
    _check_frames(checked)
    if "keyframes" in stages_of(checked.manifest):
        load_clustering()
    pipeline = pipeline or PipelineOptions()
    cores = opening.threads or usable_cores()
    readers = pipeline.readers or min(cores, GPU_READERS)
    videos = [open_decoder(checked.manifest, limits) for _ in range(readers)]
    try:
        videos[0].start()  # it starts while the graphs are opened; the others start with their first clip
        return Extractor(checked, videos, pipeline, opening)
    except BaseException:
        for video in videos:
            video.close()
        raise


def _check_frames(bundle: Bundle) -> None:
    """Check that the manifest chooses as many frames for graph ``cnn`` as the graph takes."""
    spec = bundle.manifest.cnn
    if spec is None:
        return
    for tensor in bundle.manifest.graphs["cnn"].inputs:
        taken = tensor.shape[1:2] if tensor.dtype == "uint8" else tensor.shape[2:3]
        if tensor.name == "frames" and taken != (spec.frames,):
            raise DataError(
                f"{bundle.path}: its manifest chooses {spec.frames} frames, "
                f"its graph 'cnn' takes {', '.join(map(str, taken)) or 'none'}",
                fix="export the bundle again with this version of flamest-export",
            )


def _finite(vector: npt.NDArray[np.float32], width: int, part: str, clip: Clip) -> npt.NDArray[np.float32]:
    """The vector, if it has the manifest's width and is finite."""
    if vector.shape != (width,) or not np.isfinite(vector).all():
        raise DataError(
            f"{printable_path(clip.path)}: part '{part}' gave {vector.dtype}{list(vector.shape)}, "
            f"expected {width} finite values",
            fix="try --backend onnxruntime without --precision; if it stays, export the bundle again",
            code="not_finite",
        )
    return vector
