"""The CUDA runtime's calls are those of the genuine bindings, and their errors have codes."""

from __future__ import annotations

import gc
import inspect
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from flamest.base.errors import FlamestError, InvariantError
from flamest.runtime.backends.element_types import ElementType
from flamest.runtime.backends.row_moves import clear_rows, moves_of, put_rows
from flamest.runtime.backends.tensorrt import cuda_calls, cuda_device, cuda_memory
from flamest.runtime.backends.tensorrt.cuda_calls import CudaCalls, use_gpu
from flamest.runtime.backends.tensorrt.cuda_device import CudaDevice
from flamest.runtime.backends.tensorrt.cuda_streams import EVENTS
from flamest.runtime.backends.tensorrt.device_rows import Copy, Span
from flamest.runtime.backends.tensorrt.session_memory import SessionMemory


def test_every_call_of_the_stand_in_takes_what_the_genuine_one_takes(fake_cuda):
    genuine = pytest.importorskip("cuda.bindings.runtime")
    calls = [name for name, member in vars(fake_cuda.FakeCuda).items() if inspect.isfunction(member)]
    calls = [name for name in calls if name.startswith("cuda")]
    assert len(calls) > 10
    for name in calls:
        ours = list(inspect.signature(vars(fake_cuda.FakeCuda)[name]).parameters)[1:]
        theirs = list(inspect.signature(getattr(genuine, name)).parameters)
        assert [word.lower() for word in ours] == [word.lower() for word in theirs] or len(ours) == len(theirs), name
    assert not genuine.cudaError_t.cudaSuccess  # as CudaCalls asks it
    for name in ("cudaHostAllocDefault", "cudaStreamNonBlocking", "cudaEventBlockingSync", "cudaEventDisableTiming"):
        assert getattr(genuine, name) == getattr(fake_cuda.FakeCuda, name)
    for kind in (fake_cuda.cudaError_t, fake_cuda.cudaMemcpyKind, fake_cuda.cudaStreamCaptureMode):
        for member in kind:
            assert getattr(getattr(genuine, kind.__name__), member.name) == member.value


def test_the_genuine_runtime_without_a_driver_is_no_driver():
    pytest.importorskip("cuda.bindings.runtime")
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has a driver")
    with pytest.raises(FlamestError) as caught:
        CudaDevice.open()
    assert caught.value.code == "NO_DRIVER_OR_GPU"
    assert "cudaSetDevice: cudaErrorInsufficientDriver" in caught.value.message
    assert "GPU 0" in caught.value.message


def test_missing_bindings_are_an_error_with_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(FlamestError) as caught:
        CudaDevice.open()
    assert caught.value.code == "CUDA_BINDINGS"
    assert "flamest[tensorrt]" in caught.value.fix


class Uses:
    """A session's memory without a session: values go up and come down."""

    def __init__(self, device):
        self.device = device
        self.memory = SessionMemory(device, "graph", {"x": ElementType.of("float32")}, {})

    def value(self, array):
        return self.memory.value(array, None, "a value")


@pytest.fixture
def uses(fake_cuda):
    made = Uses(CudaDevice(fake_cuda.FakeCuda()))
    made.cuda = made.device.calls.runtime
    yield made
    made.cuda.finish()


def test_blocks_are_reused_once_their_value_is_dropped(uses):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    value = uses.value(array)
    np.testing.assert_array_equal(value.numpy(), array)
    first = value.pointer
    other = uses.value(array + 1)
    assert other.pointer != first
    del value
    assert uses.value(array).pointer == first
    np.testing.assert_array_equal(other.numpy(), array + 1)


def test_giving_a_block_back_makes_no_call_and_takes_no_lock(uses):
    # The garbage collector does it at any point: within a capture, or while this thread holds a lock.
    value = uses.value(np.ones(3, np.float32))
    uses.cuda.calls.clear()
    with uses.device.memory._lock, uses.memory.lock:
        del value
        gc.collect()
    assert uses.cuda.calls == []


def test_a_download_waits_for_no_later_work(uses):
    first = uses.value(np.full(3, 1, np.float32))
    rows = uses.memory.rows("x", (2, 1 << 20))
    rows.put(0, np.ones((1, 1 << 20), np.float32), 0)
    np.testing.assert_array_equal(first.numpy(), [1, 1, 1])
    stream = uses.cuda._streams[uses.memory.stream.handle]
    assert stream.done < len(stream.works)


def test_page_locked_buffers_are_used_in_turns_and_few(uses):
    arrays = [np.full(1 << 18, index, np.float32) for index in range(30)]
    values = [uses.value(array) for array in arrays]
    assert uses.cuda.calls.count("cudaHostAlloc") <= 4
    for index, value in enumerate(values):
        assert value.numpy()[-1] == index


