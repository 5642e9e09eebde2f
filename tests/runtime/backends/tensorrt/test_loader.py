"""Engines of the bundle and engines built here are tried in a child, then opened, all on one device."""

from __future__ import annotations

import dataclasses
import shutil
from types import SimpleNamespace

import pytest
from flamest.base.errors import FlamestError
from flamest.base.files import sha256_bytes, sha256_file
from flamest.runtime.backends.machine import Gpu, MachineFacts, on_device
from flamest.runtime.backends.tensorrt import loader, verdicts
from flamest.runtime.backends.tensorrt.bundled import with_engine
from flamest.runtime.backends.tensorrt.cache import CachedEngine
from flamest.runtime.backends.tensorrt.loader import TensorRtOpener
from flamest.runtime.backends.tensorrt.verdict import Verdict
from flamest.runtime.backends.unavailable import Code, unavailable
from flamest.runtime.bundle.graph_records import EngineOptions, EngineRecord
from flamest.runtime.bundle.manifest import encode_manifest
from flamest.runtime.bundle.manifest_reading import read_manifest
from flamest.runtime.bundle.opening import open_bundle

FACTS = MachineFacts(
    gpu=Gpu("Made-up GPU", "9.0", 1000),
    versions={"tensorrt": "11.4.0", "cuda-bindings": "13.0"},
    tensorrt_builds=True,
)
RIGHT = Verdict(12, 72, cuda_graphs=True, closest="hidden: 1e-6 of 1e-3", seconds=1.0)
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
    monkeypatch.setattr(verdicts, "try_engine", lambda file, proof: done.append(("tried", file)) or RIGHT)
    monkeypatch.setattr(loader, "load_engine", lambda trt, file: done.append(("opened", file)))
    opened = SimpleNamespace(open=lambda *, number: done.append(("device", number)) or f"GPU {number}")
    monkeypatch.setattr(loader, "CudaDevice", opened)
    monkeypatch.setattr(
        loader,
        "TensorRtSession",
        lambda trt, opened, device, *, name, where, cuda_graphs: SimpleNamespace(
            name=name, where=where, device=device, cuda_graphs=cuda_graphs
        ),
    )
    return done


def test_an_engine_is_tried_before_it_is_opened(bundle, did):
    opener = TensorRtOpener(bundle, FACTS, lambda text: None)
    session = opener.open_bundled("vision", bundle.manifest.graphs["vision"].engines[0])
    assert (session.name, session.where) == ("vision", "TensorRT 11.4.0 on Made-up GPU")
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


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_a_later_start_trusts_the_verdict_without_a_child(bundle, did, monkeypatch, cuda_graphs):
    notices, record = [], bundle.manifest.graphs["vision"].engines[0]
    verdict = Verdict(12, 72, cuda_graphs, "", 1.0)
    monkeypatch.setattr(verdicts, "try_engine", lambda file, proof: did.append(("tried", proof)) or verdict)
    for _ in range(2):
        opener = TensorRtOpener(bundle, FACTS, notices.append)
        assert opener.open_bundled("vision", record).cuda_graphs is cuda_graphs
        assert opener.verdicts == {"vision": verdict}
    assert [what for what, _ in did] == ["tried", "opened", "device", "opened", "device"]
    assert len(notices) == 1
    assert "is compared with the ONNX graph" in notices[0]
    newer = dataclasses.replace(FACTS, driver="999.1")
    TensorRtOpener(bundle, newer, notices.append).open_bundled("vision", record)
    assert [what for what, _ in did].count("tried") == 2


def test_a_wrong_engine_is_never_opened_and_not_compared_again(bundle, did, monkeypatch):
    wrong = Verdict(3, 5, cuda_graphs=False, closest="", seconds=1.0, wrong="output hidden: cosine 0.1")
    monkeypatch.setattr(verdicts, "try_engine", lambda file, proof: did.append(("tried", proof)) or wrong)
    for _ in range(2):
        with pytest.raises(FlamestError, match=r"graph 'text', text.plan: output hidden: cosine 0.1") as caught:
            TensorRtOpener(bundle, FACTS, lambda text: None).open_bundled(
                "text", bundle.manifest.graphs["text"].engines[0]
            )
        assert (caught.value.code, caught.value.exit_code) == ("ENGINE_WRONG", 65)
    assert [what for what, _ in did] == ["tried"]
    assert did[0][1].source.graph == bundle.manifest.graphs["vision"]
    assert did[0][1].vocabulary == bundle.manifest.vlm.text.vocabulary


