"""An engine that is built here goes into the bundle or the node's cache, and each step leaves both whole."""

import dataclasses
import shutil
from pathlib import Path

import msgspec
import pytest
from flamest.base.errors import FlamestError
from flamest.base.files import sha256_bytes
from flamest.runtime.backends.machine import Gpu, MachineFacts
from flamest.runtime.backends.tensorrt.builder import BuiltEngine
from flamest.runtime.backends.tensorrt.bundled import remove_unlisted_engines
from flamest.runtime.backends.tensorrt.cache import open_cache
from flamest.runtime.backends.tensorrt.engine import Version
from flamest.runtime.backends.tensorrt.progress import BUILD_STEPS
from flamest.runtime.backends.tensorrt.supply import (
    BuildTarget,
    build_problems,
    cached_engine,
    engine_file_name,
    engine_key,
    ensure_bundled_engine,
    ensure_cached_engine,
    local_build_options,
)
from flamest.runtime.backends.tensorrt.verdict import Verdict
from flamest.runtime.backends.tensorrt.verdicts import verdict_key
from flamest.runtime.backends.unavailable import Code, unavailable
from flamest.runtime.bundle.graph_records import AxisRange, EngineOptions, GraphUse
from flamest.runtime.bundle.manifest import Manifest, encode_manifest
from flamest.runtime.bundle.opening import open_bundle

FACTS = MachineFacts(
    gpu=Gpu("NVIDIA H100", "9.0", 80_000),
    cuda="12.8",
    driver="570.86",
    versions={"tensorrt": "10.3.0", "cuda-bindings": "12.9.1"},
    tensorrt_builds=True,
)


RIGHT = Verdict(15, 90, cuda_graphs=True, closest="", seconds=1.0)
WRONG = Verdict(3, 4, cuda_graphs=False, closest="", seconds=1.0, wrong="output embedding: cosine 0.5")


class Builder:
    """``build_engine`` without TensorRT; counts its calls."""

    def __init__(self, error=None, verdict=RIGHT):
        self.requests, self.error, self.verdict = [], error, verdict

    def __call__(self, request, progress):
        self.requests.append(request)
        if self.error is not None:
            raise self.error
        progress.advance(BUILD_STEPS)
        return BuiltEngine(
            f"engine of {request.name}".encode(), Version(10, 3, 0, 26), 1.234, ("a remark",), self.verdict
        )


class Counted:
    steps = 0

    def advance(self, steps=1):
        self.steps += steps

    def describe(self, text):
        pass


@pytest.fixture
def toy_bundle(toy_bundle, tmp_path):
    """A copy: these tests change it."""
    return Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))


@pytest.fixture
def target(tmp_path):
    return BuildTarget(FACTS, EngineOptions(tf32=True), open_cache(tmp_path / "cache"), build=Builder())


def test_an_added_engine_leaves_the_fingerprint_the_same(toy_bundle, target):
    before, progress = open_bundle(toy_bundle), Counted()
    after, supplied = ensure_bundled_engine(before, "cnn", target, progress)
    assert progress.steps == BUILD_STEPS
    assert supplied.fresh
    assert supplied.remarks == ("a remark",)
    checked = open_bundle(toy_bundle)
    assert checked.manifest == after.manifest
    assert checked.manifest.fingerprint == before.manifest.fingerprint
    (record,) = checked.manifest.graphs["cnn"].engines
    assert (toy_bundle / record.file).read_bytes() == b"engine of cnn"
    assert (record.tensorrt, record.cuda, record.driver, record.build_seconds) == ("10.3.0.26", "12.8", "570.86", 1.23)
    assert record.options.tf32
    (request,) = target.build.requests
    assert request.onnx_sha256 == record.onnx_sha256 == checked.manifest.files["cnn.onnx"].sha256
    _, again = ensure_bundled_engine(after, "cnn", target, progress)
    assert not again.fresh
    assert len(target.build.requests) == 1
    assert progress.steps == 2 * BUILD_STEPS


def test_graph_keyframes_is_never_built_with_tf32(toy_bundle, target):
    manifest = open_bundle(toy_bundle).manifest
    assert target.options.tf32
    assert {name for name in manifest.graphs if not target.key(manifest, name).options.tf32} == {"keyframes"}


