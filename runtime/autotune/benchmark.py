"""The measurement of ``--precision auto``: the same clips, read once, through the networks of each configuration.

Only the networks are timed. Decoding and the choice of keyframes are the same in every configuration, take most of a
small clip's time, and would hide which backend is faster. All configurations are open at once and every pass runs all
of them, interleaved, so that a busy moment of the machine slows all alike; results are medians.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean, median

import numpy as np
import numpy.typing as npt

from ...base.errors import DataError, FlamestError
from ..backends.opening import GraphOpener, OpeningOptions
from ..backends.session import Session, check_shape
from ..bundle.manifest import Manifest
from ..bundle.opening import Bundle
from ..captioner import FrameEmbedding, open_captioner
from ..clip_records import Caption, Clip, graph_of, stages_of, timed
from ..keyframe_features import KeyframeFeatures
from ..pipeline_options import CPU_CAPTIONS
from ..similarity import cosine
from ..video.clip_reader import ClipReader, PreparedClip, open_decoder
from ..video.decoder import DecodeLimits
from ..video.read_ahead import ReadAhead
from .measurements import CONFIGURATIONS, MIXED, REFERENCE, Measured, Measurement

MEASURED_CLIPS = 4
MIN_PASSES = 3  # timed passes at least, after a warm-up whose results are compared
MAX_PASSES = 25  # of small networks, with short passes
MIN_TIMED_MS = 1000.0  # of timed passes per configuration
MAX_RELATIVE_TIME = 0.9  # of the simpler configuration's time: a smaller gain may be noise
_MAX_TRIED_CLIPS = 12  # clips at most that are opened to find MEASURED_CLIPS readable ones


@dataclass(frozen=True, eq=False)
class ClipResult:
    """Vectors and captions of one clip."""

    vectors: tuple[npt.NDArray[np.float32], ...]  # one per captioned frame, and of each spatio-temporal network
    captions: tuple[Caption, ...]
    stages_ms: dict[str, float]  # vision, caption, embed, cnn


class Networks:
    """The graphs of one configuration after the keyframes; ``open_graph`` opens one by its name."""

    def __init__(self, bundle: Bundle, open_graph: Callable[[str], Session]) -> None:
        self._sessions: dict[str, Session] = {}

        def opened(name: str) -> Session:
            self._sessions[name] = open_graph(name)
            return self._sessions[name]

        self._captioner = open_captioner(bundle, opened, places=lambda _: CPU_CAPTIONS)  # as in an extraction
        self._cnn = {graph: opened(graph) for graph in bundle.manifest.spatio_temporal}

    def session(self, name: str) -> Session:
        return self._sessions[name]

    def run(self, clips: Sequence[PreparedClip]) -> list[ClipResult]:
        """One result per clip. Raises DataError where a network's output is not finite."""
        embedded = self._caption(clips)
        return [self._result(clip, embedded[index]) for index, clip in enumerate(clips)]

    def _caption(self, clips: Sequence[PreparedClip]) -> list[list[FrameEmbedding]]:
        found: list[dict[int, FrameEmbedding]] = [{} for _ in clips]
        if (captioner := self._captioner) is not None:
            frames = deque((at, frame) for at, clip in enumerate(clips) for frame in range(clip.frames))
            while frames or captioner.unfinished:
                while frames and captioner.free > 0:
                    at, frame = frames.popleft()
                    started = captioner.start(clips[at].captioned[frame][None], 1)
                    captioner.add([(at, frame)], captioner.finish(started))
                for each in captioner.advance():
                    at, frame = each.key  # type: ignore[misc]
                    found[at][frame] = each
        return [[of[frame] for frame in sorted(of)] for of in found]

    def _result(self, clip: PreparedClip, embedded: Sequence[FrameEmbedding]) -> ClipResult:
        vectors = [each.vector for each in embedded]
        stages: dict[str, float] = {}
        for each in embedded:
            for stage, milliseconds in each.stages_ms.items():
                stages[stage] = stages.get(stage, 0.0) + milliseconds
        for graph, session in self._cnn.items():
            stages.setdefault("cnn", 0.0)
            frames = clip.cnn_frames if graph == "cnn" else clip.cnn2_frames
            with timed(stages, "cnn"):
                found = session.run({"frames": frames[None]}, ["embedding"])["embedding"]
            vectors.append(check_shape(found, (1, None), output="embedding")[0])
        if not all(np.isfinite(vector).all() for vector in vectors):
            raise DataError("a network's output is not finite", fix="run without --precision auto", code="not_finite")
        return ClipResult(tuple(vectors), tuple(each.caption for each in embedded), stages)


def read_clips(
    bundle: Bundle,
    opening: OpeningOptions,
    clips: Iterable[Clip],
    limits: DecodeLimits | None,
    stop: Callable[[], bool] = lambda: False,
) -> list[PreparedClip]:
    """The first ``MEASURED_CLIPS`` readable ones, of ``_MAX_TRIED_CLIPS`` at most.

    Raises as ``GraphOpener.open``; Stopped soon after ``stop`` returns True.
    """
    opener = GraphOpener(bundle, replace(opening, backend_options=CONFIGURATIONS[REFERENCE]))
    features = KeyframeFeatures(opener.open("keyframes")) if "keyframes" in stages_of(bundle.manifest) else None
    reader = ClipReader(bundle.manifest, open_decoder(bundle.manifest, limits), features)
    read: list[PreparedClip] = []
    with closing(ReadAhead([reader])) as ahead:
        for _, clip in zip(range(_MAX_TRIED_CLIPS), clips, strict=False):
            ahead.submit(clip)
            _, prepared = ahead.next(stop)
            if isinstance(prepared, PreparedClip):  # what another problem is, the extraction reports
                read.append(prepared)
            if len(read) == MEASURED_CLIPS:
                break
    return read


