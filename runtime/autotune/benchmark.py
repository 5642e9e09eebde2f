"""The measurement of ``--precision auto``: the same clips, read once, through the networks of each way, in turns.

Only the networks are timed. Decoding and the choice of keyframes are the same whatever describes the frames, take most
of a small clip's time, and would hide which backend is quicker. All ways are open at once and every pass goes through
all of them, so that a busy moment of the machine does not fall on one way alone; the figures are medians.
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

from ...base.errors import DataError, FlamestError, StorageError
from ..backends.opening import GraphOpener, Opening
from ..backends.session import Session
from ..bundle.manifest import Manifest
from ..bundle.opening import Bundle
from ..captioner import FrameEmbedding, open_captioner
from ..extractor import PipelineOptions
from ..records import Caption, Clip, graph_of, stages_of, timed
from ..similarity import cosine
from ..video.clip_reader import ClipReader, KeyframeFeatures, PreparedClip
from ..video.decoder import DecodeLimits, VideoDecoder
from .records import CONFIGURATIONS, MIXED, REFERENCE, Measured, Measurement

CLIPS = 4
PASSES = 3  # timed at least, after one that allocates and is compared
MOST_PASSES = 25  # of small networks, whose passes are short
ENOUGH_MS = 1000.0  # timed of each way
GAIN = 0.9  # of the time that the simpler way takes: less of a gain may be noise
_TRIED = 12  # clips at most that are looked at for CLIPS that can be read


@dataclass(frozen=True, eq=False)
class Numbers:
    """What the networks gave of one clip."""

    vectors: tuple[npt.NDArray[np.float32], ...]  # of each frame that is described, and the motion's
    captions: tuple[Caption, ...]
    stages_ms: dict[str, float]  # vision, caption, embed, cnn


class Networks:
    """The graphs of one way that come after the keyframes; ``open_graph`` opens one by its name."""

    def __init__(self, bundle: Bundle, open_graph: Callable[[str], Session]) -> None:
        self._sessions: dict[str, Session] = {}

        def opened(name: str) -> Session:
            self._sessions[name] = open_graph(name)
            return self._sessions[name]

        pipeline = PipelineOptions(readers=1)  # as an extraction does it
        self._describer = open_captioner(bundle, opened, rows=pipeline.captions, batch=pipeline.batch)
        self._cnn = opened("cnn") if bundle.manifest.cnn else None
        bundle.verify_unchanged()  # what has been opened is what was hashed

    def session(self, name: str) -> Session:
        return self._sessions[name]

    def run(self, clips: Sequence[PreparedClip]) -> list[Numbers]:
        """Raises DataError where a network gives what is no number."""
        described = self._describe(clips)
        return [self._numbers(clip, described[index]) for index, clip in enumerate(clips)]

    def _describe(self, clips: Sequence[PreparedClip]) -> list[list[FrameEmbedding]]:
        found: list[dict[int, FrameEmbedding]] = [{} for _ in clips]
        if (describer := self._describer) is not None:
            frames = deque((at, frame) for at, clip in enumerate(clips) for frame in range(clip.frames))
            while frames or describer.busy:
                while frames and describer.room > 0:
                    at, frame = frames.popleft()
                    describer.add((at, frame), clips[at].captioned[frame])
                for each in describer.advance():
                    at, frame = each.key  # type: ignore[misc]
                    found[at][frame] = each
        return [[of[frame] for frame in sorted(of)] for of in found]

    def _numbers(self, clip: PreparedClip, described: Sequence[FrameEmbedding]) -> Numbers:
        vectors = [each.vector for each in described]
        stages: dict[str, float] = {}
        for each in described:
            for stage, milliseconds in each.stages_ms.items():
                stages[stage] = stages.get(stage, 0.0) + milliseconds
        if self._cnn is not None:
            stages["cnn"] = 0.0
            with timed(stages, "cnn"):
                vectors.append(self._cnn.run({"frames": clip.motion[None]})["embedding"][0])
        if not all(np.isfinite(vector).all() for vector in vectors):
            raise DataError("gave what are no finite numbers", code="not_finite")
        return Numbers(tuple(vectors), tuple(each.caption for each in described), stages)


def read_clips(
    bundle: Bundle, opening: Opening, clips: Iterable[Clip], limits: DecodeLimits | None
) -> list[PreparedClip]:
    """The first ``CLIPS`` that can be read, of at most ``_TRIED``. Raises as ``GraphOpener.open``."""
    opener = GraphOpener(bundle, replace(opening, backend_options=CONFIGURATIONS[REFERENCE]))
    features = KeyframeFeatures(opener.open("keyframes")) if "keyframes" in stages_of(bundle.manifest) else None
    bundle.verify_unchanged()
    read: list[PreparedClip] = []
    with closing(ClipReader(bundle.manifest, VideoDecoder(bundle.manifest.keyframes, limits), features)) as reader:
        for _, clip in zip(range(_TRIED), clips, strict=False):
            try:
                read.append(reader.read(clip))
            except (DataError, StorageError):  # the extraction reports it
                continue
            if len(read) == CLIPS:
                break
    return read


def benchmark_backends(
    bundle: Bundle, opening: Opening, ways: Sequence[str], clips: Sequence[PreparedClip], stop: Callable[[], bool]
) -> Measured | None:
    """The figures of ``ways``, of CONFIGURATIONS, and of their mixture where it promises a gain;
    None when ``stop`` said so.

    Without figures of ONNX Runtime, which the others are compared with, there are none at all.
    """
    contest = _Contest(clips, stop)
    for name in ways:
        opener = GraphOpener(bundle, replace(opening, backend_options=replace(CONFIGURATIONS[name], require=True)))
        contest.enter(name, partial(Networks, bundle, opener.open))
    contest.take_turns()
    of = {name: entry.networks for name, entry in contest.entries.items()}
    by_graph = mixture(bundle.manifest, contest.measurements())
    if by_graph:
        contest.enter(MIXED, partial(Networks, bundle, lambda graph: of[by_graph[graph]].session(graph)))
        if MIXED in contest.entries:
            contest.take_turns()  # all again: what ran at another time is not compared
    return None if contest.stopped else Measured(contest.measurements(by_graph), contest.refused)


@dataclass(eq=False)
class _Entry:
    """One way, open: what it gave at first, and the stages' milliseconds of every timed pass, of a clip."""

    networks: Networks
    first: list[Numbers]
    passes: list[dict[str, float]] = field(default_factory=list)

    @property
    def spent_ms(self) -> float:
        return len(self.first) * sum(sum(stages.values()) for stages in self.passes)

    def measurement(self, name: str, reference: _Entry, mixed: Mapping[str, str] | None = None) -> Measurement:
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


