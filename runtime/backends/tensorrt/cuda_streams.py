"""CUDA streams, and marks: points in their work that other streams and the host can wait for."""

from __future__ import annotations

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
    number: int  # counts the marks of the stream, from 1


class Stream:
    """Work in order on one GPU. Used by one thread at a time: its owner holds a lock."""

    def __init__(self, calls: CudaCalls) -> None:
        self._calls = calls
        # Not the legacy default stream's: that one would wait for all others, and cannot be captured.
        self.handle = int(calls("cudaStreamCreateWithFlags", calls.runtime.cudaStreamNonBlocking))
        self._events: list[Any] = []
        self._marks = 0
        self._waited: dict[Stream, int] = {}  # by stream the newest mark that this one waits for
        self.done = 0  # number of the newest mark that the host has waited for

    def mark(self) -> Mark:
        """Record the work so far. When that fails, it has been waited for."""
        if self._marks == len(self._events) < EVENTS:
            runtime = self._calls.runtime
            flags = runtime.cudaEventDisableTiming | runtime.cudaEventBlockingSync  # the host sleeps and does not spin
            self._events.append(self._calls("cudaEventCreateWithFlags", flags))
        mark = Mark(self, self._marks + 1)
        try:
            self._calls("cudaEventRecord", self.event_of(mark), self.handle)
        except BaseException:
            self._calls.quietly("cudaStreamSynchronize", self.handle)
            raise
        self._marks = mark.number
        return mark

    def wait_for(self, mark: Mark | None) -> None:
        """Let the work that comes next on this stream begin after ``mark``."""
        if (
            mark is None
            or mark.stream is self
            or mark.number <= max(mark.stream.done, self._waited.get(mark.stream, 0))
        ):
            return
        self._calls("cudaStreamWaitEvent", self.handle, mark.stream.event_of(mark), 0)
        self._waited[mark.stream] = mark.number

    def event_of(self, mark: Mark) -> Any:
        """The event of a mark of this stream."""
        return self._events[(mark.number - 1) % EVENTS]

    def synchronize(self) -> None:
        """Wait on the host until all work is done."""
        number = self._marks
        self._calls("cudaStreamSynchronize", self.handle)
        self.done = max(self.done, number)


def host_wait(calls: CudaCalls, mark: Mark | None) -> None:
    """Wait on the host until the work before ``mark`` is done."""
    if mark is not None and mark.number > mark.stream.done:
        calls("cudaEventSynchronize", mark.stream.event_of(mark))
        mark.stream.done = max(mark.stream.done, mark.number)