def test_page_locked_buffers_of_sizes_no_longer_in_use_are_freed(uses, monkeypatch):
    monkeypatch.setattr(cuda_memory, "PINNED_MUCH", 3 << 20)
    monkeypatch.setattr(cuda_memory, "PINNED_OLD", 8)

    def pinned():
        return {len(buffer) >> 20 for buffer in uses.cuda._pinned.values()}

    def upload(mib):
        assert uses.value(np.full(mib << 18, mib, np.float32)).numpy()[-1] == mib

    for mib in (1, 2, 4) * 8:
        upload(mib)
    assert "cudaFreeHost" not in uses.cuda.calls  # all are in use, whatever they take together
    for _ in range(8):
        upload(4)
    upload(8)  # a new size makes room
    assert pinned() == {4, 8}
    assert uses.device.pinned._size == sum(map(len, uses.cuda._pinned.values()))


def test_beyond_much_page_locked_memory_a_size_has_two_buffers(uses, monkeypatch):
    monkeypatch.setattr(cuda_memory, "PINNED_MUCH", 3 << 20)
    values = [uses.value(np.full(1 << 19, index, np.float32)) for index in range(9)]
    assert uses.cuda.calls.count("cudaHostAlloc") == 2
    assert [value.numpy()[-1] for value in values] == list(range(9))


def test_work_of_another_thread_is_not_captured(uses):
    """A capture records what is put on its stream; other threads copy meanwhile, and allocate after it."""
    stream, results = uses.memory.stream, []
    other = threading.Thread(target=lambda: results.append(uses.value(np.ones(3, np.float32)).numpy().tolist()))
    uses.value(np.ones(3, np.float32))

    def enqueue():
        other.start()
        other.join(0.2)

    with uses.memory.lock:
        graph = uses.device.capture(stream, enqueue)
    other.join(10)
    assert graph.works == []
    assert results == [[1.0, 1.0, 1.0]]


def test_a_mark_that_another_thread_needs_is_not_recorded_in_a_capture(uses):
    rows, results = uses.memory.rows("x", (2, 3)), []
    value = uses.value(np.ones((1, 3), np.float32))
    value.numpy()  # so that the other thread has nothing to allocate
    rows.first(2).numpy()
    rows.put(1, value, 0)  # its mark is recorded when someone waits for it
    other = threading.Thread(target=lambda: results.append(rows.first(2).numpy().tolist()))

    def enqueue():
        other.start()
        other.join(0.2)
        assert results == []

    with uses.memory.lock:
        graph = uses.device.capture(uses.memory.stream, enqueue)
    other.join(10)
    assert graph.works == []
    assert results == [[[0.0] * 3, [1.0] * 3]]


def test_many_copies_of_rows_share_one_event(uses):
    rows, value = uses.memory.rows("x", (8, 3)), uses.value(np.ones((1, 3), np.float32))
    uses.cuda.calls.clear()
    for row in range(8):
        rows.put(row, value, 0)
    assert uses.cuda.calls.count("cudaMemcpyAsync") == 8
    assert "cudaEventRecord" not in uses.cuda.calls
    assert rows.first(8).numpy().sum() == 24
    assert uses.cuda.calls.count("cudaEventRecord") == 2  # of the rows, and of the copy to the host


def test_neighbouring_rows_of_many_tensors_change_together(uses):
    rows = {name: uses.memory.rows("x", (8, 3)) for name in ("one", "other")}
    values = {name: uses.value(np.arange(12, dtype=np.float32).reshape(4, 3) + 1) for name in rows}
    uses.cuda.calls.clear()
    put_rows(rows, values, moves_of([(2, 0), (3, 1), (4, 2), (7, 3)]))
    clear_rows(rows.values(), moves_of([(3, 1), (4, 2)]))
    assert uses.cuda.calls.count("cudaMemcpyAsync") == 4  # three rows, and one, of each
    assert uses.cuda.calls.count("cudaMemsetAsync") == 2
    assert uses.cuda.calls.count("cudaSetDevice") == 2
    for one in rows.values():
        found = one.first(8).numpy()
        np.testing.assert_array_equal(found[[2, 7]], [[1, 2, 3], [10, 11, 12]])
        assert not found[[0, 1, 3, 4, 5, 6]].any()


def test_rows_of_two_sessions_do_not_change_together(uses):
    rows = {"one": uses.memory.rows("x", (8, 3)), "other": Uses(uses.device).memory.rows("x", (8, 3))}
    with pytest.raises(InvariantError, match="two sessions"):
        clear_rows(rows.values(), moves_of([(0, 0)]))