def test_a_nodes_engines_use_tf32_where_the_bundle_says_so(toy_bundle):
    manifest = open_bundle(toy_bundle).manifest
    assert not local_build_options(manifest, "cnn").tf32
    default = msgspec.structs.replace(manifest, tf32=True)
    assert local_build_options(default, "cnn").tf32
    assert not local_build_options(default, "keyframes").tf32
    assert msgspec.json.decode(encode_manifest(default), type=Manifest).tf32
    assert default.fingerprint == manifest.fingerprint


def test_an_engine_of_other_options_is_added_to_the_first(toy_bundle, target):
    bundle, _ = ensure_bundled_engine(open_bundle(toy_bundle), "cnn", target, Counted())
    other = BuildTarget(FACTS, EngineOptions(opt_level=5), target.cache, build=target.build)
    ensure_bundled_engine(bundle, "cnn", other, Counted())
    engines = open_bundle(toy_bundle).manifest.graphs["cnn"].engines
    assert len({record.file for record in engines}) == 2
    assert local_build_options(open_bundle(toy_bundle).manifest, "cnn") == EngineOptions(tf32=True)
    assert local_build_options(open_bundle(toy_bundle).manifest, "keyframes") == EngineOptions()


def test_again_replaces_an_existing_engine(toy_bundle, target):
    bundle, _ = ensure_bundled_engine(open_bundle(toy_bundle), "cnn", target, Counted())
    cached_engine(bundle, "cnn", target, Counted())
    again = dataclasses.replace(target, again=True)
    _, supplied = ensure_bundled_engine(bundle, "cnn", again, Counted())
    assert supplied.fresh
    assert ensure_cached_engine(bundle, "cnn", again, Counted()).fresh
    assert len(target.build.requests) == 4
    assert len(open_bundle(toy_bundle).manifest.graphs["cnn"].engines) == 1


def test_a_build_that_fails_changes_nothing(toy_bundle, target):
    before = {file.name: file.read_bytes() for file in toy_bundle.iterdir()}
    failing = BuildTarget(
        FACTS, EngineOptions(), target.cache, build=Builder(unavailable(Code.PLAN_BUILD, "no").error())
    )
    with pytest.raises(FlamestError):
        ensure_bundled_engine(open_bundle(toy_bundle), "cnn", failing, Counted())
    assert {file.name: file.read_bytes() for file in toy_bundle.iterdir()} == before
    assert not list(toy_bundle.parent.glob(".*"))


def test_a_nodes_engine_is_built_once_and_cached(toy_bundle, target):
    before = {file.name: file.read_bytes() for file in toy_bundle.iterdir()}
    bundle = open_bundle(toy_bundle)
    assert cached_engine(bundle, "cnn", target, Counted()).data == b"engine of cnn"
    kept = cached_engine(bundle, "cnn", target, Counted())
    assert kept.data == b"engine of cnn"
    assert kept.record.gpu == "NVIDIA H100"
    supplied = ensure_cached_engine(bundle, "cnn", target, Counted())
    assert not supplied.fresh
    assert supplied.path.read_bytes() == b"engine of cnn"
    assert len(target.build.requests) == 1
    assert {file.name: file.read_bytes() for file in toy_bundle.iterdir()} == before


def test_a_wrong_engine_is_not_added_to_the_bundle(toy_bundle, target):
    before = {file.name: file.read_bytes() for file in toy_bundle.iterdir()}
    wrong = dataclasses.replace(target, build=Builder(verdict=WRONG))
    with pytest.raises(FlamestError, match=r"output embedding: cosine 0\.5") as caught:
        ensure_bundled_engine(open_bundle(toy_bundle), "cnn", wrong, Counted())
    assert caught.value.code == "ENGINE_WRONG"
    assert "just built by TensorRT 10.3.0.26" in caught.value.message
    assert {file.name: file.read_bytes() for file in toy_bundle.iterdir()} == before


def test_a_wrong_engine_is_kept_with_its_verdict_and_not_built_again(toy_bundle, target):
    bundle = open_bundle(toy_bundle)
    wrong = dataclasses.replace(target, build=Builder(verdict=WRONG))
    with pytest.raises(FlamestError):
        cached_engine(bundle, "cnn", wrong, Counted())
    kept = cached_engine(bundle, "cnn", wrong, Counted())
    assert len(wrong.build.requests) == 1
    key = verdict_key(FACTS, sha256_bytes(kept.data), bundle.manifest.files["cnn.onnx"].sha256)
    assert target.cache.verdict(key) == WRONG
    with pytest.raises(FlamestError) as caught:
        ensure_cached_engine(bundle, "cnn", wrong, Counted())
    assert caught.value.code == "ENGINE_WRONG"
    again = dataclasses.replace(wrong, again=True, build=Builder())
    assert ensure_cached_engine(bundle, "cnn", again, Counted()).verdict == RIGHT


