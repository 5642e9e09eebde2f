"""The fake CUDA runtime sees the faults that a GPU would compute with."""

from __future__ import annotations

import pytest


@pytest.fixture
def cuda(fake_cuda):
    return fake_cuda.FakeCuda(devices=2)


def of(answer):
    assert answer[0] == 0
    return answer[1]


UP, DOWN, ACROSS = 1, 2, 3


@pytest.fixture
def made(cuda):
    """Two streams, an event, a page-locked buffer and two blocks of 8 bytes."""
    streams = [of(cuda.cudaStreamCreateWithFlags(1)) for _ in range(2)]
    blocks = [of(cuda.cudaMalloc(8)) for _ in range(2)]
    return streams, of(cuda.cudaEventCreateWithFlags(2)), of(cuda.cudaHostAlloc(8, 0)), blocks


def test_reading_on_another_stream_needs_an_event(cuda, made):
    (one, two), event, host, (block, other) = made
    cuda.cudaMemcpyAsync(block, host, 8, UP, one)
    with pytest.raises(AssertionError, match="read after write without waiting"):
        cuda.cudaMemcpyAsync(other, block, 8, ACROSS, two)
    cuda.cudaEventRecord(event, one)
    cuda.cudaStreamWaitEvent(two, event, 0)
    cuda.cudaMemcpyAsync(other, block, 8, ACROSS, two)


def test_writing_where_another_stream_still_reads_needs_an_event(cuda, made):
    (one, two), event, _host, (block, other) = made
    cuda.cudaMemsetAsync(block, 1, 8, one)
    cuda.cudaMemcpyAsync(other, block, 8, ACROSS, one)
    with pytest.raises(AssertionError, match="write after"):
        cuda.cudaMemsetAsync(block, 2, 4, two)
    cuda.cudaEventRecord(event, one)
    cuda.cudaEventSynchronize(event)
    cuda.cudaMemsetAsync(block, 2, 4, two)


def test_work_is_put_off_until_something_waits(cuda, made):
    (one, _), event, _host, (block, _) = made
    cuda.cudaMemsetAsync(block, 7, 8, one)
    cuda.cudaEventRecord(event, one)
    cuda.cudaMemsetAsync(block, 9, 8, one)
    assert bytes(cuda.memory[block].content) == b"\xa5" * 8
    cuda.cudaEventSynchronize(event)
    assert cuda.read(block, 8) == b"\x07" * 8
    cuda.cudaStreamSynchronize(one)
    assert cuda.read(block, 8) == b"\x09" * 8


def test_memory_that_is_not_there_or_not_written_is_not_read(cuda, made):
    (one, _), _, host, (block, _) = made
    cuda.cudaMemcpyAsync(host, block, 8, DOWN, one)
    with pytest.raises(AssertionError, match="read what nobody wrote"):
        cuda.cudaStreamSynchronize(one)
    for pointer, count in ((block, 9), (block + 4, 8), (block + (1 << 40), 1)):
        with pytest.raises(AssertionError, match="allocated"):
            cuda.cudaMemsetAsync(pointer, 0, count, one)
    with pytest.raises(AssertionError, match="not page-locked"):
        cuda.cudaMemcpyAsync(block, host + 1, 8, UP, one)


def test_freeing_what_work_still_uses_is_an_error(cuda, made):
    (one, _), _, _, (block, other) = made
    cuda.cudaMemsetAsync(block, 0, 8, one)
    with pytest.raises(AssertionError, match="may still use"):
        cuda.cudaFree(block)
    cuda.cudaStreamSynchronize(one)
    cuda.cudaFree(other)
    with pytest.raises(AssertionError, match="not allocated"):
        cuda.cudaMemsetAsync(other, 0, 8, one)


@pytest.mark.parametrize("call", ["cudaMalloc", "cudaStreamSynchronize", "cudaEventSynchronize", "cudaStreamWaitEvent"])
def test_allocating_and_waiting_invalidate_a_capture(cuda, made, call):
    (one, _), event, _, _ = made
    arguments = {"cudaMalloc": (8,), "cudaStreamSynchronize": (one,), "cudaEventSynchronize": (event,)}
    cuda.cudaStreamBeginCapture(one, 1)
    assert getattr(cuda, call)(*arguments.get(call, (one, event, 0)))[0] != 0
    assert cuda.cudaStreamEndCapture(one)[0] == 901
    assert cuda.cudaGetLastError()[0] == 901
    assert cuda.cudaGetLastError()[0] == 0


def test_a_destroyed_graph_is_not_launched_and_another_gpus_stream_not_used(cuda, made):
    (one, _), _, _, (block, _) = made
    cuda.cudaStreamBeginCapture(one, 1)
    cuda.cudaMemsetAsync(block, 3, 8, one)
    executable = of(cuda.cudaGraphInstantiate(of(cuda.cudaStreamEndCapture(one)), 0))
    cuda.cudaGraphLaunch(executable, one)
    cuda.cudaStreamSynchronize(one)
    assert cuda.read(block, 8) == b"\x03" * 8
    cuda.cudaGraphExecDestroy(executable)
    with pytest.raises(AssertionError, match="destroyed graph"):
        cuda.cudaGraphLaunch(executable, one)
    cuda.cudaSetDevice(1)
    with pytest.raises(AssertionError, match="another device"):
        cuda.cudaMemsetAsync(block, 3, 8, one)
