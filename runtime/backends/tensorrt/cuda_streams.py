"""CUDA streams, and marks: points in their work that other streams and the host can wait for.

A mark is recorded at once, where work after it must not be waited for too (a run), or later, when it is needed: the
many small copies of rows share one event then. Recording may come from another thread than that of the stream's work,
and would become a part of a capture; so a capture holds the stream's ``lock``, and recording takes it. So does giving a
mark its number: a driver may have recorded an event that is not counted yet.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .cuda_calls import CudaCalls

EVENTS = 64  # of a stream; see Mark


@dataclass(frozen=True)
class Mark:
    """The work that was put on ``stream`` before this mark.

    A stream has a fixed number of events and uses the oldest again. So the event of an old mark may have been recorded
    again, later on the same stream: waiting for it takes longer then, and still covers the mark.
    """

    stream: Stream
    number: int  # counts the recorded marks of the stream, from 1


class Stream:
    """Work in order on one GPU. Its owner puts work on it under a lock of its own; marks may be used by any thread."""

    def __init__(self, calls: CudaCalls) -> None:
        self._calls = calls
        # Not the legacy default stream's: that one would wait for all others, and cannot be captured.
        self.handle = int(calls("cudaStreamCreateWithFlags", calls.runtime.cudaStreamNonBlocking))
        self.lock = threading.Lock()  # no other lock is taken under it
        self._events: list[Any] = []
        self._recorded = 0  # marks
        self._waited: dict[Stream, int] = {}  # by stream the newest mark that this one waits for
        self.done = 0  # number of the newest mark that the host has waited for

    def mark(self) -> Mark:
        """Record the work so far. When that fails, it has been waited for."""
        with self.lock:
            return self._record()

    def open_mark(self) -> Mark:
        """A mark of the work so far that is recorded when someone waits for it, or with the next ``mark``."""
        with self.lock:  # another thread may be recording that mark, before the latest work
            return Mark(self, self._recorded + 1)

    def wait_for(self, marks: Mapping[Stream, int]) -> None:
        """Let the work that comes next on this stream begin after marks of other streams, given by their numbers."""
        for stream, number in marks.items():
            if number > stream.done and number > self._waited.get(stream, 0):
                self._calls("cudaStreamWaitEvent", self.handle, stream.event_of(number), 0)
                self._waited[stream] = number

    def event_of(self, number: int) -> Any:
        """The event of a mark of this stream, recorded now if it was open."""
        if number > self._recorded:
            with self.lock:
                if number > self._recorded:
                    self._record()
        return self._events[(number - 1) % EVENTS]

    def synchronize(self) -> None:
        """Wait on the host until all work is done."""
        number = self._recorded
        self._calls("cudaStreamSynchronize", self.handle)
        self.done = max(self.done, number)

    def _record(self) -> Mark:
        if self._recorded == len(self._events) < EVENTS:
            runtime = self._calls.runtime
            flags = runtime.cudaEventDisableTiming | runtime.cudaEventBlockingSync  # the host sleeps and does not spin
            self._events.append(self._calls("cudaEventCreateWithFlags", flags))
        try:
            self._calls("cudaEventRecord", self._events[self._recorded % EVENTS], self.handle)
        except BaseException:
            self._calls.quietly("cudaStreamSynchronize", self.handle)
            raise
        self._recorded += 1
        return Mark(self, self._recorded)


def host_wait(calls: CudaCalls, mark: Mark | None) -> None:
    """Wait on the host until the work before ``mark`` is done."""
    if mark is not None and mark.number > mark.stream.done:
        calls("cudaEventSynchronize", mark.stream.event_of(mark.number))
        mark.stream.done = max(mark.stream.done, mark.number)
