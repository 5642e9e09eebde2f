"""From clips to embeddings: the paper's Figure 1, from a bundle and without PyTorch.

    video/read_ahead.py   file -> frames for the networks (keyframes.py chooses them); several clips at once, ahead
    captioner.py          frames -> caption and vector; several frames at once
    graph cnn             frames -> vector
    stages.py             in which order, and in which threads

The manifest defines the parts, how many frames each gets and how they are chosen. The parts are independent: the
embedding of a pair is, bit for bit, its two parts' embeddings one after the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..base.errors import DataError
from ..base.files import printable_path
from ..base.process import memory_bytes, usable_cores
from .backends.opening import GraphOpener, GraphPlacement, OpeningOptions, effective_precision, machine_facts
from .backends.session import Session
from .bundle.manifest import Manifest
from .bundle.opening import Bundle, open_bundle
from .bundle.signature import TrustedKeys
from .captioner import CaptionGenerator, open_captioner
from .clip_job import ClipJob
from .clip_records import STAGES, Clip, ClipFeatures, WorkerCrash, stages_of
from .keyframe_features import KeyframeFeatures
from .keyframes import load_clustering
from .networks import Networks
from .pipeline_options import (
    MOST_READERS,
    USUAL_GPU_MB,
    PipelineMachine,
    PipelineOptions,
    PipelineSizes,
    caption_bytes,
    check_batch,
    choose_sizes,
)
from .stages import OneThread, Stages, ThreadPerStage
from .video.clip_reader import ClipReader, open_decoder
from .video.decoder import DecodeLimits, VideoDecoder
from .video.read_ahead import ReadAhead
from .vision_language import VisionLanguageModel

__all__ = ["STAGES", "ExtractionResult", "Extractor", "PipelineOptions", "open_extractor"]

_MOST_UNCLAIMED = 4096  # finished clips that wait for an earlier one


@dataclass(frozen=True, eq=False)
class ExtractionResult:
    """Outcome of a clip: ``features``, or ``error`` with the reason why there are none."""

    clip: Clip
    features: ClipFeatures | None
    error: DataError | None = None
    more: bool = False  # the next outcome is there already: both may be stored at once


class Extractor:
    """Turns clips into ClipFeatures. Open with ``open_extractor``; a context manager; one thread at a time."""

    def __init__(
        self,
        bundle: Bundle,
        videos: Sequence[VideoDecoder],
        pipeline: PipelineOptions,
        opening: OpeningOptions,
        opener: GraphOpener,
    ) -> None:
        self.manifest: Manifest = bundle.manifest
        self.stages = stages_of(bundle.manifest)
        self.precision = effective_precision(bundle.manifest, opening.backend_options)
        self._opener = opener
        parts = bundle.manifest.spatio_temporal
        cnn, cnn2 = (opener.open(graph) if graph in parts else None for graph in ("cnn", "cnn2"))

        def sizes_with(vision: Session | None) -> PipelineSizes:
            return choose_sizes(pipeline, _machine(bundle.manifest, opening, [vision, cnn, cnn2]))

        def places(model: VisionLanguageModel) -> int:
            wanted = sizes_with(model.vision).captions
            return min(wanted, model.most_rows or wanted)

        captioner = open_captioner(bundle, opener.open, places=places)
        vision = None if captioner is None else captioner.vision
        sizes = sizes_with(vision)
        vlm = bundle.manifest.vlm
        captioned = vlm.captioned_frames if vlm else 1
        self._networks = Networks(captioner, cnn, sizes.batch, captioned_frames=captioned, cnn2=cnn2)
        self._on_device = any(graph is not None and not graph.computes_on_host for graph in (vision, cnn, cnn2))
        captions = captioner.free if isinstance(captioner, CaptionGenerator) else 0
        self.sizes = PipelineSizes(min(len(videos), sizes.readers), self._networks.batch, captions)
        keyframes = self._keyframe_features(opener) if "keyframes" in self.stages else None
        # By graph, in the order in which a clip passes them, with the choice of its frames last.
        order = (*(name for name in bundle.manifest.needed_graphs if name != "keyframes"), "keyframes")
        self.placements: dict[str, GraphPlacement] = {
            name: opener.placements[name] for name in order if name in opener.placements
        }
        self.crashes: tuple[WorkerCrash, ...] = ()  # there are no workers (device_workers.py)
        self._ahead = ReadAhead(
            [ClipReader(bundle.manifest, video, keyframes) for video in videos[: self.sizes.readers]]
        )

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
        self, clips: Iterable[Clip | None], *, stop: Callable[[], bool] = lambda: False, in_order: bool = True
    ) -> Generator[ExtractionResult, None, None]:
        """Yield the outcome of every clip; a clip that fails does not stop the others.

        A few more clips are taken from ``clips`` than have been yielded; closing the iterator drops those. A None in
        ``clips``: the next one has not come yet. ``in_order``: as in ``clips``; otherwise as soon as they are there.
        Raises Stopped when ``stop`` returns True and the clip that is waited for is not decoded a few seconds later.
        """
        coming = iter(clips)
        jobs: deque[ClipJob] = deque()  # that were not yielded, in the order of the clips
        in_work = 0
        with closing(self._start()) as stages:
            while True:
                room = min(self.most_in_work - in_work, _MOST_UNCLAIMED - len(jobs))
                for clip in islice(coming, max(0, room)):
                    if clip is None:
                        break
                    job = ClipJob(clip)
                    self._ahead.submit(clip, job)
                    jobs += [job] if in_order else []
                    in_work += 1
                if not (in_work or jobs):
                    return
                done = stages.advance(stop) if in_work else []
                in_work -= len(done)
                while in_order and jobs and jobs[0].done:
                    job = jobs.popleft()
                    yield self._result(job, more=bool(jobs) and jobs[0].done)
                for number, job in () if in_order else enumerate(done, 1):
                    yield self._result(job, more=number < len(done))

    @property
    def pipeline(self) -> dict[str, PipelineSizes]:
        """The chosen sizes, by the device of the largest networks: ``cuda:0`` or ``cpu``."""
        return {"cuda:0" if self._on_device else "cpu": self.sizes}

    @property
    def decoder_peak_mb(self) -> float:
        """Largest resident memory of the decoder processes so far, MB."""
        return self._ahead.peak_kb * 1024 / 1e6

    def close(self) -> None:
        self._ahead.close()
        self._opener.close()

    def __enter__(self) -> Extractor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def most_in_work(self) -> int:
        """Clips that are read, wait or are in the networks: each stage and each queue between them has its share."""
        return self.sizes.readers + (4 if self._on_device else 2) * self.sizes.batch + self.sizes.captions

    def _start(self) -> Stages:
        return (ThreadPerStage if self._on_device else OneThread)(self._ahead, self._networks)

    def _keyframe_features(self, opener: GraphOpener) -> KeyframeFeatures:
        candidates = self.manifest.keyframes.candidates
        return KeyframeFeatures(opener.open("keyframes"), clips=self.sizes.batch, candidates=candidates)

    def _result(self, job: ClipJob, *, more: bool) -> ExtractionResult:
        if job.error is not None:
            return ExtractionResult(job.clip, None, job.error, more)
        vlm = self.manifest.vlm
        try:
            return ExtractionResult(
                job.clip,
                ClipFeatures(
                    vlm=_finite(job.vector(), 0 if vlm is None else vlm.width, "vlm", job.clip),
                    cnn=_finite(job.cnn, self.manifest.cnn_width, "cnn", job.clip),
                    caption=job.caption,
                    keyframe=job.keyframe,
                    keyframe_times_s=job.times_s,
                    fingerprint=self.manifest.fingerprint,
                    precision=self.precision,
                    stages_ms={stage: job.milliseconds(stage) for stage in self.stages},
                    warnings=job.warnings,
                ),
                more=more,
            )
        except DataError as error:
            return ExtractionResult(job.clip, None, error, more)


def _machine(manifest: Manifest, opening: OpeningOptions, graphs: Iterable[Session | None]) -> PipelineMachine:
    """The facts that an extraction's sizes follow from, where these graphs are its largest."""
    on_device = any(graph is not None and not graph.computes_on_host for graph in graphs)
    gpu = (machine_facts() if opening.facts is None else opening.facts).gpu if on_device else None
    text = manifest.graphs.get("text")
    return PipelineMachine(
        cores=opening.threads or usable_cores(),
        memory_bytes=memory_bytes(),
        gpu_mb=(gpu.memory_mb if gpu is not None else USUAL_GPU_MB) if on_device else None,
        caption_bytes=0 if text is None else caption_bytes(text),
    )


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
    and cores, and a ``stop``; ``threads`` is short for its field of that name, and comes first. Raises DataError for a
    bundle that is not what was exported, SettingsError ``no_backend`` when a graph cannot run as requested,
    MissingExtra when a package of ``flamest[agent]`` is not installed; Stopped.
    """
    opening = opening or OpeningOptions()
    if threads is not None:
        opening = replace(opening, threads=threads)
    checked = open_bundle(bundle, trusted, stop=opening.stop)
    _check_frames(checked)
    if "keyframes" in stages_of(checked.manifest):
        load_clustering()
    pipeline = pipeline or PipelineOptions()
    if pipeline.batch is not None:
        check_batch(pipeline.batch, (checked.manifest.graphs[name] for name in checked.manifest.needed_graphs))
    cores = opening.threads or usable_cores()
    readers = pipeline.readers or min(cores, MOST_READERS)
    with ExitStack() as opened:
        videos = [open_decoder(checked.manifest, limits) for _ in range(readers)]
        for video in videos:
            opened.callback(video.close)
        videos[0].start()  # it starts while the graphs are opened; the others start with their first clip
        opener = GraphOpener(checked, opening)
        opened.callback(opener.close)
        extractor = Extractor(checked, videos, pipeline, opening, opener)
        opened.pop_all()  # the extractor's ``close`` does it now
    return extractor


def _check_frames(bundle: Bundle) -> None:
    """Check that the manifest chooses as many frames for graphs ``cnn`` and ``cnn2`` as they take."""
    for graph, spec in bundle.manifest.spatio_temporal.items():
        for tensor in bundle.manifest.graphs[graph].inputs:
            taken = tensor.shape[1:2] if tensor.dtype == "uint8" else tensor.shape[2:3]
            if tensor.name == "frames" and taken != (spec.frames,):
                raise DataError(
                    f"{bundle.path}: its manifest chooses {spec.frames} frames, "
                    f"its graph '{graph}' takes {', '.join(map(str, taken)) or 'none'}",
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
