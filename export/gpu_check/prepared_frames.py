"""The networks of an extraction fed from memory: the pipeline's own stages and batches, with no file and no decoder.

What this reaches is what a GPU could do if reading clips cost nothing: the figure that is meant by "counting prepared
frames".
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...base.errors import FlamestError
from ...runtime.backends.opening import OpeningOptions
from ...runtime.backends.options import BackendOptions
from ...runtime.bundle.manifest import Manifest
from ...runtime.clip_records import Clip
from ...runtime.extractor import Extractor, open_extractor
from ...runtime.pipeline_options import PipelineOptions
from ...runtime.video.clip_reader import PreparedClip
from ...runtime.video.read_ahead import ReadClip
from ..bench.child import gpu_used_mb
from ..bench.comparison import quantiles

KEPT = 8  # different clips, in turn
TIMED_BATCHES, LEAST = 20, 32  # clips that are timed: so many batches, and no fewer
AROUND = 4  # batches before and after them, in which the stages fill and drain
MOST_ROUNDS = 8  # of warming up
READING = ("decode", "keyframes", "prepare")  # stages that memory takes the place of


def measure_prepared(bundle: Path, backend: str, batches: Sequence[int]) -> dict[str, Any]:
    """Clips a second at each batch on ``backend``, with p50 and p95 of each stage in milliseconds of a clip.

    A batch that does not run (memory, an engine's largest batch) has its ``problem``; when none runs, the first one's
    error is raised.
    """
    found: dict[str, Any] = {}
    first: FlamestError | None = None
    for batch in batches:
        try:
            found[str(batch)] = _measure_batch(bundle, backend, batch)
        except FlamestError as error:
            first = first or error
            found[str(batch)] = {"problem": error.message}
    if first is not None and all("problem" in row for row in found.values()):
        raise first
    return {"backend": backend, "batches": found}


def _measure_batch(bundle: Path, backend: str, batch: int) -> dict[str, Any]:
    opening = OpeningOptions(BackendOptions(backend, require=True))
    sizes = PipelineOptions(readers=1, batch=batch, captions=max(batch, 1))
    with open_extractor(bundle, pipeline=sizes, opening=opening) as extractor:
        feed_from_memory(extractor)
        rounds = warm_up(lambda: _run(extractor, (AROUND + 2) * batch), lambda: _work_of_graphs(extractor))
        before, _ = _work_of_graphs(extractor)
        count = max(TIMED_BATCHES * batch, LEAST)
        done = _run(extractor, count + 2 * AROUND * batch)
        features, speed = steady_part(done, AROUND * batch, batch)
        stages = [stage for stage in extractor.stages if stage not in READING]
        return {
            "clips": len(features),
            "batch": extractor.sizes.batch,
            "clips_per_second": speed,
            "warm_up_rounds": rounds,
            "captures_while_timed": _work_of_graphs(extractor)[0] - before,
            "stages": {stage: quantiles([each.stages_ms[stage] for each in features]) for stage in stages},
            "caption_tokens": float(np.mean([len(each.caption.token_ids) for each in features])),
            "gpu_mb": None if backend == "onnxruntime" else gpu_used_mb(),
        }


def warm_up(run: Callable[[], object], work_of_graphs: Callable[[], tuple[int, int]]) -> int:
    """Run until a whole round captures no CUDA graph and replays some, if there are any; the number of rounds.

    ``work_of_graphs``: captures and replays so far.
    """
    captures, replays = work_of_graphs()
    for number in range(1, MOST_ROUNDS + 1):
        run()
        captured, replayed = work_of_graphs()
        settled = captured == captures and (captured == 0 or replayed > replays)
        captures, replays = captured, replayed
        if settled and number > 1:  # the first one allocates
            return number
    return MOST_ROUNDS


def steady_part(done: Sequence[tuple[float, Any]], around: int, batch: int) -> tuple[list[Any], float]:
    """Units made between the first and the last ``around`` results of ``done``, and their number a second.

    ``done``: each result with the time at which it was there, in seconds. Results of a batch come at once: those at the
    beginning of the part are not counted in the speed, since their work was before.
    """
    part = done[around : len(done) - around]
    begins, ends = part[batch - 1][0], part[-1][0]
    return [made for _, made in part], (len(part) - batch) / max(ends - begins, 1e-9)


def _work_of_graphs(extractor: Extractor) -> tuple[int, int]:
    sessions = extractor._opener._on_gpu
    captures, replays = (sum(getattr(each, name, 0) for each in sessions) for name in ("captures", "replays"))
    return captures, replays


def _run(extractor: Extractor, count: int) -> list[tuple[float, Any]]:
    """The features of so many clips, each with the time at which they were there."""
    features = []
    for done in extractor.extract_all(Clip(Path(f"{number}"), "") for number in range(count)):
        if done.features is None:
            assert done.error is not None
            raise done.error
        features.append((time.perf_counter(), done.features))
    return features


def feed_from_memory(extractor: Extractor) -> None:
    """Replace the readers of an extractor by seeded frames in memory."""
    extractor._ahead.close()
    extractor._ahead = MemoryReads(seeded_clips(extractor.manifest))  # type: ignore[assignment]


class MemoryReads:
    """The interface of runtime/video/read_ahead.py's ReadAhead over prepared clips: every clip is read at once."""

    peak_kb = 0

    def __init__(self, clips: Sequence[PreparedClip]) -> None:
        self._clips = clips
        self._read: queue.SimpleQueue[ReadClip] = queue.SimpleQueue()
        self._count = self._outstanding = 0

    def __len__(self) -> int:
        return self._outstanding

    @property
    def ready(self) -> bool:
        return not self._read.empty()

    def submit(self, clip: Clip, key: Hashable = None) -> None:
        prepared = replace(self._clips[self._count % len(self._clips)], clip=clip)
        self._count += 1
        self._outstanding += 1
        self._read.put(ReadClip(key, prepared))

    def take(self, timeout_s: float | None = None) -> ReadClip | None:
        try:
            found = self._read.get(timeout=timeout_s)
        except queue.Empty:
            return None
        self._outstanding -= 1
        return found

    def next(self, stop: Callable[[], bool] = lambda: False) -> ReadClip:
        found = self.take()
        assert found is not None
        return found

    def cancel(self) -> None:
        self._outstanding = 0
        while not self._read.empty():
            self._read.get()

    def close(self) -> None:
        self.cancel()


def seeded_clips(manifest: Manifest) -> list[PreparedClip]:
    """Clips whose frames are seeded noise, of the shapes and types that the bundle's graphs take."""
    random = np.random.default_rng(0)
    captioned, cnn, cnn2 = (_frames(manifest, names) for names in (("vision", "clip"), ("cnn",), ("cnn2",)))
    count = manifest.vlm.captioned_frames if manifest.vlm is not None else 0
    return [
        PreparedClip(
            clip=Clip(Path(), ""),
            captioned=_noise(random, (count, *captioned[0]), captioned[1]),
            cnn_frames=_noise(random, *cnn),
            cnn2_frames=_noise(random, *cnn2),
            keyframe=0 if count else -1,
            times_s=(0.0,),
            stages_ms=dict.fromkeys(READING, 0.0),
            warnings=(),
        )
        for _ in range(KEPT)
    ]


def _frames(manifest: Manifest, names: Sequence[str]) -> tuple[tuple[int, ...], str]:
    """Shape without the batch, and type, of the first of these graphs that the bundle has; else of nothing."""
    for name in names:
        if name in manifest.graphs:
            (tensor,) = manifest.graphs[name].inputs
            return tuple(int(size) for size in tensor.shape[1:]), tensor.dtype
    return (0,), "float32"


def _noise(random: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Any:
    if dtype == "uint8":
        return random.integers(0, 256, shape, dtype=np.uint8)
    return random.standard_normal(shape, dtype=np.float32)