def benchmark_backends(
    bundle: Bundle,
    opening: OpeningOptions,
    configurations: Sequence[str],
    clips: Sequence[PreparedClip],
    stop: Callable[[], bool],
) -> Measured | None:
    """Measure ``configurations``, of CONFIGURATIONS, and their mixture where it promises a gain;
    None when ``stop`` returned True.

    Without ONNX Runtime's, which the others are compared with, there are no measurements at all.
    """
    benchmark = _Benchmark(clips, stop)
    for name in configurations:
        opener = GraphOpener(bundle, replace(opening, backend_options=replace(CONFIGURATIONS[name], require=True)))
        benchmark.add(name, partial(Networks, bundle, opener.open))
    benchmark.time_all()
    of = {name: run.networks for name, run in benchmark.runs.items()}
    by_graph = mixture(bundle.manifest, benchmark.measurements())
    if by_graph:
        benchmark.add(MIXED, partial(Networks, bundle, lambda graph: of[by_graph[graph]].session(graph)))
        if MIXED in benchmark.runs:
            benchmark.time_all()  # all of them again: only runs of the same time are compared
    return None if benchmark.stopped else Measured(benchmark.measurements(by_graph), benchmark.refused)


@dataclass(eq=False)
class _Run:
    """An open configuration: its first results, and milliseconds per clip by stage of every timed pass."""

    networks: Networks
    first: list[ClipResult]
    passes: list[dict[str, float]] = field(default_factory=list)

    @property
    def spent_ms(self) -> float:
        return len(self.first) * sum(sum(stages.values()) for stages in self.passes)

    def measurement(self, name: str, reference: _Run, mixed: Mapping[str, str] | None = None) -> Measurement:
        stages = {stage: median(each[stage] for each in self.passes) for stage in self.passes[0]}
        pairs = list(zip(self.first, reference.first, strict=True))
        vectors = [each for mine, theirs in pairs for each in zip(mine.vectors, theirs.vectors, strict=True)]
        return Measurement(
            backend=name,
            by_graph=dict(mixed or {}) if name == MIXED else {},
            ms_per_clip=sum(stages.values()),
            stages_ms=stages,
            smallest_cosine=min(cosine(mine, theirs) for mine, theirs in vectors),
            captions_equal=sum(mine.captions == theirs.captions for mine, theirs in pairs),
            clips=len(pairs),
            passes=len(self.passes),
        )


class _Benchmark:
    """The open configurations, and why others are not open. Once ``stopped`` nothing more is done."""

    def __init__(self, clips: Sequence[PreparedClip], stop: Callable[[], bool]) -> None:
        self._clips = clips
        self._stop = stop
        self.stopped = False
        self.runs: dict[str, _Run] = {}
        self.refused: dict[str, str] = {}

    def add(self, name: str, make: Callable[[], Networks]) -> None:
        """Open a configuration and warm it up; where that fails, keep the reason."""
        if self._continue():
            try:
                networks = make()
                self.runs[name] = _Run(networks, networks.run(self._clips))
            except FlamestError as error:
                self.refused[name] = error.message

    def time_all(self) -> None:
        """Time all, ``MIN_PASSES`` each and more of small networks; a configuration that fails is removed."""
        for run in self.runs.values():
            run.passes = []
        for passed in range(MAX_PASSES):
            if passed >= MIN_PASSES and all(run.spent_ms >= MIN_TIMED_MS for run in self.runs.values()):
                return
            for name, run in list(self.runs.items()):
                if not self._continue():
                    return
                try:
                    done = run.networks.run(self._clips)
                except FlamestError as error:
                    self.refused[name] = error.message
                    del self.runs[name]
                    continue
                stages = done[0].stages_ms
                run.passes.append({stage: fmean(each.stages_ms[stage] for each in done) for stage in stages})

    def measurements(self, mixed: Mapping[str, str] | None = None) -> tuple[Measurement, ...]:
        """The measurements, ONNX Runtime's first; none without it, and none after a stop."""
        reference = self.runs.get(REFERENCE)
        if self.stopped or reference is None:
            return ()
        return tuple(run.measurement(name, reference, mixed) for name, run in self.runs.items())

    def _continue(self) -> bool:
        self.stopped = self.stopped or self._stop()
        return not self.stopped


def mixture(manifest: Manifest, measurements: Sequence[Measurement]) -> dict[str, str]:
    """Each graph on the faster of the two backends; empty when that promises no gain over the faster one alone."""
    whole = {each.backend: each for each in measurements if each.fits and each.backend in (REFERENCE, "openvino")}
    if len(whole) != 2:
        return {}
    spent = {name: _by_graph(manifest, measurement.stages_ms) for name, measurement in whole.items()}
    faster = {graph: min(whole, key=lambda name: spent[name][graph]) for graph in spent[REFERENCE]}
    promised = sum(spent[name][graph] for graph, name in faster.items())
    alone = min(measurement.ms_per_clip for measurement in whole.values())
    return faster if promised <= MAX_RELATIVE_TIME * alone else {}


def _by_graph(manifest: Manifest, stages_ms: Mapping[str, float]) -> dict[str, float]:
    """Milliseconds per clip by graph."""
    spent: dict[str, float] = {}
    for stage, milliseconds in stages_ms.items():
        graph = graph_of(stage, manifest.graphs)
        if graph is not None:
            spent[graph] = spent.get(graph, 0.0) + milliseconds
    return spent
