"""A whole extraction on a GPU of Python: values, rows and streams as on a device, and the CPU's embeddings.

ONNX Runtime's genuine CPU provider computes with the addresses that it is given (fake_cuda.HostCuda); what it reads and
writes is checked for order like any other work.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from flamest.base.files import sha256_file
from flamest.runtime.backends import onnxruntime_cuda
from flamest.runtime.backends.machine import Gpu, MachineFacts
from flamest.runtime.backends.onnxruntime_cuda import OrtCudaSession
from flamest.runtime.backends.opening import OpeningOptions
from flamest.runtime.backends.options import parse_backend_options
from flamest.runtime.backends.tensorrt.cuda_device import CudaDevice
from flamest.runtime.clip_records import Clip
from flamest.runtime.extractor import open_extractor

FACTS = MachineFacts(
    gpu=Gpu("a GPU of Python", "9.0", 80_000),
    cuda="13.0",
    versions={"onnxruntime-gpu": "1.32.0", "cuda-bindings": "13"},
    ort_has_cuda=True,
)


class Ordered:
    """A genuine session whose runs are work on a stream: they read and write what was bound."""

    def __init__(self, session, cuda, stream):
        self._session, self._cuda, self._stream = session, cuda, stream

    def __getattr__(self, name):
        return getattr(self._session, name)

    def io_binding(self):
        return Bound(self._session.io_binding())

    def run_with_iobinding(self, binding, options):
        def run():
            self._session.run_with_iobinding(binding.genuine, options)

        self._cuda.put(self._stream, run, reads=binding.reads, writes=binding.writes)


class Bound:
    def __init__(self, genuine):
        self.genuine, self.reads, self.writes = genuine, [], []

    def bind_input(self, name, *place):
        self.genuine.bind_input(name, *place)
        self.reads += spans(*place)

    def bind_output(self, name, *place):
        self.genuine.bind_output(name, *place)
        self.writes += spans(*place)


def spans(kind, number, element, shape, pointer):
    size = int(np.prod(shape)) * np.dtype(element).itemsize
    return [(pointer, size)] if size else []


@pytest.fixture
def cuda(monkeypatch):
    path = Path(__file__).parent / "tensorrt" / "fake_cuda.py"
    spec = importlib.util.spec_from_file_location("flamest_tests_fake_cuda_extraction", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    cuda = module.HostCuda()
    device = CudaDevice(cuda)

    def open_graph(ort, graph, providers, name, profile):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        return Ordered(session, cuda, int(providers[0][1]["user_compute_stream"]))

    monkeypatch.setattr(CudaDevice, "open", classmethod(lambda cls, *, number=0: device))
    monkeypatch.setattr(onnxruntime_cuda, "import_onnxruntime_gpu", lambda: onnxruntime)
    monkeypatch.setattr(onnxruntime_cuda, "_open", open_graph)
    monkeypatch.setattr(OrtCudaSession, "kind", "cpu")
    yield cuda
    cuda.finish()


@pytest.fixture(scope="module")
def films(clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    paths = [clips.write_clip(folder / f"{seed}.avi", frames=20 + 3 * seed, noise=20 + seed) for seed in range(7)]
    return [Clip(path, sha256_file(path), "wave") for path in paths]


@pytest.mark.parametrize("which", ["toy_bundle", "tiny_bundle"])
def test_an_extraction_on_a_device_equals_that_on_the_cpu(which, request, films, cuda):
    bundle = request.getfixturevalue(which)
    with open_extractor(bundle, threads=1) as plain:
        expected = {done.clip.sha256: done.features for done in plain.extract_all(films)}
    backend_options = parse_backend_options(["onnxruntime-cuda"], require=True)
    opening = OpeningOptions(backend_options, 1, dataclasses.replace(FACTS))
    with open_extractor(bundle, opening=opening) as extractor:
        found = {done.clip.sha256: done.features for done in extractor.extract_all(films)}
    assert {placement.backend for placement in extractor.placements.values()} == {"onnxruntime-cuda"}
    assert all(found.values())
    for key, features in expected.items():
        assert found[key].caption == features.caption
        for one, other in ((found[key].vlm, features.vlm), (found[key].cnn, features.cnn)):
            np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())
    assert cuda.problems == []
    for copied in ("cudaMemsetAsync", "cudaStreamWaitEvent"):  # rows were cleared, and streams waited for each other
        assert copied in cuda.calls
