"""Graphs are opened on the first candidate that works; every reason on the way is reported."""

from __future__ import annotations

import dataclasses
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from flamest.base.errors import SettingsError
from flamest.base.files import sha256_file
from flamest.runtime.backends.machine import Gpu, MachineFacts, gather_facts
from flamest.runtime.backends.opening import GraphOpener, OpeningOptions, effective_precision
from flamest.runtime.backends.options import parse_backend_options
from flamest.runtime.bundle.graph_records import EngineOptions, EngineRecord
from flamest.runtime.bundle.manifest import encode_manifest
from flamest.runtime.bundle.manifest_reading import read_manifest
from flamest.runtime.bundle.opening import open_bundle
from flamest.runtime.clip_records import Clip
from flamest.runtime.extractor import open_extractor

NO_GPU = MachineFacts(driver_problem="no driver here", versions={"onnxruntime": "1"}, bf16=True)
GPU = MachineFacts(
    gpu=Gpu("Made-up GPU", "9.0", 1000),
    cuda="13.0",
    versions={"onnxruntime": "1", "tensorrt": "10.16.1.11", "cuda-bindings": "13"},
)
FP32 = EngineOptions()
CRASHES = """
import os
__version__ = "10.16.1.11"
class ILogger:
    def __init__(self): pass
class Runtime:
    def __init__(self, logger): pass
    def deserialize_cuda_engine(self, plan): os.kill(os.getpid(), 11)
"""


@pytest.fixture(scope="module")
def clip(clips, tmp_path_factory):
    path = clips.write_clip(tmp_path_factory.mktemp("clip") / "a.avi", frames=40, noise=20)
    return Clip(path, sha256_file(path), "wave")


def bundle_with_plans(toy_bundle, folder, options=FP32):
    """A copy whose vision graph has an engine for GPU."""
    from flamest.runtime.backends.tensorrt.bundled import with_engine

    copy = shutil.copytree(toy_bundle, folder / "bundle")
    plan = EngineRecord("vision.plan", "0" * 64, "10.16.1.11", "13.0", "580", "Made-up GPU", "9.0", options, 1.0)
    data = b"ftrt" + bytes(20) + bytes((10, 16, 1, 11)) + b"native code"
    (copy / plan.file).write_bytes(data)
    manifest = with_engine(read_manifest(copy), "vision", plan, data)
    (copy / "bundle.json").write_bytes(encode_manifest(manifest))
    return copy


def test_an_engine_that_crashes_leaves_the_graph_to_the_next_candidate(toy_bundle, clip, tmp_path, monkeypatch):
    package = tmp_path / "packages" / "tensorrt"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(CRASHES)
    monkeypatch.syspath_prepend(package.parent)
    before = os.getpid()
    opening = OpeningOptions(parse_backend_options(["auto"]), 1, GPU)
    with open_extractor(bundle_with_plans(toy_bundle, tmp_path), opening=opening) as extractor:
        features = extractor.extract(clip)
    with open_extractor(toy_bundle, threads=1) as plain:
        expected = plain.extract(clip)
    assert os.getpid() == before
    np.testing.assert_array_equal(features.vlm, expected.vlm)
    vision = extractor.placements["vision"]
    assert (vision.backend, vision.where) == ("onnxruntime", "ONNX Runtime CPU")
    reasons = {kind: (reason.code.value, reason.evidence) for kind, reason in vision.skipped}
    assert reasons["plan"][0] == "PLAN_REJECTED"
    assert "signal SIGSEGV" in reasons["plan"][1]
    assert [code for code, _ in reasons.values()] == [
        "PLAN_REJECTED",
        "TRT_NO_BUILDER",
        "ORT_NO_CUDA",
        "OPENVINO_MISSING",
    ]
    assert dict(extractor.placements["text"].skipped)["plan"].code == "PLAN_MISSING"


@pytest.mark.parametrize("wrong", ["output cross_key_00, row 2 of 3: cosine 0.41", ""], ids=["wrong", "right"])
def test_a_wrong_engine_leaves_the_graph_to_the_next_candidate(toy_bundle, tmp_path, monkeypatch, wrong):
    from flamest.runtime.backends.onnxruntime_cpu import open_session
    from flamest.runtime.backends.tensorrt import loader, verdicts
    from flamest.runtime.backends.tensorrt.verdict import Verdict

    verdict = Verdict(4, 20, cuda_graphs=not wrong, closest="", seconds=1.0, wrong=wrong)
    monkeypatch.setattr(verdicts, "try_engine", lambda file, proof: verdict)
    monkeypatch.setattr(loader, "import_tensorrt", lambda: SimpleNamespace(__version__="10.16.1.11"))
    monkeypatch.setattr(loader, "load_engine", lambda trt, file: "an engine")
    monkeypatch.setattr(loader, "CudaDevice", SimpleNamespace(open=lambda *, number: f"GPU {number}"))
    monkeypatch.setattr(loader, "TensorRtSession", lambda *args, **how: open_session(bundle.graph("vision")))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle = open_bundle(bundle_with_plans(toy_bundle, tmp_path))
    opener = GraphOpener(bundle, OpeningOptions(parse_backend_options(["auto"]), 1, GPU))
    opener.open("vision")
    placement = opener.placements["vision"]
    row = placement.as_json()
    if wrong:
        assert placement.backend == "onnxruntime"
        assert row["refused"][0]["code"] == "ENGINE_WRONG"
        assert wrong in row["refused"][0]["evidence"]
        assert "verdict" not in row
    else:
        assert placement.backend == "tensorrt"
        assert row["verdict"].startswith("equals its ONNX graph at 4 shapes with and without CUDA graphs")


