"""Run by test_runner.py: a whole extraction on TensorRT sessions, whose engines ONNX Runtime computes on the CPU.

CUDA graphs are on. The fakes report work that nothing orders, contexts that change after their capture, and the other
rules of fake_cuda.py and fake_engine.py.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import tensorrt as trt
from flamest.base.files import sha256_file
from flamest.runtime.backends.machine import Gpu, MachineFacts
from flamest.runtime.backends.opening import GraphOpener, OpeningOptions
from flamest.runtime.backends.options import parse_backend_options
from flamest.runtime.backends.output_shapes import output_shapes
from flamest.runtime.backends.tensorrt.cuda_device import CudaDevice
from flamest.runtime.backends.tensorrt.engine import LoadedEngine
from flamest.runtime.backends.tensorrt.network import TENSORRT_DTYPES
from flamest.runtime.backends.tensorrt.package import TensorRtLog
from flamest.runtime.backends.tensorrt.profile import profiles
from flamest.runtime.backends.tensorrt.runner import TensorRtSession
from flamest.runtime.clip_records import Clip
from flamest.runtime.extractor import open_extractor
from tensorrt_fakes import Fakes

sys.path.insert(0, str(Path(__file__).parent))
from fake_cuda import FakeCuda
from fake_engine import EngineSpec, FakeEngine

WORDS = {numpy: word for word, numpy in TENSORRT_DTYPES.items()}
FACTS = MachineFacts(
    gpu=Gpu("a GPU of Python", "9.0", 80_000),
    cuda="13.0",
    versions={"tensorrt": trt.__version__, "cuda-bindings": "13"},
    tensorrt_builds=True,
)


def spec_of(bundle, name):
    """The engine of a graph: its uses are the profiles, and ONNX Runtime computes it."""
    graph = bundle.manifest.graphs[name]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(bundle.graph(name).read_bytes(), options, providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in graph.outputs]
    return EngineSpec(
        {tensor.name: WORDS[tensor.dtype] for tensor in graph.inputs},
        {tensor.name: WORDS[tensor.dtype] for tensor in graph.outputs},
        [{one.name: (one.smallest, one.usual, one.largest) for one in profile.inputs} for profile in profiles(graph)],
        lambda shapes: output_shapes(name, graph.inputs, graph.outputs, shapes),
        lambda feeds: dict(zip(names, session.run(names, feeds), strict=True)),
    )  # fmt: skip


def test_an_extraction_on_engines_equals_that_on_the_cpu(tmp_path, clips, monkeypatch):
    bundle = Path(os.environ["FLAMEST_TEST_BUNDLE"])
    paths = [clips.write_clip(tmp_path / f"{seed}.avi", frames=20 + 3 * seed, noise=20 + seed) for seed in range(6)]
    films = [Clip(path, sha256_file(path), "wave") for path in paths]
    with open_extractor(bundle, threads=1) as plain:
        expected = {done.clip.sha256: done.features for done in plain.extract_all(films)}

    cuda, fakes, sessions = FakeCuda(limit=1 << 33), Fakes(), {}
    device = CudaDevice(cuda)

    def open_on(opener, candidate, name):
        assert candidate.backend == "tensorrt"
        fake = FakeEngine(trt, fakes, cuda, spec_of(opener._bundle, name))
        opened = LoadedEngine(fake.engine, TensorRtLog(), ())
        sessions[name] = TensorRtSession(trt, opened, device, name=name, where="a GPU of Python", cuda_graphs=True)
        return sessions[name]

    monkeypatch.setattr(GraphOpener, "_open_on", open_on)
    opening = OpeningOptions(parse_backend_options(["tensorrt"], require=True), 1, FACTS)
    with open_extractor(bundle, opening=opening) as extractor:
        found = [done for _ in range(3) for done in extractor.extract_all(films)]  # the later ones are replayed
        replays = sessions["text"].replays
    assert [done.error for done in found if done.error] == []
    for done in found:
        features = expected[done.clip.sha256]
        assert done.features.caption == features.caption
        for one, other in ((done.features.vlm, features.vlm), (done.features.cnn, features.cnn)):
            np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())
    assert replays > 10
    assert cuda.executables == []  # the extractor is closed
    cuda.finish()
