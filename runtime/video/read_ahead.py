"""Read several clips at once, ahead of the networks, and return them as they are ready."""

from __future__ import annotations

import itertools
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ...base.errors import DataError
from ...base.files import Stopped
from ..clip_records import Clip
from .clip_reader import ClipReader, PreparedClip
from .unreadable_files import UnreadableFiles

FINISH_WITHIN_S = 5.0  # for the clip that is waited for, once asked to stop
_POLL_S = 0.2
MOST_LOOKED_AT = 256  # clips that wait, when a reader chooses its next


@dataclass(frozen=True, eq=False)
class RefusedClip:
    """A clip that cannot be used, and the reason."""

    clip: Clip
    error: DataError


class ReadClip(NamedTuple):
    """A clip that was read, with the key that it was submitted with."""

    key: Hashable
    outcome: PreparedClip | RefusedClip


class _Task(NamedTuple):
    call: int  # of ``cancel``: earlier tasks are dropped
    key: Hashable
    clip: Clip


class _Done(NamedTuple):
    task: _Task
    outcome: PreparedClip | RefusedClip | BaseException


class ReadAhead:
    """``submit`` clips, get them prepared with ``take``; each reader works in its own thread.

    A reader goes on with segments of the file that it has open, and leaves those of other readers' files to them while
    there is other work.

    One thread submits, and one, the same or another, takes. ``cancel`` and ``close``: when neither does so.

    Clips that are submitted and not returned stay in memory; the caller bounds their number, ``len``.
    """

    def __init__(self, readers: Sequence[ClipReader]) -> None:
        self._readers = tuple(readers)
        self._tasks: deque[_Task] = deque()
        self._changed = threading.Condition()  # guards the tasks, the open files and ``_closing``
        self._open: dict[ClipReader, Path] = {}  # the file whose segment each reader read last
        self._closing = False
        self._done: queue.SimpleQueue[_Done] = queue.SimpleQueue()
        self._call = 0
        self._outstanding = 0
        self._counting = threading.Lock()
        self._busy: set[ClipReader] = set()
        self._unreadable = UnreadableFiles()
        self._threads: list[threading.Thread] = []

    def __len__(self) -> int:
        return self._outstanding

    @property
    def ready(self) -> bool:
        """True when ``take`` most likely returns without waiting."""
        return not self._done.empty()

    @property
    def peak_kb(self) -> int:
        """Largest resident memory of the decoder processes so far, summed over the processes, KiB."""
        return sum(reader.video.peak_kb for reader in self._readers)

    def submit(self, clip: Clip, key: Hashable = None) -> None:
        """Add a clip to those that are read."""
        if len(self._threads) < len(self._readers):
            thread = threading.Thread(
                target=self._work, args=(self._readers[len(self._threads)],), name="flamest-reader", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        with self._counting:
            self._outstanding += 1
        with self._changed:
            self._tasks.append(_Task(self._call, key, clip))
            self._changed.notify()

    def take(self, timeout_s: float | None = None) -> ReadClip | None:
        """The next clip that is read, in any order; None when there is none within ``timeout_s`` (None: it waits).

        Errors other than DataError are raised.
        """
        until = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while True:
            wait = None if until == math.inf else until - time.monotonic()
            try:
                done = self._done.get(timeout=wait) if wait is None or wait > 0 else self._done.get_nowait()
            except queue.Empty:
                return None
            if done.task.call == self._call:
                break
        with self._counting:
            self._outstanding -= 1
        if isinstance(done.outcome, BaseException):
            raise done.outcome
        return ReadClip(done.task.key, done.outcome)

    def next(self, stop: Callable[[], bool] = lambda: False) -> ReadClip:
        """Wait for the next clip. Raises Stopped when ``stop`` returns True and none is read ``FINISH_WITHIN_S``
        later."""
        until = math.inf
        while (found := self.take(_POLL_S)) is None:
            if until == math.inf and stop():
                until = time.monotonic() + FINISH_WITHIN_S
            if time.monotonic() > until:
                raise Stopped
        return found

    def cancel(self) -> None:
        """Drop all clips that were not returned; those being read go on until ``close``, unused."""
        with self._counting:
            self._call += 1
            self._outstanding = 0

    def close(self) -> None:
        """End the decoders; clips that are being read are given up."""
        self.cancel()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for reader in tuple(self._busy):
            reader.video.interrupt()
        for thread in self._threads:
            thread.join()
        for reader in self._readers:
            reader.close()

    def _work(self, reader: ClipReader) -> None:
        while (task := self._next_task(reader)) is not None:
            self._busy.add(reader)  # before the next line: ``close`` sees a busy reader, or this one the new call
            if task.call == self._call:
                self._done.put(_Done(task, _read(reader, task.clip, self._unreadable)))
            self._busy.discard(reader)

    def _next_task(self, reader: ClipReader) -> _Task | None:
        """Wait for the task that is ``reader``'s best; None when there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._tasks or self._closing)
            if self._closing:
                return None
            mine = self._open.get(reader)
            others = {path for other, path in self._open.items() if other is not reader}
            waiting = list(itertools.islice(self._tasks, MOST_LOOKED_AT))
            ours = (task for task in waiting if task.clip.segment is not None and task.clip.path == mine)
            free = (task for task in waiting if task.clip.segment is None or task.clip.path not in others)
            task = next(ours, None) or next(free, None) or waiting[0]
            self._tasks.remove(task)
            if task.clip.segment is not None:
                self._open[reader] = task.clip.path
            else:
                self._open.pop(reader, None)
            return task


def _read(reader: ClipReader, clip: Clip, unreadable: UnreadableFiles) -> PreparedClip | RefusedClip | BaseException:
    try:
        unreadable.check(clip)
        with unreadable.noted(clip):
            return reader.read(clip)
    except DataError as error:
        return RefusedClip(clip, error)
    except BaseException as error:  # raised where the clip is taken
        return error
