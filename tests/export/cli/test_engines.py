"""``flamest-export engines`` and ``--backend tensorrt``, whole commands: without a GPU, and on a scripted machine.

The scripted machine has NVIDIA's genuine Python classes, a driver that answers for one GPU, and a builder whose
engines hold a right header and stand-in content: everything runs but TensorRT's own work.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from flamest.base.errors import DataError
from flamest.export.cli.main import app
from flamest.export.engines import add_engines, supply_engines
from flamest.export.signing import make_key_pair, sign_bundle
from flamest.runtime.backends.machine import Gpu, MachineFacts
from flamest.runtime.backends.tensorrt.builder import BuiltEngine
from flamest.runtime.backends.tensorrt.cache import open_cache
from flamest.runtime.backends.tensorrt.engine import Version, engine_version
from flamest.runtime.backends.tensorrt.supply import BuildTarget
from flamest.runtime.backends.tensorrt.verdict import Verdict
from flamest.runtime.backends.unavailable import Code, unavailable
from flamest.runtime.bundle.graph_records import EngineOptions
from flamest.runtime.bundle.manifest import encode_manifest
from flamest.runtime.bundle.manifest_reading import read_manifest
from flamest.runtime.bundle.opening import open_bundle
from flamest.runtime.bundle.packaged import miniworld_bundle
from typer.testing import CliRunner

GRAPHS = ["keyframes", "vision", "text", "cnn"]
OF_SLOW = ["keyframes", "cnn"]
OPTIONS = ("--opt-level", 4, "--hardware-compat", "ampere+", "--max-batch", 4)


def run(*words, environment=None, cwd=None):
    command = [sys.executable, "-m", "flamest.export", *map(str, words), "--json"]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=cwd, timeout=300)


def said(done):
    assert done.stdout, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def bundle(tmp_path):
    return miniworld_bundle(tmp_path / "bundle")


@pytest.fixture
def slow_bundle(bundle):
    """The mini-world's Slow alone: the engines of two graphs, where a test is not about the others."""
    manifest = read_manifest(bundle)
    kept = {name: manifest.graphs[name] for name in OF_SLOW}
    for name in ("vision.onnx", "text.onnx", "tokenizer.json"):
        (bundle / name).unlink()
    files = {name: entry for name, entry in manifest.files.items() if (bundle / name).exists()}
    sources = {"slow": manifest.sources["slow"]}
    alone = msgspec.structs.replace(
        manifest, extractor="slow", vlm=None, graphs=kept, files=files, sources=sources
    )  # fmt: skip
    (bundle / "bundle.json").write_bytes(encode_manifest(alone))
    return bundle


def scripted_machine(rig, cache):
    return {**rig.environment(driver=True, scripted=True), "XDG_CACHE_HOME": str(cache)}


def check_engines(bundle, before, first, cache):
    """The engines in ``bundle`` are those that ``first`` says, made with OPTIONS; ``cache`` holds their proofs."""
    graphs = list(before.graphs)
    assert sorted(engine["graph"] for engine in first["plans"]) == sorted(graphs)
    assert all(engine["built_now"] for engine in first["plans"])
    checked = open_bundle(bundle)  # every hash, engines included
    assert checked.manifest.fingerprint == before.fingerprint
    for name in graphs:
        (engine,) = checked.manifest.graphs[name].engines
        data = (bundle / engine.file).read_bytes()
        assert str(engine_version(data)) == engine.tensorrt
        assert before.files[before.graphs[name].file].sha256.encode() in data
        assert b"(4, 'HardwareCompatibilityLevel.AMPERE_PLUS')" in data
        assert (engine.gpu, engine.compute_capability, engine.cuda) == ("Stand-in GPU", "9.0", "12.8")
        assert (engine.options.opt_level, engine.options.hardware_compat) == (4, "ampere+")
        assert engine.build_seconds >= 0
    assert not list(bundle.parent.glob(".*"))
    kept = sorted((cache / "flamest" / "plans").iterdir(), key=lambda file: file.suffix)
    assert [file.suffix for file in kept] == [".timings", *[".verdict"] * len(graphs)]
    assert kept[0].read_bytes() == b"timings"
    assert {file.stat().st_mode & 0o777 for file in kept} == {0o600}
    for engine in first["plans"]:
        assert engine["verdict"]["wrong"] == ""
        assert engine["verdict"]["cuda_graphs"], engine["verdict"]


