"""The CUDA runtime's calls are those of the genuine bindings, and their errors have codes."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from flamest.base.errors import FlamestError
from flamest.runtime.backends.tensorrt.cuda_device import CudaDevice


@pytest.fixture(scope="module")
def fake_cuda():
    path = Path(__file__).with_name("fake_cuda.py")
    spec = importlib.util.spec_from_file_location("flamest_tests_fake_cuda", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_call_of_the_stand_in_takes_what_the_genuine_one_takes(fake_cuda):
    genuine = pytest.importorskip("cuda.bindings.runtime")
    calls = [name for name, member in vars(fake_cuda.FakeCuda).items() if inspect.isfunction(member)]
    calls = [name for name in calls if name.startswith("cuda")]
    assert len(calls) > 10
    for name in calls:
        ours = list(inspect.signature(vars(fake_cuda.FakeCuda)[name]).parameters)[1:]
        theirs = list(inspect.signature(getattr(genuine, name)).parameters)
        assert [word.lower() for word in ours] == [word.lower() for word in theirs] or len(ours) == len(theirs), name
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


def test_missing_bindings_are_an_error_with_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(FlamestError) as caught:
        CudaDevice.open()
    assert caught.value.code == "CUDA_BINDINGS"
    assert "flamest[tensorrt]" in caught.value.fix


def test_blocks_are_reused_once_their_value_is_dropped(fake_cuda):
    cuda = fake_cuda.FakeCuda()
    device = CudaDevice(cuda)
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    value = device.value(array)
    np.testing.assert_array_equal(value.numpy(), array)
    first = value.pointer
    other = device.value(array + 1)
    assert other.pointer != first
    del value
    assert device.value(array).pointer == first
    np.testing.assert_array_equal(other.numpy(), array + 1)


def test_one_thread_at_a_time_uses_the_stream(fake_cuda):
    cuda = fake_cuda.FakeCuda()
    device = CudaDevice(cuda)
    results, copied = [], threading.Event()

    def other():
        results.append(device.value(np.ones(3, np.float32)).numpy().tolist())
        copied.set()

    with device.lock:  # as a session does for the length of a run
        before = list(cuda.calls)
        thread = threading.Thread(target=other)
        thread.start()
        assert not copied.wait(0.2)
        assert list(cuda.calls) == before
    thread.join(10)
    assert results == [[1.0, 1.0, 1.0]]


def test_an_empty_array_has_an_address_and_nothing_is_copied(fake_cuda):
    cuda = fake_cuda.FakeCuda()
    value = CudaDevice(cuda).value(np.empty((1, 0, 2), np.float32))
    assert value.pointer
    assert value.numpy().shape == (1, 0, 2)
    assert "cudaMemcpyAsync" not in cuda.calls


def test_a_full_gpu_has_its_code(fake_cuda):
    device = CudaDevice(fake_cuda.FakeCuda(limit=100))
    with pytest.raises(FlamestError) as caught:
        device.value(np.zeros(1000))
    assert caught.value.code == "GPU_MEMORY"