def test_an_engine_of_the_bundle_is_compared_once_on_this_machine(toy_bundle, target):
    def judge(engine, cache, notice):
        judged.append(engine)
        return RIGHT

    judged = []
    bundle, _ = ensure_bundled_engine(open_bundle(toy_bundle), "cnn", target, Counted())
    moved = dataclasses.replace(target, facts=dataclasses.replace(FACTS, driver="580.1"), judge=judge, build=Builder())
    _, found = ensure_bundled_engine(bundle, "cnn", moved, Counted())
    assert (found.fresh, found.verdict, moved.build.requests) == (False, RIGHT, [])
    (engine,) = judged
    assert engine.key.driver == "580.1"
    assert engine.key.engine_sha256 == sha256_bytes(b"engine of cnn")
    assert engine.proof.onnx.sha256 == bundle.manifest.files["cnn.onnx"].sha256


def test_the_text_graph_is_compared_on_the_images_own_results(toy_bundle, target):
    cached_engine(open_bundle(toy_bundle), "text", target, Counted())
    (request,) = target.build.requests
    assert request.proof.source.path == str(toy_bundle / "vision.onnx")
    assert request.proof.vocabulary == 32


def test_there_is_one_timing_cache_per_version_and_gpu(toy_bundle, target, tmp_path):
    bundle = open_bundle(toy_bundle)
    cached_engine(bundle, "cnn", target, Counted())
    cached_engine(bundle, "keyframes", target, Counted())
    first, second = target.build.requests
    assert first.timing_cache == second.timing_cache == target.cache.timings("10.3.0", "NVIDIA H100")
    given = BuildTarget(FACTS, EngineOptions(), target.cache, tmp_path / "mine", target.build)
    cached_engine(bundle, "cnn", given, Counted())
    assert target.build.requests[-1].timing_cache == tmp_path / "mine"


class Memory:
    """Builds engines whose largest batch takes the GPU's memory, until it is ``fits`` or less."""

    def __init__(self, fits, code=Code.GPU_MEMORY):
        self.fits, self.batches, self.error = fits, [], unavailable(code, "2 GB are missing").error()

    def __call__(self, request, progress):
        batch = request.options.max_batch
        self.batches.append(batch)
        built = BuiltEngine(f"for {batch}".encode(), Version(10, 3, 0, 26), 1.0, ())
        request.arrived(built)
        if (batch or 1) > self.fits:
            return dataclasses.replace(built, unproved=self.error)
        return dataclasses.replace(built, verdict=RIGHT)

    def judge(self, engine, cache, notice):
        if (engine.proof.options.max_batch or 1) > self.fits:
            raise self.error
        return RIGHT


def test_an_engine_that_was_not_compared_is_kept_and_compared_again(toy_bundle, target):
    crashing = Memory(0, Code.PLAN_REJECTED)
    failing = dataclasses.replace(target, build=crashing, judge=crashing.judge)
    bundle = open_bundle(toy_bundle)
    with pytest.raises(FlamestError) as caught:
        ensure_bundled_engine(bundle, "cnn", failing, Counted())
    assert caught.value.code == "PLAN_REJECTED"
    assert open_bundle(toy_bundle).manifest.graphs["cnn"].engines == ()
    crashing.fits = 128
    _, supplied = ensure_bundled_engine(bundle, "cnn", failing, Counted())
    assert (len(crashing.batches), supplied.fresh, supplied.verdict) == (1, False, RIGHT)
    assert len(open_bundle(toy_bundle).manifest.graphs["cnn"].engines) == 1
    assert target.cache.find(target.key(bundle.manifest, "cnn")) is None


