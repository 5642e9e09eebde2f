"""The order in which clips go through the networks: one thread on the host, one per stage on a device.

On the host every network uses all cores, so they take turns: ``OneThread``. On a device a stage waits for results most
of the time, while others have something to do: with ``ThreadPerStage`` frames are put together and copied while the
networks compute, and vision, captions and ``cnn`` are computed side by side. The queues between stages are bounded: a
stage that is ahead waits.

    read clips -> put together -> cnn
                               -> vision -> captions
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, cast

from ..base.files import Stopped
from .bounded_queue import BoundedQueue, QueueClosed
from .captioner import Captioner, EncodedFrames, StartedFrames
from .clip_job import ClipJob
from .networks import QUEUED_BATCHES, ClipBatch, FrameBatch, Networks, StartedClips
from .video.clip_reader import PreparedClip
from .video.read_ahead import FINISH_WITHIN_S, ReadAhead, ReadClip, RefusedClip

_POLL_S = 0.2
_SWITCH_S = 0.0005  # a thread that wants to go on waits so long for Python's lock, and not 5 ms, the default
_COLLECT_S = 0.005  # between two looks at whether a stage waits for a batch that is not full


class Stages(Protocol):
    """Takes clips from a ReadAhead, whose keys are ClipJobs, and finishes them."""

    def advance(self, stop: Callable[[], bool]) -> list[ClipJob]:
        """Do some work, or wait for it; the clips that are done now. Raises Stopped as ``ReadAhead.next``."""

    def close(self) -> None:
        """Drop all unfinished clips."""


class OneThread:
    """All stages in the caller's thread."""

    def __init__(self, ahead: ReadAhead, networks: Networks) -> None:
        self._ahead, self._networks = ahead, networks

    def advance(self, stop: Callable[[], bool]) -> list[ClipJob]:
        networks, captioner = self._networks, self._networks.captioner
        done, clips, frames = list[ClipJob](), list[tuple[ClipJob, PreparedClip]](), 0
        while (
            len(self._ahead)
            and len(clips) < networks.batch
            and (captioner is None or frames < captioner.free)
            and (self._ahead.ready or self._idle(clips))
        ):
            job, prepared = _accept(self._ahead.next(stop))
            if prepared is not None:
                clips.append((job, prepared))
                frames += prepared.frames
                continue
            done.append(job)
            if not clips:
                break  # its outcome may be the one that is waited for
        if clips:
            done += self._start(networks.put_together(clips))
        return done + networks.write()

    def close(self) -> None:
        self._ahead.cancel()
        if self._networks.captioner is not None:
            self._networks.captioner.cancel()

    def _idle(self, clips: list[tuple[ClipJob, PreparedClip]]) -> bool:
        captioner = self._networks.captioner
        return not clips and (captioner is None or not captioner.unfinished)

    def _start(self, batch: ClipBatch) -> list[ClipJob]:
        """Run ``cnn`` and begin the captions; return the clips that are done."""
        started = self._networks.start_cnn(batch)
        done = self._networks.finish_cnn(started) if started is not None else []
        captioner = self._networks.captioner
        for frames in batch.captioned:
            assert captioner is not None
            encoded, added = captioner.finish(self._networks.start_vision(frames)), 0
            while True:
                count = min(captioner.free, len(frames.keys) - added)
                captioner.add(frames.keys[added : added + count], encoded, first=added)
                added += count
                if added == len(frames.keys):
                    break
                done += self._networks.write()  # a clip of more frames than there are places
        return done