def test_a_required_backend_that_is_unavailable_is_an_error(toy_bundle):
    backend_options = parse_backend_options(["tensorrt"], require=True)
    opener = GraphOpener(open_bundle(toy_bundle), OpeningOptions(backend_options, 1, NO_GPU))
    with pytest.raises(SettingsError, match="does not run on tensorrt, which is required") as caught:
        opener.open("vision")
    assert (caught.value.code, caught.value.exit_code) == ("no_backend", 78)
    assert caught.value.message.count("NO_DRIVER_OR_GPU: no driver here") == 2
    assert "nvidia-smi" in caught.value.fix
    assert opener.placements == {}


def test_a_missing_named_backend_is_reported_and_the_next_is_used(toy_bundle):
    opener = GraphOpener(open_bundle(toy_bundle), OpeningOptions(parse_backend_options(["openvino"]), 1, NO_GPU))
    opener.open("cnn")
    placement = opener.placements["cnn"].as_json()
    assert (placement["backend"], placement["where"], placement["precision"]) == (
        "onnxruntime",
        "ONNX Runtime CPU",
        "fp32",
    )
    assert [(row["rung"], row["code"]) for row in placement["refused"]] == [("openvino", "OPENVINO_MISSING")]
    assert placement["refused"][0]["fix"] == "pip install 'flamest[openvino]'"


class OnGpu:
    """A session on a GPU that was opened with ``options``."""

    computes_on_host, where = False, "a GPU"

    def __init__(self, **options):
        self.options, self.closed = options, False

    def close(self):
        self.closed = True


@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_on_onnxruntime_cuda_is_what_the_engines_were_built_with(toy_bundle, tmp_path, monkeypatch, tf32):
    from flamest.runtime.backends.onnxruntime_cuda import OrtCudaSession

    monkeypatch.setattr(OrtCudaSession, "open", classmethod(lambda cls, onnx, **options: OnGpu(**options)))
    facts = dataclasses.replace(GPU, versions={"onnxruntime-gpu": "1.31.1", "cuda-bindings": "13"}, ort_has_cuda=True)
    facts = dataclasses.replace(facts, device=2)
    folder = bundle_with_plans(toy_bundle, tmp_path, EngineOptions(tf32=tf32))
    opener = GraphOpener(open_bundle(folder), OpeningOptions(threads=1, facts=facts))
    vision, cnn = opener.open("vision"), opener.open("cnn")
    assert (vision.options["tf32"], vision.options["device"]) == (tf32, 2)
    assert cnn.options["tf32"] is False  # no engine, so nothing but float32 was asked for
    opener.close()
    assert vision.closed
    assert cnn.closed


def test_bf16_is_never_silently_float32(toy_bundle):
    opener = GraphOpener(
        open_bundle(toy_bundle), OpeningOptions(parse_backend_options([], precision="bf16"), 1, NO_GPU)
    )
    opener.open("keyframes")  # always float32
    with pytest.raises(SettingsError, match="PRECISION: ONNX Runtime's CPU provider does not compute in bf16"):
        opener.open("cnn")


def test_the_precision_label_follows_from_bundle_and_options(toy_bundle):
    manifest = read_manifest(toy_bundle)
    assert effective_precision(manifest, parse_backend_options([])) == manifest.precision == "fp32"
    assert effective_precision(manifest, parse_backend_options(["openvino"])) == "fp32"
    assert effective_precision(manifest, parse_backend_options([], precision="bf16")) == "bf16"


@pytest.mark.skipif(not gather_facts().bf16, reason="this processor has no bf16")
def test_a_clip_in_bf16_is_near_float32_and_stored_separately(tiny_bundle, clip):
    with open_extractor(tiny_bundle, threads=1) as plain:
        exact = plain.extract(clip)
    backend_options = parse_backend_options(["openvino"], precision="bf16", require=True)
    with open_extractor(tiny_bundle, opening=OpeningOptions(backend_options, 1)) as extractor:
        features = extractor.extract(clip)
    assert {name: placement.where for name, placement in extractor.placements.items()} == {
        "keyframes": "OpenVINO CPU f32",
        "vision": "OpenVINO CPU bf16",
        "text": "OpenVINO CPU bf16",
        "cnn": "OpenVINO CPU bf16",
    }
    assert (exact.precision, features.precision) == ("fp32", "bf16")
    assert features.keyframe_times_s == exact.keyframe_times_s
    one, other = exact.cnn.astype(np.float64), features.cnn.astype(np.float64)
    assert one @ other > 0.99 * np.linalg.norm(one) * np.linalg.norm(other)


def test_graphs_of_one_model_may_run_on_two_backends(tiny_bundle, clip):
    backend_options = parse_backend_options(["openvino,text=onnxruntime"])
    with open_extractor(tiny_bundle, opening=OpeningOptions(backend_options, 1)) as extractor:
        mixed = extractor.extract(clip)
    with open_extractor(tiny_bundle, threads=1) as plain:
        exact = plain.extract(clip)
    assert extractor.placements["vision"].where == "OpenVINO CPU f32"
    assert extractor.placements["text"].where == "ONNX Runtime CPU"
    np.testing.assert_allclose(mixed.cnn, exact.cnn, atol=1e-4 * np.abs(exact.cnn).max())


def test_facts_without_a_driver_are_enough_to_open_everything(toy_bundle):
    opener = GraphOpener(open_bundle(toy_bundle), OpeningOptions(threads=1, facts=dataclasses.replace(NO_GPU)))
    for name in ("keyframes", "vision", "text", "cnn"):
        opener.open(name)
    assert {placement.where for placement in opener.placements.values()} == {"ONNX Runtime CPU"}