@pytest.mark.parametrize("tensorrt_rig", ["10.3", "10.16"], indirect=True)  # the newest is in the next test
def test_engines_of_each_tensorrt_go_into_the_bundle(tensorrt_rig, slow_bundle, tmp_path):
    before = read_manifest(slow_bundle)
    machine = scripted_machine(tensorrt_rig, tmp_path / "cache")
    check_engines(
        slow_bundle, before, said(run("engines", slow_bundle, *OPTIONS, environment=machine)), tmp_path / "cache"
    )


def test_engines_of_all_graphs_are_shown_and_not_built_twice(one_machine, bundle, tmp_path):
    before = read_manifest(bundle)
    (bundle / "keyframes.trt9.9.9-sm90-00000000.plan").write_bytes(b"left by a crash before the manifest was written")
    assert said(run("inspect", bundle, environment=one_machine))["verdicts"] == []
    first = said(run("engines", bundle, *OPTIONS, environment=one_machine))
    assert [engine["graph"] for engine in first["plans"]] == GRAPHS
    check_engines(bundle, before, first, tmp_path / "cache")
    inspected = CliRunner().invoke(app, ["inspect", str(bundle)]).stdout
    assert inspected.count("Stand-in GPU (9.0), --opt-level 4 --hardware-compat ampere+") == len(GRAPHS)

    shown = said(run("inspect", bundle, environment=one_machine))["verdicts"]
    assert sorted(verdict["graph"] for verdict in shown) == sorted(GRAPHS)
    assert all(verdict["said"].startswith("equals its ONNX graph at ") for verdict in shown)
    elsewhere = {**one_machine, "XDG_CACHE_HOME": str(tmp_path / "elsewhere")}
    assert said(run("inspect", bundle, environment=elsewhere))["verdicts"] == [], "verdicts are of this machine"
    assert not (tmp_path / "elsewhere").exists()

    again = said(run("engines", bundle, *OPTIONS, environment=one_machine))
    assert not any(engine["built_now"] for engine in again["plans"])
    assert [engine["verdict"] for engine in again["plans"]] == [engine["verdict"] for engine in first["plans"]]


@pytest.fixture
def one_machine(one_rig, tmp_path):
    return scripted_machine(one_rig, tmp_path / "cache")


def test_a_signed_bundle_stays_and_its_engines_go_to_the_cache(one_machine, slow_bundle, tmp_path):
    pair = make_key_pair("builder", tmp_path)
    sign_bundle(slow_bundle, pair.private_path)
    before = {file.name: file.stat().st_mtime_ns for file in slow_bundle.iterdir()}
    words = ("engines", slow_bundle, "--max-batch", 4, "--trusted-key", pair.public_path)
    engines = said(run(*words, environment=one_machine))["plans"]
    assert {file.name: file.stat().st_mtime_ns for file in slow_bundle.iterdir()} == before
    folder = tmp_path / "cache" / "flamest" / "plans"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [engine["graph"] for engine in engines] == OF_SLOW
    assert all(Path(engine["path"]).parent == folder and engine["built_now"] for engine in engines)


def test_a_bundle_that_no_trusted_key_signed_gets_no_engines(bundle, tmp_path):
    pair = make_key_pair("stranger", tmp_path)
    done = run("engines", bundle, "--trusted-key", pair.public_path)
    assert said(done)["error"]["code"] == "UNTRUSTED"
    assert done.returncode in (65, 77)


@pytest.mark.parametrize(
    ("script", "words"),
    [("crash", "ended with signal SIGSEGV"), ("refuse", "Could not find any implementation for node {conv}")],
)
def test_a_build_that_fails_leaves_the_onnx_bundle_complete(one_machine, slow_bundle, script, words):
    done = run("engines", slow_bundle, "--max-batch", 4, environment={**one_machine, "FLAMEST_SCRIPT": script})
    error = said(done)["error"]
    assert done.returncode == 65
    assert error["code"] == "PLAN_BUILD"
    assert words in error["message"]
    assert "graph 'keyframes'" in error["message"]
    assert open_bundle(slow_bundle).manifest.graphs["keyframes"].engines == ()


