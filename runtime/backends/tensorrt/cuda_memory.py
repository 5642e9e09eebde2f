"""Memory of one GPU: blocks that are used again, in order, and page-locked buffers of the host for copies.

Work on a GPU is asynchronous, and several streams read and write one memory. So each block carries the marks of its
last write and of the reads since (``Accesses``), and each stream waits for the other streams' marks that matter before
it touches the block: for the last write before it reads, for the reads too before it writes. This holds for a value
that passes to another session, for a row that is replaced while an earlier run may still read it, and for a block that
was given back and is taken by someone else: a free block keeps its marks, and its next user waits for them.

A block is given back by the garbage collector, in whatever thread and at whatever point that runs, also in the middle
of a capture or while a lock is held. So giving back only appends to a queue, without a call of CUDA and without a
lock; ``take`` reads the queue.
"""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ....base.errors import FlamestError
from ..session import Array
from ..unavailable import Code, unavailable
from .cuda_calls import SMALLER_BATCH, CudaCalls
from .cuda_streams import Mark, Stream, host_wait

ALIGNMENT = 512  # of sizes; cudaMalloc's addresses are multiples of 256
SPARE = 4  # a free block serves sizes down to this part of its own
LARGE = 1 << 20  # bytes: from here on sizes are rounded to a quarter of a power of two
PINNED_SMALLEST = 1 << 16
PINNED_RING = 4  # buffers of a size for which copies may be under way; small ones 8 times as many
PINNED_MUCH = 512 << 20  # bytes of all buffers; beyond, a size gets 2 at most, and those not in use any more are freed
PINNED_OLD = 256  # uses of buffers since the last one of a size, which is not in use any more then


@dataclass
class Accesses:
    """The last write of a block, and by stream the last read since."""

    written: Mark | None = None
    reads: dict[Stream, Mark] = field(default_factory=dict)

    def marks(self) -> list[Mark]:
        return [*self.reads.values(), *([self.written] if self.written else [])]


@dataclass(frozen=True, eq=False)
class Block:
    """Memory on the device; ``kind`` names the list of free blocks that it returns to."""

    pointer: int
    size: int  # bytes
    kind: Hashable
    accesses: Accesses = field(default_factory=Accesses)


class DeviceMemory:
    """The blocks of one GPU. Any thread may use it.

    ``rare``: held for calls that allocate and free, and during a capture, in which they are forbidden.
    """

    def __init__(self, calls: CudaCalls) -> None:
        self._calls = calls
        self._lock = threading.Lock()  # of the lists and of all Accesses
        self.rare = threading.RLock()
        self._free: dict[Hashable, list[Block]] = {}
        self._returned: deque[Block] = deque()
        self.give_back = self._returned.append  # see above

    def take(self, kind: Hashable, size: int) -> Block:
        """A block of at least ``size`` bytes, its content undefined: the smallest of this ``kind`` that was given
        back and fits, or a new one. Raises GPU_MEMORY."""
        with self._lock:
            self._collect()
            free = self._free.setdefault(kind, [])
            fitting = [block for block in free if size <= block.size <= SPARE * _rounded(size)]
            if fitting:
                # Of equals the one that was given back last: repeated runs get the same addresses.
                chosen = min(reversed(fitting), key=lambda block: block.size)
                free.remove(chosen)
                return chosen
        return Block(self._allocate(_rounded(size)), _rounded(size), kind)

    def free(self, blocks: Iterable[Block]) -> None:
        """Wait until nothing uses the blocks, which nobody holds, and give their memory back to the GPU."""
        with self.rare:
            for block in blocks:
                for mark in block.accesses.marks():
                    host_wait(self._calls, mark)
                self._calls("cudaFree", block.pointer)

    def trim(self) -> None:
        """Give all free blocks back to the GPU."""
        with self._lock:
            self._collect()
            free = [block for blocks in self._free.values() for block in blocks]
            self._free.clear()
        self.free(free)

    def order(self, stream: Stream, *, reads: Iterable[Block] = (), writes: Iterable[Block] = ()) -> None:
        """Let the stream's next work begin after the last write of the blocks that it ``reads``, and after all earlier
        reads and writes of those that it ``writes``."""
        after: dict[Stream, int] = {}
        with self._lock:
            for block in reads:
                mark = block.accesses.written
                if mark is not None and mark.stream is not stream:
                    after[mark.stream] = max(after.get(mark.stream, 0), mark.number)
            for block in writes:
                for mark in block.accesses.marks():
                    if mark.stream is not stream:
                        after[mark.stream] = max(after.get(mark.stream, 0), mark.number)
        stream.wait_for(after)

    def used(self, mark: Mark, *, reads: Iterable[Block] = (), writes: Iterable[Block] = ()) -> None:
        """Record that the work before ``mark`` uses the blocks."""
        with self._lock:
            for block in reads:
                block.accesses.reads[mark.stream] = mark
            for block in writes:  # it has waited for all reads, so who waits for it waits for them
                block.accesses.written = mark
                block.accesses.reads.clear()

    def _collect(self) -> None:
        while self._returned:
            block = self._returned.popleft()
            self._free.setdefault(block.kind, []).append(block)

    def _allocate(self, size: int) -> int:
        with self.rare:
            try:
                return int(self._calls("cudaMalloc", size))
            except FlamestError as error:
                if error.code != Code.GPU_MEMORY:
                    raise
            self.trim()
            try:
                return int(self._calls("cudaMalloc", size))
            except FlamestError as error:
                if error.code != Code.GPU_MEMORY:
                    raise
                raise self._full_error(size, error) from error

    def _full_error(self, size: int, error: FlamestError) -> FlamestError:
        answer = self._calls.runtime.cudaMemGetInfo()
        free = f", {answer[1] >> 20} of {answer[2] >> 20} MiB are free" if len(answer) == 3 and not answer[0] else ""
        evidence = f"{error.message.removeprefix('GPU_MEMORY: ')}; {max(size >> 20, 1)} MiB were requested{free}"
        return unavailable(Code.GPU_MEMORY, evidence, fix=SMALLER_BATCH).error()


