"""The networks of an extractor on batches of clips: frames in, vectors out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from .backends.session import Feed, Session, Value, check_shape
from .captioner import Captioner, FrameEmbedding, StartedFrames
from .clip_job import ClipJob
from .pipeline_options import rounded_up
from .video.clip_reader import PreparedClip

QUEUED_BATCHES = 2  # between two stages: one that is next, one that is being put together
UNFINISHED_BATCHES = QUEUED_BATCHES + 1  # of clips: those, and the one that a stage has taken
FrameKey = tuple[ClipJob, int]  # a captioned frame: its clip, and its index in it


@dataclass(frozen=True, eq=False)
class FrameBatch:
    """Frames for one run of the vision graph. ``pixels`` may have further rows."""

    keys: tuple[FrameKey, ...]
    pixels: Feed


@dataclass(frozen=True, eq=False)
class ClipBatch:
    """Clips for one run of graph ``cnn`` (None where the extractor has none), and their frames to caption."""

    jobs: tuple[ClipJob, ...]
    cnn_frames: Feed | None
    captioned: tuple[FrameBatch, ...]
    cnn2_frames: Feed | None = None  # of graph ``cnn2``


@dataclass(frozen=True, eq=False)
class StartedClips:
    """Runs of graphs ``cnn`` and ``cnn2`` that may not have ended."""

    jobs: tuple[ClipJob, ...]
    vectors: tuple[Value, ...]  # of each graph
    began: float  # on time.perf_counter


class _BatchMemory:
    """Rows put together for one input of a session.

    On a device the number of rows is rounded up to a power of two, so that few shapes occur, and arrays are used again:
    the one that is filled now, and those that are queued or on their way to the device (``in_use`` at most).
    """

    def __init__(self, session: Session, most: int, *, in_use: int) -> None:
        self._on_host = session.computes_on_host
        self.most = min(most, session.largest_batch or most)
        self._arrays: list[npt.NDArray[Any] | None] = [None] * (in_use + 1)
        self._turn = 0

    def feed(self, rows: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        if self._on_host:
            return rows[0][None] if len(rows) == 1 else np.stack(rows)
        self._turn = (self._turn + 1) % len(self._arrays)
        array = self._arrays[self._turn]
        if array is None:
            array = self._arrays[self._turn] = np.zeros((self.most, *rows[0].shape), rows[0].dtype)
        for place, row in enumerate(rows):
            array[place] = row
        return array[: min(rounded_up(len(rows)), self.most)]


class Networks:
    """``batch`` clips at once. ``put_together``, the runs of ``cnn``, those of the vision graph and ``write`` may have
    a thread each."""

    def __init__(
        self,
        captioner: Captioner[Any] | None,
        cnn: Session | None,
        batch: int,
        *,
        captioned_frames: int = 1,
        cnn2: Session | None = None,
    ) -> None:
        self.captioner, self._cnn, self._cnn2 = captioner, cnn, cnn2
        self._clips, self._clips2 = (
            _BatchMemory(session, batch, in_use=UNFINISHED_BATCHES) if session is not None else None
            for session in (cnn, cnn2)
        )
        self._frames = None
        if captioner is not None:
            most = captioner.vision.largest_batch or batch
            runs = -(-batch * captioned_frames // min(most, batch))  # of the vision graph for one batch of clips
            self._frames = _BatchMemory(captioner.vision, batch, in_use=UNFINISHED_BATCHES * runs)
        memories = (self._clips, self._clips2, self._frames)
        self.batch = min((memory.most for memory in memories if memory is not None), default=batch)

    @property
    def has_cnn(self) -> bool:
        return self._cnn is not None

    def put_together(self, clips: Sequence[tuple[ClipJob, PreparedClip]]) -> ClipBatch:
        """The frames of at most ``batch`` clips in as few arrays as they need."""
        for job, prepared in clips:
            job.begin(prepared, cnn=self._cnn is not None)
        cnn_frames = self._clips.feed([prepared.cnn_frames for _, prepared in clips]) if self._clips else None
        cnn2_frames = self._clips2.feed([prepared.cnn2_frames for _, prepared in clips]) if self._clips2 else None
        captioned: list[FrameBatch] = []
        if self._frames is not None:
            frames = [((job, at), pixels) for job, prepared in clips for at, pixels in enumerate(prepared.captioned)]
            for start in range(0, len(frames), self._frames.most):
                some = frames[start : start + self._frames.most]
                pixels = self._frames.feed([pixels for _, pixels in some])
                captioned.append(FrameBatch(tuple(key for key, _ in some), pixels))
        return ClipBatch(tuple(job for job, _ in clips), cnn_frames, tuple(captioned), cnn2_frames)

    def start_cnn(self, batch: ClipBatch) -> StartedClips | None:
        """Start graphs ``cnn`` and ``cnn2`` on all clips (paper eq. 7); None where the extractor has neither."""
        began = time.perf_counter()
        vectors = tuple(
            session.run_values({"frames": frames}, ["embedding"])["embedding"]
            for session, frames in ((self._cnn, batch.cnn_frames), (self._cnn2, batch.cnn2_frames))
            if session is not None and frames is not None
        )
        return StartedClips(batch.jobs, vectors, began) if vectors else None

    def finish_cnn(self, started: StartedClips) -> list[ClipJob]:
        """Wait for the end of the run; return the clips that are done with it."""
        jobs, found = started.jobs, [each.numpy()[: len(started.jobs)] for each in started.vectors]
        for each in found:
            check_shape(each, (len(jobs), None), output="embedding")
        vectors = found[0] if len(found) == 1 else np.concatenate(found, axis=1)
        share = (time.perf_counter() - started.began) * 1e3 / len(jobs)
        return [job for job, vector in zip(jobs, vectors, strict=True) if job.set_cnn(vector, share)]

    def start_vision(self, frames: FrameBatch) -> StartedFrames[Any]:
        """Start the vision graph."""
        assert self.captioner is not None
        return self.captioner.start(frames.pixels, len(frames.keys))

    def write(self) -> list[ClipJob]:
        """Do a part of the captioner's work; return the clips that are done with it."""
        finished: list[FrameEmbedding] = self.captioner.advance() if self.captioner is not None else []
        done = []
        for frame in finished:
            job, index = cast(FrameKey, frame.key)
            if job.set_frame(index, frame):
                done.append(job)
        return done