@pytest.mark.parametrize(
    ("script", "kind", "graph"),
    [("stale", "slow_bundle", "keyframes"), ("swapped", "bundle", "text"), ("first_stale", "slow_bundle", "one_layer")],
)
def test_an_engine_that_computes_something_else_is_not_shipped(one_machine, request, script, kind, graph):
    bundle = request.getfixturevalue(kind)
    done = run("engines", bundle, "--max-batch", 4, environment={**one_machine, "FLAMEST_SCRIPT": script})
    error = said(done)["error"]
    assert (done.returncode, error["code"]) == (65, "ENGINE_WRONG")
    assert f"graph '{graph}'" in error["message"]
    assert "relative error" in error["message"]
    graphs = open_bundle(bundle).manifest.graphs
    assert graphs.get(graph, graphs["cnn"]).engines == ()
    if graph != "one_layer":
        ended = said(done)
        assert graph in {one["graph"] for one in ended["failed"]}
        assert {one["graph"] for one in (*ended["plans"], *ended["failed"])} == set(graphs)


def test_a_graph_that_fails_leaves_the_other_graphs_their_engines(bundle, tmp_path):
    def build(request, progress):
        if request.name in ("keyframes", "text"):
            raise unavailable(Code.PLAN_BUILD, f"graph '{request.name}': no implementation").error()
        verdict = Verdict(1, 1, cuda_graphs=False, closest="", seconds=0.0)
        return BuiltEngine(request.name.encode(), Version(11, 4, 0, 106), 0.0, (), verdict)

    facts = MachineFacts(
        gpu=Gpu("Stand-in GPU", "9.0", 8),
        versions={"tensorrt": "11.4.0.106", "cuda-bindings": "13.0"},
        tensorrt_builds=True,
    )
    target = BuildTarget(facts, EngineOptions(), open_cache(tmp_path / "cache"), build=build)
    supplied = supply_engines(open_bundle(bundle), target)
    assert [one.graph for one in supplied.done] == ["vision", "cnn"]
    assert list(supplied.failed) == ["keyframes", "text"]
    error = supplied.error()
    assert (error.code, error.exit_code) == ("PLAN_BUILD", 65)
    assert "graph 'keyframes'" in error.message
    assert "graph 'text'" in error.message
    graphs = open_bundle(bundle).manifest.graphs
    assert {name for name in GRAPHS if graphs[name].engines} == {"vision", "cnn"}


def test_an_engine_whose_replays_are_wrong_runs_without_cuda_graphs(one_machine, bundle):
    engines = said(run("engines", bundle, "--max-batch", 4, environment={**one_machine, "FLAMEST_SCRIPT": "replays"}))[
        "plans"
    ]
    verdicts = {engine["graph"]: engine["verdict"] for engine in engines}
    assert {name: verdict["cuda_graphs"] for name, verdict in verdicts.items()} == {
        "keyframes": True, "vision": True, "text": False, "cnn": True
    }  # fmt: skip
    assert verdicts["text"]["remarks"][0].startswith("CUDA graphs stay off: output ")


def test_a_crash_of_the_engine_of_one_layer_comes_before_all_work(one_machine, tmp_path):
    words = ("--backend", "tensorrt", "--weights", "random:tiny", "--out", tmp_path / "b")
    for script, code, evidence in (
        ("first_refuse", "PLAN_BUILD", "Could not find any implementation for node {conv}"),
        ("first_crash_open", "PLAN_REJECTED", "ended with signal SIGSEGV"),
    ):
        done = run(*words, environment={**one_machine, "FLAMEST_SCRIPT": script})
        error = said(done)["error"]
        assert (done.returncode, error["code"]) == (65, code)
        assert "an engine of one layer failed" in error["message"]
        assert evidence in error["message"]
        assert not (tmp_path / "b").exists()


def test_a_build_does_not_outlive_the_command_that_is_interrupted(one_machine, bundle, tmp_path):
    note = tmp_path / "pid"
    environment = {**one_machine, "FLAMEST_SCRIPT": "hang", "FLAMEST_SCRIPT_PID": str(note)}
    command = [sys.executable, "-m", "flamest.export", "engines", str(bundle)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True) as running:
        while not (note.exists() and note.read_text()):
            assert running.poll() is None
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        assert running.wait(60) != 0
    assert not Path("/proc", note.read_text()).exists()
    assert not any(graph.engines for graph in open_bundle(bundle).manifest.graphs.values())