def test_a_wrong_engine_that_was_built_here_names_the_file_to_remove(bundle, did, monkeypatch, tmp_path):
    def build(bundle, name, target, progress):
        key = target.key(bundle.manifest, name)
        record = bundle.manifest.graphs["text"].engines[0]
        target.cache.keep(key, record, PLAN)
        return CachedEngine(record, PLAN)

    wrong = Verdict(3, 5, cuda_graphs=False, closest="", seconds=1.0, wrong="output embedding: cosine 0.1")
    monkeypatch.setattr(loader, "cached_engine", build)
    monkeypatch.setattr(loader, "try_first_engine", lambda *, device: None)
    monkeypatch.setattr(verdicts, "try_engine", lambda file, proof: wrong)
    with pytest.raises(FlamestError) as caught:
        TensorRtOpener(bundle, FACTS, lambda text: None).open_built("cnn")
    assert caught.value.code == "ENGINE_WRONG"
    (engine,) = (tmp_path / "cache" / "flamest" / "plans").glob("*.plan")
    assert caught.value.fix.startswith(f"rm {engine}: the next start builds it again")


def test_without_a_folder_for_verdicts_an_engine_is_compared_each_time(bundle, did, monkeypatch, tmp_path):
    (tmp_path / "cache" / "flamest" / "plans").mkdir(parents=True, mode=0o755)
    for _ in range(2):
        TensorRtOpener(bundle, FACTS, lambda text: None).open_bundled("text", bundle.manifest.graphs["text"].engines[0])
    assert [what for what, _ in did].count("tried") == 2


def test_the_chosen_gpu_is_the_one_that_runs(bundle, did, monkeypatch):
    monkeypatch.setattr(loader, "use_gpu", lambda number: did.append(("used", number)))
    gpus = (Gpu("Made-up GPU", "9.0", 1000), Gpu("Made-up GPU", "9.0", 2000))
    facts = on_device(dataclasses.replace(FACTS, gpus=gpus), 1)
    opener = TensorRtOpener(bundle, facts, lambda text: None)
    assert opener.open_bundled("text", bundle.manifest.graphs["text"].engines[0]).device == "GPU 1"
    assert [what for what, _ in did][-3:] == ["used", "opened", "device"]  # TensorRT opens it on the thread's GPU
    assert ("used", 1) in did


def test_an_engine_that_fails_its_trial_is_never_opened(bundle, did, monkeypatch):
    def fails(file, proof):
        raise unavailable(Code.PLAN_REJECTED, "signal SIGSEGV").error()

    monkeypatch.setattr(verdicts, "try_engine", fails)
    with pytest.raises(FlamestError) as caught:
        TensorRtOpener(bundle, FACTS, lambda text: None).open_bundled("text", bundle.manifest.graphs["text"].engines[0])
    assert caught.value.code == "PLAN_REJECTED"
    assert did == []


def test_an_engine_is_built_once_after_a_notice(bundle, did, monkeypatch):
    notices, built = [], []

    def build(bundle, name, target, progress):
        built.append((name, target.options))
        kept = CachedEngine(plan_of(name), PLAN)
        target.cache.keep(target.key(bundle.manifest, name), kept.record, kept.data)
        return kept

    monkeypatch.setattr(loader, "cached_engine", build)
    monkeypatch.setattr(loader, "try_first_engine", lambda *, device: first.append((device, len(built))))
    first = []
    opener = TensorRtOpener(bundle, FACTS, notices.append)
    opener.open_built("cnn")
    opener.open_built("cnn")
    assert built == [("cnn", EngineOptions())] * 2
    assert first == [(0, 0)]  # an engine of one layer, before the minutes
    assert ["building a TensorRT engine for Made-up GPU" in notice for notice in notices] == [True, False]
    assert "is compared" in notices[1]
    files = [file for what, file in did if what == "opened"]
    assert files[0] == files[1]
    assert files[0].path.read_bytes() == PLAN
    assert files[0].sha256 == sha256_bytes(PLAN)
    assert [what for what, _ in did].count("device") == 1
