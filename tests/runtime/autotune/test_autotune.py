"""``--precision auto``: the fastest that gives the same, by figures that are measured once."""

import dataclasses
import json
from importlib.util import find_spec
from itertools import repeat
from weakref import ref

import msgspec
import numpy as np
import pytest
from flamest.agent.cli.main import app
from flamest.base.errors import SettingsError
from flamest.base.files import sha256_file
from flamest.runtime.autotune import benchmark, measurements, selection
from flamest.runtime.autotune.benchmark import MIN_PASSES, ClipResult, benchmark_backends, mixture
from flamest.runtime.autotune.measurements import MIXED, Measured, Measurement, keep_measured, read_measured
from flamest.runtime.autotune.selection import AutotuneRequest, autotune_backends
from flamest.runtime.backends import opening
from flamest.runtime.backends.machine import Gpu
from flamest.runtime.bundle.manifest_reading import read_manifest
from flamest.runtime.clip_records import Caption, Clip
from typer.testing import CliRunner

needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")
BOTH = {"onnxruntime": "1", "openvino": "1"}


@pytest.fixture(scope="module")
def videos(clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("silo") / "videos"
    paths = [clips.write_clip(folder / "wave" / f"{seed}.avi", frames=12, seed=seed, noise=20) for seed in range(3)]
    paths[0].write_text("no video")
    return folder


@pytest.fixture
def machine(monkeypatch):
    """Pretend facts of this machine."""
    genuine = opening.machine_facts()

    def be(**changes):
        facts = dataclasses.replace(genuine, gpu=None, **changes)
        monkeypatch.setattr(selection, "machine_facts", lambda: facts)
        monkeypatch.setattr(opening, "machine_facts", lambda: facts)

    return be


def silo_clips(folder):
    return [Clip(path, sha256_file(path)) for path in sorted(folder.rglob("*.avi"))]


def measurement(backend, ms, *, cosine=1.0, equal=4, **stages):
    return Measurement(backend, {}, ms, stages, cosine, equal, 4, 3)


def no_clips():
    raise AssertionError("no clip should be asked for")
    yield


@pytest.fixture
def best(toy_bundle):
    manifest = read_manifest(toy_bundle)
    return lambda *measurements, held=None: selection.choose_configuration(manifest, Measured(measurements), held)


def test_the_fastest_needs_equal_captions_and_near_vectors(best):
    slow, fast = measurement("onnxruntime", 100.0), measurement("openvino", 60.0)
    other_caption = measurement("openvino bf16", 30.0, equal=3)
    off = measurement("openvino bf16", 30.0, cosine=0.9989)
    assert best(slow, fast, other_caption).chosen == "openvino"
    assert best(slow, fast, off).chosen == "openvino"
    assert best(slow, off).chosen == "onnxruntime"
    both = best(slow, fast, measurement("openvino bf16", 30.0, cosine=0.9991))
    assert (both.backend_options.backend, both.backend_options.bf16, both.backend_options.backend_of("keyframes")) == (
        "openvino",
        True,
        "onnxruntime",
    )


def test_the_reference_is_replaced_only_for_a_clear_gain(best):
    reference = measurement("onnxruntime", 100.0)
    stays = best(reference, measurement("openvino", 91.0))
    assert stays.chosen == "onnxruntime"
    assert "ONNX Runtime takes 100 ms a clip" in stays.why
    assert "openvino 91; another backend is chosen only if it takes at least 10 % less time" in stays.why
    assert best(reference, measurement("openvino", 90.0)).chosen == "openvino"
    assert best(reference, measurement("openvino", 80.0), measurement("openvino bf16", 73.0)).chosen == "openvino"
    assert best(reference, measurement("openvino", 80.0), measurement("openvino bf16", 72.0)).chosen == "openvino bf16"


def test_the_stored_precision_limits_the_choice(best):
    all_ways = measurement("onnxruntime", 100.0), measurement("openvino", 70.0), measurement("openvino bf16", 40.0)
    assert best(*all_ways).chosen == "openvino bf16"
    assert best(*all_ways, held="fp32").chosen == "openvino"


def test_a_mixture_is_tried_if_it_promises_a_gain(toy_bundle):
    manifest = read_manifest(toy_bundle)
    ort = measurement("onnxruntime", 96.0, vision=30.0, caption=5.0, embed=1.0, cnn=60.0)
    openvino = measurement("openvino", 90.0, vision=20.0, caption=29.0, embed=1.0, cnn=40.0)
    assert mixture(manifest, [ort, openvino]) == {"vision": "openvino", "text": "onnxruntime", "cnn": "openvino"}
    little = measurement("openvino", 69.0, vision=20.0, caption=8.0, embed=1.0, cnn=40.0)
    assert mixture(manifest, [ort, little]) == {}
    assert mixture(manifest, [ort, msgspec.structs.replace(openvino, captions_equal=3)]) == {}
    assert mixture(manifest, [ort]) == {}


class ScriptedNetworks:
    """Networks whose stages take scripted times; ``log`` lists the runs in order."""

    def __init__(self, name, script, log, caption="a"):
        self._name, self._script, self._log, self._caption = name, iter(script), log, caption

    def run(self, clips):
        self._log.append(self._name)
        spent = next(self._script)
        if isinstance(spent, Exception):
            raise spent
        return [ClipResult((np.ones(2, np.float32),), (Caption(self._caption, ()),), {"vision": spent}) for _ in clips]


@pytest.fixture
def scripted(toy_bundle, monkeypatch):
    """``benchmark_backends`` on a script of milliseconds by configuration."""

    def hold(scripts, *, stop=lambda: False, mixed=None):
        log, names = [], iter(scripts)
        monkeypatch.setattr(benchmark, "Networks", lambda *_: ScriptedNetworks(name := next(names), scripts[name], log))
        monkeypatch.setattr(benchmark, "mixture", lambda *_: mixed)
        configurations = [name for name in scripts if name != MIXED]
        return benchmark_backends(
            selection.open_bundle(toy_bundle), opening.OpeningOptions(), configurations, [None] * 4, stop
        ), log

    return hold


def test_interleaved_passes_make_a_busy_moment_harmless(scripted):
    measured, log = scripted({"onnxruntime": [9000, 100, 5000, 120], "openvino": [9000, 200, 200, 4000]})
    assert MIN_PASSES == 3
    assert log == ["onnxruntime", "openvino"] * 4
    assert [(each.backend, each.ms_per_clip, each.passes) for each in measured.measurements] == [
        ("onnxruntime", 120, 3),
        ("openvino", 200, 3),
    ]


def test_small_networks_are_timed_more_often(scripted):
    measured, _ = scripted({"onnxruntime": repeat(25.0), "openvino": repeat(100.0)})
    assert [each.passes for each in measured.measurements] == [10, 10]  # 4 clips of 25 ms: a second
    measured, _ = scripted({"onnxruntime": repeat(0.1)})
    assert [each.passes for each in measured.measurements] == [25]


def test_the_mixture_is_measured_with_all_others_again(scripted):
    by_graph = {"vision": "openvino", "text": "onnxruntime", "cnn": "openvino"}
    first, second = [900.0] * 4, [300.0] * 3
    scripts = {"onnxruntime": first + second, "openvino": first + second, MIXED: [500.0] * 4}
    measured, log = scripted(scripts, mixed=by_graph)
    assert log == ["onnxruntime", "openvino"] * 4 + [MIXED] + ["onnxruntime", "openvino", MIXED] * 3
    assert [(each.ms_per_clip, each.by_graph) for each in measured.measurements] == [
        (300, {}),
        (300, {}),
        (500, by_graph),
    ]
    assert measured.measurements[-1].backend_options.by_graph == {**by_graph, "keyframes": "onnxruntime"}


def test_a_configuration_that_fails_is_left_out(scripted):
    fails = SettingsError("does not open")
    steady = [300.0] * 4
    measured, _ = scripted({"onnxruntime": steady, "openvino": [fails], "openvino bf16": [300.0, 300.0, fails]})
    assert [each.backend for each in measured.measurements] == ["onnxruntime"]
    assert measured.refused == {"openvino": "does not open", "openvino bf16": "does not open"}
    measured, _ = scripted({"onnxruntime": [fails], "openvino": steady})
    assert measured == Measured((), {"onnxruntime": "does not open"})


def test_a_measurement_that_is_stopped_gives_nothing(scripted):
    for asked_before in range(1, 10):
        asked = iter([False] * asked_before + [True] * 99)
        steady = {"onnxruntime": repeat(300.0), "openvino": repeat(300.0)}
        measured, log = scripted(steady, stop=lambda asked=asked: next(asked))
        assert (measured is None, len(log)) == (asked_before < 8, min(asked_before, 8))


@needs_openvino
def test_backends_are_measured_once_on_readable_clips(toy_bundle, videos, tmp_path, machine, monkeypatch):
    machine(bf16=False)
    opened, make = [], benchmark.Networks
    monkeypatch.setattr(benchmark, "Networks", lambda *given: opened.append(ref(made := make(*given))) or made)
    request, notices = AutotuneRequest(toy_bundle, threads=1, folder=tmp_path), []
    stopped = autotune_backends(request, silo_clips(videos), stop=lambda: True)
    assert (stopped.chosen, stopped.measurements, list(tmp_path.iterdir())) == ("auto", (), [])
    choice = autotune_backends(request, silo_clips(videos), notice=notices.append)
    assert [networks() for networks in opened] == [None] * len(opened)  # their memory is free for the extraction
    assert "measuring onnxruntime, openvino on 2 clips (fewer than 4: the result is rough)" in notices[0]
    assert len(notices) == 1
    assert choice.measurements[0].backend == "onnxruntime"
    assert {each.backend for each in choice.measurements} >= {"onnxruntime", "openvino"}
    for each in choice.measurements:
        assert each.clips == 2
        assert set(each.stages_ms) == {"vision", "caption", "embed", "cnn"}  # no decoding, no keyframes
        assert each.passes >= MIN_PASSES
    assert choice.measurements[0].fits
    assert f"medians of {choice.measurements[0].passes} passes over 2 clips" in choice.why

    again = autotune_backends(request, no_clips(), notice=notices.append)
    assert again == msgspec.structs.replace(choice, kept=True)
    assert again.line.endswith("(measured before)")
    held = autotune_backends(dataclasses.replace(request, stored_precision="fp32"), no_clips())
    assert held.measurements == choice.measurements
    assert len(notices) == 1
    with pytest.raises(AssertionError):  # other cores: another measurement
        autotune_backends(dataclasses.replace(request, threads=2), no_clips())


@needs_openvino
def test_measurements_are_kept_where_the_cache_cannot_be_written(toy_bundle, videos, tmp_path, monkeypatch, machine):
    machine(bf16=False)
    held = []
    measured = Measured((measurement("onnxruntime", 1.0),), {"openvino": "no"})
    monkeypatch.setattr(selection, "benchmark_backends", lambda *_: held.append(1) or measured)
    monkeypatch.setattr(measurements, "kept_in_memory", {})
    (tmp_path / "file").touch()
    nowhere = tmp_path / "file" / "choices"

    request, notices = AutotuneRequest(toy_bundle, folder=nowhere, fallback_folder=tmp_path / "fallback"), []
    for _ in range(2):
        choice = autotune_backends(request, silo_clips(videos), notice=notices.append)
        assert (choice.chosen, choice.refused) == ("onnxruntime", {"openvino": "no"})
    assert len(held) == 1
    assert [f"kept in {tmp_path / 'fallback'}: the cache folder {nowhere} cannot" in line for line in notices] == [
        False,
        True,
    ]

    notices.clear()
    for _ in range(2):
        autotune_backends(dataclasses.replace(request, fallback_folder=None), silo_clips(videos), notice=notices.append)
    assert len(held) == 2
    assert ["kept for this process only" in line for line in notices] == [False, True]


def test_damaged_measurements_are_ignored(tmp_path):
    assert read_measured([tmp_path], "key") is None
    (tmp_path / "key.json").write_text('{"contenders": 3}')
    assert read_measured([tmp_path], "key") is None
    measured = Measured((measurement("openvino", 1.0, vision=1.0),))
    assert keep_measured([tmp_path], "key", measured) == tmp_path
    assert read_measured([tmp_path / "absent", tmp_path], "key") == measured


@needs_openvino
def test_unreadable_clips_are_skipped(toy_bundle, videos, tmp_path, machine):
    machine()
    unreadable = [Clip(videos / "absent.avi", "0" * 64), Clip(videos / "wave" / "0.avi", "1" * 64)]
    choice = autotune_backends(AutotuneRequest(toy_bundle, threads=1, folder=tmp_path), unreadable)
    assert (choice.chosen, choice.measurements) == ("auto", ())
    assert "none of the clips can be read" in choice.line
    assert not list(tmp_path.iterdir())


def test_the_stored_precision_is_computed_or_an_error_names_it(toy_bundle, tmp_path, machine):
    request = AutotuneRequest(toy_bundle, stored_precision="bf16", folder=tmp_path)
    machine(versions=BOTH, bf16=True)
    choice = autotune_backends(request, no_clips())
    assert (choice.chosen, choice.backend_options.bf16, choice.backend_options.backend) == (
        "openvino bf16",
        True,
        "openvino",
    )
    machine(versions={"onnxruntime": "1"}, bf16=True)
    with pytest.raises(SettingsError, match="are bf16, and nothing on this machine computes it in bf16") as caught:
        autotune_backends(request, no_clips())
    assert caught.value.code == "held_precision"
    assert "pip install 'flamest[openvino]'; or use another --store" in caught.value.fix
    machine(versions=BOTH, bf16=False)
    with pytest.raises(SettingsError, match="this processor does not compute bf16"):
        autotune_backends(request, no_clips())
    with pytest.raises(SettingsError, match="it computes in fp32") as caught:
        autotune_backends(dataclasses.replace(request, stored_precision="int8"), no_clips())
    assert "use the bundle that was exported in int8" in caught.value.fix


def test_nothing_is_measured_without_a_choice(toy_bundle, tmp_path, machine, monkeypatch):
    request = AutotuneRequest(toy_bundle, folder=tmp_path)
    machine(versions={"onnxruntime": "1"})
    alone = autotune_backends(request, no_clips())
    assert (alone.chosen, alone.backend_options) == ("auto", selection.DEFAULT_OPTIONS)
    assert "the only backend that computes this bundle here" in alone.why
    machine(versions=BOTH)
    monkeypatch.setattr(selection, "available_bytes", lambda: 1000)
    tight = autotune_backends(request, no_clips())
    assert tight.chosen == "onnxruntime"
    assert "MB of memory" in tight.why


@needs_openvino
def test_extraction_with_auto_prints_its_choice(toy_bundle, videos, tmp_path, monkeypatch, machine):
    machine()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = ["extract", "--bundle", toy_bundle, "--videos", videos, "--store", tmp_path / "s.sqlite", "--threads", "1"]
    done = CliRunner().invoke(app, [*map(str, words), "--precision", "auto", "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["choice"]["chosen"] in {each["backend"] for each in result["choice"]["contenders"]}
    assert result["extracted"] == 2
    assert "precision auto:" in done.stderr
    assert [path.suffix for path in (tmp_path / "cache" / "flamest" / "choices").iterdir()] == [".json"]


def test_auto_with_a_backend_is_refused(toy_bundle, videos, tmp_path):
    words = ["extract", "--bundle", toy_bundle, "--videos", videos, "--store", tmp_path / "s.sqlite"]
    done = CliRunner().invoke(app, [*map(str, words), "--precision", "auto", "--backend", "openvino"])
    assert done.exit_code == 2
    assert "also chooses the backend" in done.output
    assert not (tmp_path / "s.sqlite").exists()


def test_a_gpu_that_is_not_used_does_not_end_the_choice(toy_bundle, tmp_path, monkeypatch):
    genuine = opening.machine_facts()
    monkeypatch.setattr(selection, "_on_gpu", lambda _, facts: facts.gpu is not None)
    monkeypatch.setattr(selection, "machine_facts", lambda: dataclasses.replace(genuine, gpu=Gpu("A", "9.0", 80_000)))
    request = AutotuneRequest(toy_bundle, folder=tmp_path, facts=dataclasses.replace(genuine, gpu=None))
    assert "a GPU runs the networks" in autotune_backends(dataclasses.replace(request, facts=None), no_clips()).why
    assert "a GPU runs the networks" not in autotune_backends(request, iter(())).why