def test_an_export_for_tensorrt_ends_in_a_bundle_with_engines(one_machine, tmp_path):
    words = ("--backend", "tensorrt", "--extractor", "slow", "--weights", "miniworld", "--threads", 1)
    done = run(*words, "--tf32", "--max-batch", 4, "--out", tmp_path / "b", environment=one_machine)
    found = said(done)
    assert done.returncode == 0, done.stderr
    assert [engine["graph"] for engine in found["plans"]] == ["keyframes", "cnn"]
    assert all(engine["verdict"]["wrong"] == "" for engine in found["plans"])
    assert [engine["options"]["tf32"] for engine in found["plans"]] == [False, True]  # which frames are seen stays
    manifest = open_bundle(tmp_path / "b").manifest
    assert (manifest.fingerprint, manifest.backend) == (found["fingerprint"], "tensorrt")


def test_an_export_whose_engines_fail_keeps_the_onnx_bundle(bundle, tmp_path):
    def fail(request, progress):
        raise unavailable(Code.PLAN_BUILD, "no implementation").error()

    facts = MachineFacts(
        gpu=Gpu("Stand-in GPU", "9.0", 8),
        versions={"tensorrt": "11.4.0.106", "cuda-bindings": "13.0"},
        tensorrt_builds=True,
    )
    site = BuildTarget(facts, EngineOptions(tf32=True), open_cache(tmp_path / "cache"), build=fail)
    with pytest.raises(DataError, match=f"The ONNX bundle {bundle} is complete") as caught:
        add_engines(bundle, site)
    assert caught.value.code == "PLAN_BUILD"
    assert f"then: flamest-export engines {bundle} --tf32" in caught.value.fix
    open_bundle(bundle)


@pytest.fixture
def bare():
    """An environment that finds no driver and no tensorrt; skipped where this machine has one of its own."""
    from flamest.runtime.backends.machine import gather_facts

    facts = gather_facts()
    if facts.gpu is not None or "tensorrt" in facts.versions:
        pytest.skip("this machine can build engines")
    return {**os.environ}


def test_without_gpu_one_message_names_everything_missing_and_a_fix(bare, tmp_path):
    words = ("--extractor", "slow", "--weights", "random:tiny", "--out", "my bundle")
    words = (*words, "--check", "--hardware-compat", "ampere+")
    done = run("--backend", "tensorrt", *words, environment=bare, cwd=tmp_path)
    error = said(done)["error"]
    assert done.returncode == 78
    assert error["code"] == "NO_DRIVER_OR_GPU"
    assert "libcuda.so.1" in error["message"]
    assert "TRT_MISSING: the Python package tensorrt is not installed" in error["message"]
    now, later = error["fix"].splitlines()
    typed = "--out 'my bundle' --extractor slow --weights random:tiny --check"
    assert now == f"here, now: flamest-export --backend tensorrt --no-plans {typed}"
    assert "copy the folder to the machine" in later
    assert (
        "pip install 'flamest[agent,tensorrt]' && flamest-export engines 'my bundle' --hardware-compat ampere+ --tf32"
        in later
    )
    assert list(tmp_path.iterdir()) == []
    assert done.stderr.count("error:") == 1


def test_the_fix_without_a_gpu_keeps_the_precision(bare, tmp_path):
    words = ("--backend", "tensorrt", "--precision", "int8", "--tf32", "--out", "b")
    now, later = said(run(*words, environment=bare, cwd=tmp_path))["error"]["fix"].splitlines()
    assert now.endswith("flamest-export --backend tensorrt --no-plans --out b --precision int8")
    assert later.endswith("flamest-export engines b --tf32")


def test_plans_is_an_alias_of_engines(tmp_path):
    done = run("plans", tmp_path)
    assert done.returncode == 65
    assert "is not a bundle" in said(done)["error"]["message"]


def test_asking_the_machine_loads_no_torch_and_no_tensorrt(bare):
    code = (
        "import sys\nfrom flamest.export.cli.main import app\n"
        "try:\n    app(['--backend', 'tensorrt', '--out', 'b'])\n"
        "except SystemExit as ended:\n    assert ended.code == 78\n"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'tensorrt', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=bare)
    assert done.stdout.splitlines()[-1] == "[]"


def test_engines_of_a_folder_that_is_no_bundle_end_in_65(tmp_path):
    done = run("engines", tmp_path)
    assert done.returncode == 65
    assert "is not a bundle" in said(done)["error"]["message"]
