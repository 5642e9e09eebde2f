"""The stream of one session, and the memory of its inputs and outputs on the device.

A session's work is in order on its stream, one run at a time, whatever threads the runs come from: its kernels share
scratch memory, and a capture records all that is put on the stream.

An array from the host goes to a block of its input. A large one is copied by the device's own stream into two blocks
alternately, so that the next batch is copied while this one computes; a small one by the session's stream, always
into the same block, so that repeated runs have the same addresses.

TensorRT's developer guide wants a valid address for an empty tensor too, and another one for each: an empty tensor
gets the block of its own name, whatever value was given.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ....base.errors import InvariantError
from ..element_types import BFLOAT16, ElementType
from ..session import Array, Feed, Rows, Shape, on_host
from .cuda_calls import CudaCalls
from .cuda_device import CudaDevice, DeviceValue, HeldBlock
from .cuda_memory import Block
from .cuda_streams import Stream
from .device_rows import Copy, DeviceRows, Span

SMALL = 1 << 16  # bytes of an array that the session's stream copies


@dataclass(frozen=True, eq=False)
class BoundInput:
    """An input of one run."""

    block: Block
    shape: Shape


class SessionMemory:
    """``inputs``, ``outputs``: the session's tensors by name, with their types. ``stream``: one taken for it."""

    def __init__(
        self,
        device: CudaDevice,
        name: str,
        inputs: Mapping[str, ElementType],
        outputs: Mapping[str, ElementType],
        stream: Stream | None = None,
    ) -> None:
        self.device = device
        self.stream = device.take_stream() if stream is None else stream
        self.lock = threading.RLock()  # of the stream
        self._name, self._inputs, self._outputs = name, dict(inputs), dict(outputs)
        self._staging: dict[tuple[str, int], Block] = {}
        self._turn = 0
        self.closed = False
        self._empty = {tensor: HeldBlock(device, self.take(f"empty {tensor}", 0)) for tensor in (*inputs, *outputs)}

    def take(self, use: str, size: int) -> Block:
        """A block of this session; raises GPU_MEMORY."""
        self.device.calls.use()
        return self._take(use, size)

    def value(self, of: Feed, dtype: ElementType | None, what: str) -> DeviceValue:
        """``of`` on this device. Raises InvariantError, naming ``what``, when its type is not ``dtype``."""
        ready = self._typed(of, dtype, what)
        if isinstance(ready, DeviceValue):
            return ready
        bits, dtype = ready
        held = HeldBlock(self.device, self.take("value", bits.nbytes))
        self.device.upload(held.block, bits)
        return DeviceValue(held, bits.shape, dtype)

    def rows(self, name: str, shape: Shape) -> DeviceRows:
        """Zeroed rows of input ``name`` (session.Session.rows)."""
        if name not in self._inputs:
            raise InvariantError(f"graph '{self._name}' has no input {name}")
        dtype = self._inputs[name]
        held = HeldBlock(self.device, self.take(f"rows {name}", dtype.size_of(shape)))
        return DeviceRows(self, held, shape, dtype)

    def ready(self, feeds: Mapping[str, Feed]) -> dict[str, DeviceValue | Array]:
        """Each input as a value of this device, or as the bits that have to be copied there. Raises InvariantError
        for one that is missing or has another type; nothing has been copied then."""
        self._check_open()
        found: dict[str, DeviceValue | Array] = {}
        for name, dtype in self._inputs.items():
            if name not in feeds:
                raise InvariantError(f"graph '{self._name}': input {name} is not given")
            ready = self._typed(feeds[name], dtype, f"graph '{self._name}': input {name}")
            found[name] = ready if isinstance(ready, DeviceValue) else ready[0]
        return found

    def bind_inputs(self, ready: Mapping[str, DeviceValue | Array]) -> dict[str, BoundInput]:
        """Copy what is not on the device; the stream waits for all inputs."""
        self._turn = 1 - self._turn
        bound = {name: BoundInput(self._input_block(name, feed), feed.shape) for name, feed in ready.items()}
        self.device.memory.order(self.stream, reads=[one.block for one in bound.values()])
        return bound

    def bind_outputs(
        self, shapes: Mapping[str, Shape], into: Mapping[str, Rows], inputs: Mapping[str, BoundInput]
    ) -> dict[str, DeviceValue]:
        """A value for each output, of the given rows or a block of its own; the stream waits for earlier uses.

        Raises InvariantError for rows that do not fit, or that the run reads as well.
        """
        rows = self._checked_rows(shapes, into, inputs)
        values = {}
        for name, shape in shapes.items():
            if name in rows:
                values[name] = rows[name].first(shape[0])
                continue
            dtype = self._outputs[name]
            size = dtype.size_of(shape)
            held = HeldBlock(self.device, self._take(name, size)) if size else self._empty[name]
            values[name] = DeviceValue(held, shape, dtype)
        self.device.memory.order(self.stream, writes=[one.held.block for one in values.values()])
        return values

    def finish(self, inputs: Iterable[BoundInput], outputs: Iterable[DeviceValue]) -> None:
        """Record that the work which was put on the stream reads and writes these."""
        mark = self.stream.mark()
        reads, writes = [one.block for one in inputs], [one.held.block for one in outputs]
        self.device.memory.used(mark, reads=reads, writes=writes)

    def zero(self, spans: Sequence[Span]) -> None:
        """Set bytes to zero, in order on the stream."""
        with self.lock:
            self._check_open()
            with self._work(writes=[span.block for span in spans]) as calls:
                for block, offset, size in spans:
                    if size:
                        calls("cudaMemsetAsync", block.pointer + offset, 0, size, self.stream.handle)

    def copy(self, copies: Sequence[Copy]) -> None:
        """Copy bytes on the device, in order on the stream. The two ranges of a copy do not overlap."""
        kind, handle = self.device.calls.runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice, self.stream.handle
        with self.lock:
            self._check_open()
            reads, writes = [one.source for one in copies], [one.to.block for one in copies]
            with self._work(reads=reads, writes=writes) as calls:
                for (block, offset, size), source, begin in copies:
                    if size:
                        calls("cudaMemcpyAsync", block.pointer + offset, source.pointer + begin, size, kind, handle)

    @contextmanager
    def _work(self, *, writes: Iterable[Block], reads: Iterable[Block] = ()) -> Iterator[CudaCalls]:
        """For work on the stream that uses the blocks: it waits for earlier uses, and is recorded as one itself."""
        memory = self.device.memory
        reads, writes = dict.fromkeys(reads), dict.fromkeys(writes)
        self.device.calls.use()
        memory.order(self.stream, reads=reads, writes=writes)
        try:
            yield self.device.calls
        finally:  # after a failure too: a part of it may be on the stream
            memory.used(self.stream.open_mark(), reads=reads, writes=writes)

    def close(self) -> None:
        """Wait for all work and give everything back; values and rows that are still held stay valid."""
        with self.lock:
            if self.closed:
                return
            self.closed = True
            self.device.calls.use()
            self.stream.synchronize()
            for block in self._staging.values():
                self.device.memory.give_back(block)
            self._staging.clear()
            self._empty.clear()
            self.device.give_stream(self.stream)

    def _take(self, use: str, size: int) -> Block:
        return self.device.memory.take((self.stream, use), size)

    def _typed(self, feed: Feed, dtype: ElementType | None, what: str) -> DeviceValue | tuple[Array, ElementType]:
        if isinstance(feed, DeviceValue):
            # An empty array has no bits that could be of the wrong type.
            if dtype is None or dtype is feed.dtype or dtype == feed.dtype or not feed.nbytes:
                return feed if feed.device is self.device else (feed.bits(), feed.dtype)
            if (dtype, feed.dtype.name) != (BFLOAT16, "float32"):
                raise InvariantError(f"{what} is {feed.dtype}, expected {dtype}")
        array = on_host(feed)
        dtype = ElementType.of(array.dtype) if dtype is None else dtype
        if not array.size:
            array = array.astype(dtype.bits_dtype)
        return dtype.bits_of(array, what), dtype

    def _input_block(self, name: str, feed: DeviceValue | Array) -> Block:
        if not feed.nbytes:
            return self._empty[name].block
        if isinstance(feed, DeviceValue):
            return feed.held.block
        small = feed.nbytes <= SMALL
        block = self._staging_block(name, 0 if small else self._turn, feed.nbytes)
        self.device.upload(block, feed, self.stream if small else None)
        return block

    def _staging_block(self, name: str, turn: int, size: int) -> Block:
        block = self._staging.get((name, turn))
        if block is None or block.size < size:
            if block is not None:
                self.device.memory.give_back(self._staging.pop((name, turn)))
            block = self._staging[name, turn] = self.take(f"input {name}", size)
        return block

    def _checked_rows(
        self, shapes: Mapping[str, Shape], into: Mapping[str, Rows], inputs: Mapping[str, BoundInput]
    ) -> dict[str, DeviceRows]:
        if not into:
            return {}
        read, checked = {id(one.block) for one in inputs.values()}, dict[str, DeviceRows]()
        for name, rows in into.items():
            where = f"graph '{self._name}': output {name}"
            if name not in shapes:
                raise InvariantError(f"{where} does not exist")
            if not isinstance(rows, DeviceRows) or rows.held.device is not self.device:
                raise InvariantError(f"{where} was to be written to rows of another device")
            shape = shapes[name]
            fits = rows.shape[1:] == shape[1:] and shape[0] <= rows.shape[0] and rows.dtype == self._outputs[name]
            if not fits:
                raise InvariantError(
                    f"{where} is {self._outputs[name]} {list(shape)}, the rows are {rows.dtype} {list(rows.shape)}"
                )
            if id(rows.held.block) in read:
                raise InvariantError(f"{where} was to be written to rows that the same run reads or writes")
            read.add(id(rows.held.block))
            checked[name] = rows
        return checked

    def _check_open(self) -> None:
        if self.closed:
            raise InvariantError(f"graph '{self._name}' was closed")