class ThreadPerStage:
    """A thread for each stage. An error in one of them is raised by ``advance``, after the clips that are done."""

    def __init__(self, ahead: ReadAhead, networks: Networks) -> None:
        self._ahead, self._networks = ahead, networks
        self._finished: queue.SimpleQueue[ClipJob | BaseException] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._cnn: BoundedQueue[ClipBatch] = BoundedQueue(QUEUED_BATCHES)
        self._vision: BoundedQueue[ClipBatch] = BoundedQueue(QUEUED_BATCHES)
        self._encoded: BoundedQueue[tuple[FrameBatch, EncodedFrames[Any]]] = BoundedQueue(1)
        loops: list[Callable[[], None]] = [self._put_together]
        self._fed: list[BoundedQueue[ClipBatch]] = []
        if networks.has_cnn:
            loops.append(self._run_cnn)
            self._fed.append(self._cnn)
        if networks.captioner is not None:
            loops += [self._encode, self._write]
            self._fed.append(self._vision)
        self._closed = False
        self._threads = [
            threading.Thread(target=self._guarded, args=(loop,), name=f"flamest{loop.__name__}", daemon=True)
            for loop in loops
        ]
        self._switch_s = sys.getswitchinterval()
        sys.setswitchinterval(min(_SWITCH_S, self._switch_s))
        for thread in self._threads:
            thread.start()

    def advance(self, stop: Callable[[], bool]) -> list[ClipJob]:
        done, until = list[ClipJob](), None
        while not done:
            if self._failure is not None:
                raise self._failure
            try:
                self._take_finished(done, _POLL_S)
            except queue.Empty:
                now = time.monotonic()
                if until is None and stop():
                    until = now + FINISH_WITHIN_S
                elif until is not None and now > until:
                    raise Stopped from None
            while not self._finished.empty():
                self._take_finished(done, _POLL_S)
        return done

    def close(self) -> None:
        self._closed = True
        for each in (self._cnn, self._vision, self._encoded):
            each.close()
        for thread in self._threads:
            thread.join()
        sys.setswitchinterval(self._switch_s)
        self._ahead.cancel()
        if self._networks.captioner is not None:
            self._networks.captioner.cancel()

    def _take_finished(self, done: list[ClipJob], timeout_s: float) -> None:
        found = self._finished.get(timeout=timeout_s)
        if isinstance(found, BaseException):
            self._failure = self._failure or found
        else:
            done.append(found)

    def _guarded(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except QueueClosed:
            pass
        except BaseException as error:  # raised by ``advance``
            self._finished.put(error)

    def _put_together(self) -> None:
        """Read clips -> batches: full ones, and smaller ones when the networks have nothing else to do."""
        while not self._closed:
            clips: list[tuple[ClipJob, PreparedClip]] = []
            while not self._closed and len(clips) < self._networks.batch:
                read = self._ahead.take(_COLLECT_S if clips else _POLL_S)
                if read is not None:
                    job, prepared = _accept(read)
                    if prepared is None:
                        self._finished.put(job)
                    else:
                        clips.append((job, prepared))
                elif clips and all(each.starving for each in self._fed):
                    break
            if clips and not self._closed:
                batch = self._networks.put_together(clips)
                for each in self._fed:
                    each.put(batch)

    def _run_cnn(self) -> None:
        """Batches -> vectors. A run begins before the one before it has been waited for."""
        started: StartedClips | None = None
        while True:
            batch = self._cnn.get() if started is None else self._cnn.poll()
            following = self._networks.start_cnn(batch) if batch is not None else None
            if started is not None:
                self._finish(self._networks.finish_cnn(started))
            started = following

    def _encode(self) -> None:
        """Batches -> encoded frames, in the same way."""
        captioner = self._networks.captioner
        assert captioner is not None
        started: tuple[FrameBatch, StartedFrames[Any]] | None = None
        left: list[FrameBatch] = []
        while True:
            if not left:
                batch = self._vision.get() if started is None else self._vision.poll()
                left = list(batch.captioned) if batch is not None else []
            following = (left[0], self._networks.start_vision(left.pop(0))) if left else None
            if started is not None:
                self._encoded.put((started[0], captioner.finish(started[1])))
            started = following

    def _write(self) -> None:
        """Generate captions; frames that are encoded take the places of finished ones."""
        captioner = self._networks.captioner
        assert captioner is not None
        waiting: tuple[FrameBatch, EncodedFrames[Any]] | None = None
        added = 0
        while True:
            while captioner.free:
                if waiting is None:
                    waiting, added = self._next_encoded(captioner), 0
                if waiting is None:
                    break
                frames, encoded = waiting
                count = min(captioner.free, len(frames.keys) - added)
                captioner.add(frames.keys[added : added + count], encoded, first=added)
                added += count
                if added == len(frames.keys):
                    waiting = None
            self._finish(self._networks.write())

    def _next_encoded(self, captioner: Captioner[Any]) -> tuple[FrameBatch, EncodedFrames[Any]] | None:
        """Frames whose captions can begin; None when a step is to come first.

        A step takes nearly as long for few rows as for many, so with more than half of the places free it waits for
        frames, as long as some are on their way.
        """
        while True:
            if not captioner.unfinished:
                return self._encoded.get()
            if (encoded := self._encoded.poll()) is not None:
                return encoded
            if captioner.free <= captioner.unfinished or self._vision.starving:
                return None
            self._encoded.wait(_COLLECT_S)

    def _finish(self, jobs: list[ClipJob]) -> None:
        for job in jobs:
            self._finished.put(job)


def _accept(read: ReadClip) -> tuple[ClipJob, PreparedClip | None]:
    """The job of a clip that was read, and its frames; None when it is refused, which the job then knows."""
    job = cast(ClipJob, read.key)
    if isinstance(read.outcome, RefusedClip):
        job.refuse(read.outcome.error)
        return job, None
    return job, read.outcome