def _rounded(size: int) -> int:
    """Size of the block for ``size`` bytes, so that few sizes serve batches of every length."""
    step = ALIGNMENT if size <= LARGE else 1 << ((size - 1).bit_length() - 3)
    return max(-(-size // step) * step, ALIGNMENT)


@dataclass(frozen=True, eq=False)
class PinnedBuffer:
    """Page-locked memory of the host, from and to which a GPU copies by itself."""

    pointer: int
    size: int  # bytes

    def fill(self, bits: Array) -> None:
        """Copy a C-contiguous array into it."""
        ctypes.memmove(self.pointer, bits.ctypes.data, bits.nbytes)

    def read(self, bits: Array) -> None:
        """Copy from it into a C-contiguous array."""
        ctypes.memmove(bits.ctypes.data, self.pointer, bits.nbytes)


class PinnedMemory:
    """A few page-locked buffers by size, used one after the other. A buffer is filled again once its last copy is done.

    A copy from ordinary memory would go through a buffer of the driver, piece by piece, and hold the calling thread.
    """

    def __init__(self, calls: CudaCalls, rare: threading.RLock) -> None:
        self._calls, self._rare = calls, rare
        self._lock = threading.Lock()
        self._idle: dict[int, deque[tuple[PinnedBuffer, Mark | None]]] = {}  # by size, the one used longest ago first
        self._made: dict[int, int] = {}
        self._size = 0  # bytes of all buffers
        self._uses = 0
        self._last_use: dict[int, int] = {}  # by size

    @contextmanager
    def buffer(self, size: int) -> Iterator[PinnedUse]:
        """A buffer of at least ``size`` bytes that no copy uses. Set ``mark`` to the mark of a copy that is under way
        when the block ends."""
        rounded = max(1 << (size - 1).bit_length(), PINNED_SMALLEST)
        use = PinnedUse(self._take(rounded))
        try:
            yield use
        finally:
            with self._lock:
                self._idle[rounded].append((use.buffer, use.mark))

    def _take(self, size: int) -> PinnedBuffer:
        ring = PINNED_RING * 8 if size == PINNED_SMALLEST else PINNED_RING
        with self._lock:
            self._uses += 1
            self._last_use[size] = self._uses
            ring = ring if self._size + size <= PINNED_MUCH else 2
            idle = self._idle.setdefault(size, deque())
            chosen = next((one for one in idle if _is_done(one[1])), None)
            if chosen is None and idle and self._made.get(size, 0) >= ring:
                chosen = idle[0]
            if chosen is None:
                self._made[size] = self._made.get(size, 0) + 1
                self._size += size
            else:
                idle.remove(chosen)
        if chosen is not None:
            host_wait(self._calls, chosen[1])
            return chosen[0]
        with self._rare:
            self._make_room()
            flags = self._calls.runtime.cudaHostAllocDefault
            try:
                pointer = int(self._calls("cudaHostAlloc", size, flags))
            except BaseException:
                self._forget(size)
                raise
            return PinnedBuffer(pointer, size)

    def _make_room(self) -> None:
        """Free buffers of sizes that are not in use any more, as long as all together are too much."""
        while True:
            with self._lock:
                old = [size for size, use in self._last_use.items() if self._uses - use > PINNED_OLD]
                idle = next((self._idle[size] for size in old if self._idle[size]), None)
                if self._size <= PINNED_MUCH or idle is None:
                    return
                buffer, mark = idle.popleft()
            host_wait(self._calls, mark)
            self._calls("cudaFreeHost", buffer.pointer)
            self._forget(buffer.size)

    def _forget(self, size: int) -> None:
        with self._lock:
            self._made[size] -= 1
            self._size -= size


@dataclass
class PinnedUse:
    buffer: PinnedBuffer
    mark: Mark | None = None  # of the copy that uses it


def _is_done(mark: Mark | None) -> bool:
    return mark is None or mark.number <= mark.stream.done
