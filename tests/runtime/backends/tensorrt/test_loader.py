"""Engines of the bundle and engines built here are tried in a child, then opened, all on one device."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
from flamest.base.errors import FlamestError
from flamest.base.files import sha256_bytes, sha256_file
from flamest.runtime.backends.machine import Gpu, MachineFacts
from flamest.runtime.backends.tensorrt import loader
from flamest.runtime.backends.tensorrt.cache import CachedEngine
from flamest.runtime.backends.tensorrt.loader import TensorRtOpener
from flamest.runtime.backends.tensorrt.supply import with_engine
from flamest.runtime.backends.unavailable import Code, unavailable
from flamest.runtime.bundle.graph_records import EngineOptions, EngineRecord
from flamest.runtime.bundle.manifest import encode_manifest
from flamest.runtime.bundle.manifest_reading import read_manifest
from flamest.runtime.bundle.opening import open_bundle

FACTS = MachineFacts(gpu=Gpu("Made-up GPU", "9.0", 1000), versions={"tensorrt": "11.4.0"}, tensorrt_builds=True)
PLAN = b"ftrt" + bytes(20) + bytes((11, 4, 0, 106)) + b"native code"


def plan_of(name, **options):
    return EngineRecord(
        f"{name}.plan", "0" * 64, "11.4.0.106", "13.0", "580", "Made-up GPU", "9.0", EngineOptions(**options), 1.0
    )


@pytest.fixture
def bundle(toy_bundle, tmp_path):
    """Vision with an engine without weights, text with one for later versions too."""
    copy = shutil.copytree(toy_bundle, tmp_path / "bundle")
    manifest = read_manifest(copy)
    for name, plan in (
        ("vision", plan_of("vision", strip_weights=True)),
        ("text", plan_of("text", version_compatible=True)),
    ):
        (copy / plan.file).write_bytes(PLAN)
        manifest = with_engine(manifest, name, plan, PLAN)
    (copy / "bundle.json").write_bytes(encode_manifest(manifest))
    return open_bundle(copy)


@pytest.fixture
def did(monkeypatch, tmp_path):
    """Record of the steps in order; nothing needs TensorRT."""
    done = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(loader, "import_tensorrt", lambda: SimpleNamespace(__version__="11.4.0"))
    monkeypatch.setattr(loader, "try_engine", lambda file: done.append(("tried", file)))
    monkeypatch.setattr(loader, "load_engine", lambda trt, file: done.append(("opened", file)))
    monkeypatch.setattr(loader, "CudaDevice", SimpleNamespace(open=lambda: done.append(("device", None)) or "GPU 0"))
    monkeypatch.setattr(loader, "TensorRtSession", lambda trt, opened, device, *, name, where: (name, where, device))
    return done


def test_an_engine_is_tried_before_it_is_opened(bundle, did):
    opener = TensorRtOpener(bundle, FACTS, lambda text: None)
    name, where, _ = opener.open_bundled("vision", bundle.manifest.graphs["vision"].engines[0])
    assert (name, where) == ("vision", "TensorRT 11.4.0 on Made-up GPU")
    assert [what for what, _ in did] == ["tried", "opened", "device"]
    file = did[0][1]
    assert file == did[1][1]
    assert (file.path, file.sha256) == (bundle.path / "vision.plan", sha256_bytes(PLAN))
    assert (file.onnx, file.onnx_sha256) == (bundle.graph("vision"), sha256_file(bundle.graph("vision")))
    assert file.host_code is False


def test_only_stripped_engines_are_refitted(bundle, did):
    TensorRtOpener(bundle, FACTS, lambda text: None).open_bundled("text", bundle.manifest.graphs["text"].engines[0])
    file = did[0][1]
    assert (file.onnx, file.onnx_sha256, file.host_code) == (None, "", True)


@pytest.mark.parametrize(
    ("plan", "code"),
    [(PLAN.replace(bytes((11, 4, 0, 106)), bytes((10, 3, 0, 26))), "PLAN_VERSION"), (b"x" * 40, "PLAN_HEADER")],
)
def test_the_header_overrules_the_record(bundle, did, plan, code):
    (bundle.path / "vision.plan").write_bytes(plan)
    with pytest.raises(FlamestError) as caught:
        TensorRtOpener(bundle, FACTS, lambda text: None).open_bundled(
            "vision", bundle.manifest.graphs["vision"].engines[0]
        )
    assert caught.value.code == code
    assert did == []


def test_an_engine_that_fails_its_trial_is_never_opened(bundle, did, monkeypatch):
    def fails(file):
        raise unavailable(Code.PLAN_REJECTED, "signal SIGSEGV").error()

    monkeypatch.setattr(loader, "try_engine", fails)
    with pytest.raises(FlamestError) as caught:
        TensorRtOpener(bundle, FACTS, lambda text: None).open_bundled("text", bundle.manifest.graphs["text"].engines[0])
    assert caught.value.code == "PLAN_REJECTED"
    assert did == []


def test_an_engine_is_built_once_after_a_notice(bundle, did, monkeypatch):
    notices, built = [], []

    def build(bundle, name, target, progress):
        built.append((name, target.options))
        kept = CachedEngine(plan_of(name), PLAN)
        key = loader.engine_key(FACTS, bundle.manifest.files[f"{name}.onnx"].sha256, target.options)
        target.cache.keep(key, kept.record, kept.data)
        return kept

    monkeypatch.setattr(loader, "cached_engine", build)
    opener = TensorRtOpener(bundle, FACTS, notices.append)
    opener.open_built("cnn")
    opener.open_built("cnn")
    assert built == [("cnn", EngineOptions())] * 2
    assert len(notices) == 1
    assert "building a TensorRT engine for Made-up GPU" in notices[0]
    files = [file for what, file in did if what == "opened"]
    assert files[0] == files[1]
    assert files[0].path.read_bytes() == PLAN
    assert files[0].sha256 == sha256_bytes(PLAN)
    assert [what for what, _ in did].count("device") == 1