class HeldCalls(CudaCalls):
    """CUDA's calls; the thread ``held`` is kept from going on after it has recorded an event, until ``go`` is set."""

    def __init__(self, runtime):
        super().__init__(runtime, 0)
        self.recorded, self.go, self.held = threading.Event(), threading.Event(), None

    def __call__(self, name, *arguments):
        result = super().__call__(name, *arguments)
        if name == "cudaEventRecord" and threading.current_thread() is self.held:
            self.recorded.set()
            assert self.go.wait(60)
        return result


class TellingLock:
    """A lock that calls ``taken`` before it makes someone wait."""

    def __init__(self, taken):
        self._lock, self._taken = threading.Lock(), taken

    def __enter__(self):
        if not self._lock.acquire(blocking=False):
            self._taken()
            self._lock.acquire()

    def __exit__(self, *raised):
        self._lock.release()


def test_a_mark_taken_while_another_is_recorded_covers_its_work(fake_cuda):
    cuda = fake_cuda.FakeCuda()
    device = CudaDevice(cuda)
    device.calls = calls = HeldCalls(cuda)
    text, vision = (SessionMemory(device, name, {"x": ElementType.of("float32")}, {}) for name in ("text", "vision"))
    text.stream.lock = TellingLock(calls.go.set)
    target, images = text.take("rows", 1024), [vision.take("image", 1024) for _ in range(2)]
    for image in images:
        vision.zero([Span(image, 0, 512)])
    text.copy([Copy(Span(target, 0, 512), images[0], 0)])
    calls.held = threading.Thread(
        target=vision.zero, args=([Span(images[0], 0, 512)],)
    )  # waits for the copy, which it records
    calls.held.start()
    assert calls.recorded.wait(60)
    text.copy([Copy(Span(target, 512, 512), images[1], 0)])  # after the event
    calls.go.set()
    calls.held.join(60)
    vision.zero([Span(images[1], 0, 512)])  # the stand-in refuses it, if it does not wait for the second copy
    cuda.finish()


def test_allocating_within_a_capture_ends_it(uses):
    graph = uses.device.capture(uses.memory.stream, lambda: uses.device.memory.take("anything", 8))
    assert graph is None
    assert uses.cuda.last_error == 0
    assert uses.cuda.graphs == []
    assert uses.value(np.ones(3, np.float32)).numpy().tolist() == [1, 1, 1]


def test_an_empty_array_has_an_address_and_nothing_is_copied(uses):
    value = uses.value(np.empty((1, 0, 2), np.float32))
    assert value.pointer
    assert value.numpy().shape == (1, 0, 2)
    assert "cudaMemcpyAsync" not in uses.cuda.calls


def test_a_full_gpu_has_its_code(fake_cuda):
    uses = Uses(CudaDevice(fake_cuda.FakeCuda(limit=1000)))
    with pytest.raises(FlamestError) as caught:
        uses.value(np.zeros(1000))
    assert caught.value.code == "GPU_MEMORY"
    assert "--batch" in caught.value.fix


def test_a_marks_event_that_was_used_again_still_covers_it(uses):
    first = uses.value(np.ones(3, np.float32))
    for _ in range(3 * EVENTS):
        uses.value(np.ones(3, np.float32))
    other = uses.device.take_stream()
    uses.device.memory.order(other, reads=[first.held.block])
    uses.cuda.put(other.handle, lambda: None, reads=[(first.pointer, 12)], writes=[])


def test_engines_are_opened_on_the_gpu_that_was_chosen(fake_cuda, monkeypatch):
    cuda = fake_cuda.FakeCuda(devices=3)
    monkeypatch.setattr(cuda_calls, "import_cuda_runtime", lambda: cuda)
    use_gpu(2)
    assert cuda.current == 2
    cuda.calls.clear()
    use_gpu(0)  # nothing is needed for the first one, and no cuda-bindings to build for it
    assert cuda.calls == []


def test_one_device_serves_a_process_for_each_gpu(fake_cuda, monkeypatch):
    cuda = fake_cuda.FakeCuda(devices=3)
    monkeypatch.setattr(cuda_device, "import_cuda_runtime", lambda: cuda)
    monkeypatch.setattr(cuda_device, "_OPENED", {})
    assert CudaDevice.open() is CudaDevice.open(number=0)
    assert CudaDevice.open(number=1) is not CudaDevice.open()
    with pytest.raises(FlamestError) as caught:
        CudaDevice.open(number=7)
    assert caught.value.code == "BACKEND_FAILED"
    assert "GPU 7" in caught.value.message