def test_an_engine_that_takes_too_much_memory_is_built_for_smaller_batches(toy_bundle, target):
    memory = Memory(8)
    small = dataclasses.replace(target, build=memory, judge=memory.judge)
    opened = open_bundle(toy_bundle)
    graph = msgspec.structs.replace(opened.manifest.graphs["cnn"], axes={"batch": AxisRange(1, 16, 128)})
    manifest = msgspec.structs.replace(opened.manifest, graphs={**opened.manifest.graphs, "cnn": graph})
    bundle = dataclasses.replace(opened, manifest=manifest)
    kept = cached_engine(bundle, "cnn", small, Counted())
    first = memory.batches[0]
    assert memory.batches == [first, first // 4, first // 16][: len(memory.batches)]
    assert kept.record.options.max_batch == memory.batches[-1] <= 8
    assert cached_engine(bundle, "cnn", small, Counted()).data == kept.data
    _, supplied = ensure_bundled_engine(bundle, "cnn", dataclasses.replace(small, again=True), Counted())
    assert "the GPU's memory did not hold" in supplied.remarks[-1]


def test_where_tensorrt_fails_with_the_profile_read_it_is_left_out(toy_bundle, target):
    def build(request, progress):
        if any(use.name == "read" for use in request.graph.uses):
            raise unavailable(Code.PLAN_BUILD, "ended with signal SIGABRT").error()
        uses.append([use.name for use in request.graph.uses])
        return Builder()(request, progress)

    uses = []
    opened = open_bundle(toy_bundle)
    graph = opened.manifest.graphs["text"]
    named = tuple(GraphUse(name, graph.axes) for name in ("step", "read", "one"))
    graphs = {**opened.manifest.graphs, "text": msgspec.structs.replace(graph, uses=named)}
    bundle = dataclasses.replace(opened, manifest=msgspec.structs.replace(opened.manifest, graphs=graphs))
    _, supplied = ensure_bundled_engine(bundle, "text", dataclasses.replace(target, build=build), Counted())
    assert uses == [["step", "one"]]
    assert "without the profile 'read'" in supplied.remarks[0]


def test_only_unlisted_engines_are_removed(toy_bundle, target):
    ensure_bundled_engine(open_bundle(toy_bundle), "cnn", target, Counted())
    (toy_bundle / "cnn.trt1-sm10-0.plan").write_bytes(b"")
    (toy_bundle / "notes.txt").write_text("mine")
    remove_unlisted_engines(toy_bundle)
    assert (toy_bundle / "notes.txt").exists()
    (toy_bundle / "notes.txt").unlink()
    assert len(open_bundle(toy_bundle).manifest.graphs["cnn"].engines) == 1


def test_an_engines_file_name_has_graph_version_and_capability():
    key = engine_key(FACTS, "a" * 64, EngineOptions())
    assert engine_file_name("cnn", key) == f"cnn.trt10.3.0-sm90-{key.digest[:8]}.plan"


@pytest.mark.parametrize(
    ("change", "codes"),
    [
        ({}, []),
        ({"gpu": None, "driver_problem": "no libcuda"}, ["NO_DRIVER_OR_GPU"]),
        ({"versions": {}}, ["TRT_MISSING", "CUDA_BINDINGS"]),
        ({"versions": {"tensorrt": "10.3.0"}}, ["CUDA_BINDINGS"]),
        ({"tensorrt_problem": "libnvinfer.so.10: cannot open", "tensorrt_builds": False}, ["TRT_LIBS"]),
        ({"tensorrt_builds": False}, ["TRT_NO_BUILDER"]),
        (
            {"gpu": None, "driver_problem": "no libcuda", "versions": {}},
            ["NO_DRIVER_OR_GPU", "TRT_MISSING", "CUDA_BINDINGS"],
        ),
        ({"cuda_majors": {"tensorrt": 13}}, ["DRIVER_TOO_OLD"]),
        ({"cuda_majors": {"tensorrt": 13, "cuda-bindings": 13}}, ["DRIVER_TOO_OLD", "DRIVER_TOO_OLD"]),
        ({"cuda_majors": {"tensorrt": 12, "cuda-bindings": 12}}, []),
    ],
)
def test_all_build_problems_are_found_at_once_driver_first(change, codes):
    facts = MachineFacts(**{**{name: getattr(FACTS, name) for name in FACTS.__dataclass_fields__}, **change})
    assert [problem.code for problem in build_problems(facts)] == codes
    if codes:
        with pytest.raises(FlamestError) as caught:
            engine_key(facts, "a" * 64, EngineOptions())
        assert caught.value.code == codes[0]


def test_flags_of_options_can_be_typed_again():
    options = EngineOptions(1, "same-cc", version_compatible=True, strip_weights=True, tf32=True, workspace_mb=512)
    assert " ".join(options.flags()) == (
        "--opt-level 1 --hardware-compat same-cc --version-compatible --strip-weights --tf32 --workspace-mb 512"
    )
    assert EngineOptions().flags() == ()
    assert msgspec.json.decode(msgspec.json.encode(options), type=EngineOptions) == options
