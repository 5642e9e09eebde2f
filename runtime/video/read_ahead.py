"""Read several clips at once, ahead of the networks, and return them in order."""

from __future__ import annotations

import contextlib
import math
import queue
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from ...base.errors import DataError
from ...base.files import Stopped
from ..clip_records import Clip
from .clip_reader import ClipReader, PreparedClip

FINISH_WITHIN_S = 5.0  # for the clip that is waited for, once asked to stop
_POLL_S = 0.2


@dataclass(frozen=True, eq=False)
class RefusedClip:
    """A clip that cannot be used, and the reason."""

    clip: Clip
    error: DataError


class ReadAhead:
    """``submit`` clips, get them prepared with ``next``. For one thread; each reader works in its own thread.

    Clips that are submitted and not returned stay in memory; the caller bounds their number, ``len``.
    """

    def __init__(self, readers: Sequence[ClipReader]) -> None:
        self._readers = tuple(readers)
        self._idle: queue.SimpleQueue[ClipReader] = queue.SimpleQueue()
        for reader in self._readers:
            self._idle.put(reader)
        self._pool = ThreadPoolExecutor(len(self._readers), thread_name_prefix="flamest-reader")
        self._coming: deque[Future[PreparedClip | RefusedClip]] = deque()

    def __len__(self) -> int:
        return len(self._coming)

    @property
    def ready(self) -> bool:
        """True when ``next`` returns without waiting."""
        return bool(self._coming) and self._coming[0].done()

    @property
    def peak_kb(self) -> int:
        """Largest resident memory of the decoder processes so far, summed over the processes, KiB."""
        return sum(reader.video.peak_kb for reader in self._readers)

    def submit(self, clip: Clip) -> None:
        """Add a clip to those that are read."""
        self._coming.append(self._pool.submit(self._read, clip))

    def next(self, stop: Callable[[], bool] = lambda: False) -> PreparedClip | RefusedClip:
        """Wait for the next clip, in the order of submission. Errors other than DataError are raised.

        Raises Stopped when ``stop`` returns True and the clip is not read ``FINISH_WITHIN_S`` later.
        """
        coming, until = self._coming.popleft(), math.inf
        while True:
            try:
                return coming.result(_POLL_S)
            except TimeoutError:
                if coming.done():  # it ended just now, perhaps with a TimeoutError of its own
                    return coming.result()
            if until == math.inf and stop():
                until = time.monotonic() + FINISH_WITHIN_S
            if time.monotonic() > until:
                raise Stopped

    def cancel(self) -> None:
        """Drop all clips that ``next`` has not returned; those being read go on until ``close``, unused."""
        while self._coming:
            self._coming.popleft().cancel()

    def close(self) -> None:
        """End the decoders; clips that are being read are given up."""
        self.cancel()
        idle = set()
        with contextlib.suppress(queue.Empty):
            while True:
                idle.add(self._idle.get_nowait())
        for reader in self._readers:
            if reader not in idle:
                reader.video.interrupt()
        for reader in idle:
            self._idle.put(reader)
        self._pool.shutdown(wait=True)
        for reader in self._readers:
            reader.close()

    def _read(self, clip: Clip) -> PreparedClip | RefusedClip:
        reader = self._idle.get()
        try:
            return reader.read(clip)
        except DataError as error:
            return RefusedClip(clip, error)
        finally:
            self._idle.put(reader)
