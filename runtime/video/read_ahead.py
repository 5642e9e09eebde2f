"""Read several clips at once, ahead of the networks, and return them in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

from ...base.errors import DataError
from ..clip_records import Clip
from .clip_reader import ClipReader, PreparedClip


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
        self._idle: SimpleQueue[ClipReader] = SimpleQueue()
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

    def next(self) -> PreparedClip | RefusedClip:
        """Wait for the next clip, in the order of submission. Errors other than DataError are raised."""
        return self._coming.popleft().result()

    def cancel(self) -> None:
        """Drop all clips that ``next`` has not returned; those being read are read to their end, unused."""
        while self._coming:
            self._coming.popleft().cancel()

    def close(self) -> None:
        """Wait for the clips that are being read, then end the decoders."""
        self.cancel()
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