class _Contest:
    """The ways that take part, and why others do not. Once ``stopped`` nothing more is done."""

    def __init__(self, clips: Sequence[PreparedClip], stop: Callable[[], bool]) -> None:
        self._clips = clips
        self._stop = stop
        self.stopped = False
        self.entries: dict[str, _Entry] = {}
        self.refused: dict[str, str] = {}

    def enter(self, name: str, make: Callable[[], Networks]) -> None:
        """Open a way and let it warm up; what it cannot do is a refusal."""
        if self._goes_on():
            try:
                networks = make()
                self.entries[name] = _Entry(networks, networks.run(self._clips))
            except FlamestError as error:
                self.refused[name] = error.message

    def take_turns(self) -> None:
        """Time all anew, ``PASSES`` each and more of small networks; a way that fails on the way is out."""
        for entry in self.entries.values():
            entry.passes = []
        for passed in range(MOST_PASSES):
            if passed >= PASSES and all(entry.spent_ms >= ENOUGH_MS for entry in self.entries.values()):
                return
            for name, entry in list(self.entries.items()):
                if not self._goes_on():
                    return
                try:
                    done = entry.networks.run(self._clips)
                except FlamestError as error:
                    self.refused[name] = error.message
                    del self.entries[name]
                    continue
                stages = done[0].stages_ms
                entry.passes.append({stage: fmean(each.stages_ms[stage] for each in done) for stage in stages})

    def measurements(self, mixed: Mapping[str, str] | None = None) -> tuple[Measurement, ...]:
        """The figures, ONNX Runtime's first; none without it, and none of what was stopped."""
        reference = self.entries.get(REFERENCE)
        if self.stopped or reference is None:
            return ()
        return tuple(entry.measurement(name, reference, mixed) for name, entry in self.entries.items())

    def _goes_on(self) -> bool:
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
    return faster if promised <= GAIN * alone else {}


def _by_graph(manifest: Manifest, stages_ms: Mapping[str, float]) -> dict[str, float]:
    """Milliseconds of a clip by the graph that takes them."""
    spent: dict[str, float] = {}
    for stage, milliseconds in stages_ms.items():
        graph = graph_of(stage, manifest.graphs)
        if graph is not None:
            spent[graph] = spent.get(graph, 0.0) + milliseconds
    return spent
