"""``--precision auto``: the fastest that gives the same, measured once."""

import json
from importlib.util import find_spec

import msgspec
import pytest
from flamest.agent.cli import app
from flamest.base.errors import SettingsError
from flamest.runtime import quickest
from flamest.runtime.manifest import read_manifest
from flamest.runtime.quickest import choose_quickest
from flamest.runtime.quickest_records import Contender, read_choice
from typer.testing import CliRunner

needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")


@pytest.fixture(scope="module")
def videos(clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("silo") / "videos"
    paths = [clips.write_clip(folder / "wave" / f"{seed}.avi", frames=12, seed=seed, noise=20) for seed in range(3)]
    paths[0].write_text("no video")
    return folder


def contender(backend, ms, *, cosine=1.0, equal=4, bf16=False, **stages):
    return Contender(backend, {}, bf16, ms, stages, cosine, equal, 4)


def best(contenders):
    return quickest._best(contenders, contenders, {})


def test_the_fastest_is_taken_only_if_its_captions_and_vectors_are_the_same():
    slow = contender("onnxruntime", 100.0)
    fast = contender("openvino", 60.0)
    other_caption = contender("openvino bf16", 30.0, equal=3, bf16=True)
    off = contender("openvino bf16", 30.0, cosine=0.9989, bf16=True)
    assert best([slow, fast, other_caption]).chosen == "openvino"
    assert best([slow, fast, off]).chosen == "openvino"
    assert best([slow, off]).chosen == "onnxruntime"
    both = best([slow, fast, contender("openvino bf16", 30.0, cosine=0.9991, bf16=True)])
    assert (both.wishes.backend, both.wishes.bf16) == ("openvino", True)


def test_each_graph_may_run_where_it_is_faster(toy_bundle):
    manifest = read_manifest(toy_bundle)
    ort = contender("onnxruntime", 100.0, vision=30.0, caption=5.0, embed=1.0, cnn=60.0, keyframes=2.0, decode=9.0)
    openvino = contender("openvino", 80.0, vision=20.0, caption=9.0, embed=1.0, cnn=40.0, keyframes=3.0, decode=1.0)
    wanted = {"vision": "openvino", "text": "onnxruntime", "cnn": "openvino", "keyframes": "onnxruntime"}
    assert quickest._mixed(manifest, [ort, openvino]) == wanted
    assert quickest._mixed(manifest, [ort, msgspec.structs.replace(openvino, captions_equal=3)]) == {}
    assert quickest._mixed(manifest, [ort]) == {}


@needs_openvino
def test_backends_are_measured_on_clips_that_can_be_read_and_the_choice_is_kept(
    toy_bundle, videos, tmp_path, monkeypatch
):
    paths = sorted(videos.rglob("*.avi"))
    told = []
    stopped = choose_quickest(toy_bundle, paths, threads=1, folder=tmp_path, stop=lambda: True)
    assert (stopped.chosen, stopped.contenders) == ("auto", ())
    choice = choose_quickest(toy_bundle, paths, threads=1, folder=tmp_path, notice=told.append)
    assert ["measuring onnxruntime, openvino" in line for line in told] == [True]
    assert [each.clips for each in choice.contenders] == [2] * len(choice.contenders)
    assert {"onnxruntime", "openvino"} <= {each.backend for each in choice.contenders} | choice.refused.keys()
    assert choice.contenders[0].backend == "onnxruntime"
    assert choice.contenders[0].fits
    fitting = [each for each in choice.contenders if each.fits]
    assert choice.chosen == min(fitting, key=lambda each: each.ms_per_clip).backend
    monkeypatch.setattr(quickest, "_Contest", None)  # not asked again
    again = choose_quickest(toy_bundle, paths, threads=1, folder=tmp_path)
    assert again == msgspec.structs.replace(choice, kept=True)
    assert again.line.endswith("(measured before)")
    with pytest.raises(TypeError):  # other cores: another measurement
        choose_quickest(toy_bundle, paths, threads=2, folder=tmp_path)


@needs_openvino
def test_clips_that_cannot_be_read_are_left_to_the_extraction_to_report(toy_bundle, videos, tmp_path):
    choice = choose_quickest(toy_bundle, [videos / "absent.avi", videos / "wave" / "0.avi"], threads=1, folder=tmp_path)
    assert (choice.chosen, choice.contenders) == ("auto", ())
    assert "none of the clips can be read" in choice.line
    assert not list(tmp_path.iterdir())


@needs_openvino
def test_a_store_keeps_to_the_kind_of_features_that_it_has(toy_bundle, videos, tmp_path):
    paths = sorted(videos.rglob("*.avi"))
    choice = choose_quickest(toy_bundle, paths, held="fp32", threads=1, folder=tmp_path)
    assert not any(each.bf16 for each in choice.contenders)
    odd = choose_quickest(toy_bundle, paths, held="int8", threads=1, folder=tmp_path)
    assert (odd.chosen, odd.contenders) == ("auto", ())


@needs_openvino
def test_without_a_reference_nothing_is_measured(toy_bundle, videos, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise SettingsError("no such backend", fix="another", code="no_backend")

    monkeypatch.setattr(quickest, "open_extractor", refuse)
    choice = choose_quickest(toy_bundle, sorted(videos.rglob("*.avi")), threads=1, folder=tmp_path)
    assert (choice.chosen, choice.contenders) == ("auto", ())
    assert "no such backend" in choice.line


def test_a_kept_choice_that_is_damaged_is_measured_anew(tmp_path):
    path = tmp_path / "choice.json"
    assert read_choice(path) is None
    path.write_text('{"chosen": 3}')
    assert read_choice(path) is None


@needs_openvino
def test_extraction_with_auto_says_what_it_chose(toy_bundle, videos, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = ["extract", "--bundle", toy_bundle, "--videos", videos, "--store", tmp_path / "s.sqlite", "--threads", "1"]
    done = CliRunner().invoke(app, [*map(str, words), "--precision", "auto", "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["choice"]["chosen"] in {each["backend"] for each in said["choice"]["contenders"]}
    assert said["extracted"] == 2
    assert "precision auto:" in done.stderr
    assert [path.suffix for path in (tmp_path / "cache" / "flamest" / "choices").iterdir()] == [".json"]


def test_auto_beside_a_backend_is_refused(toy_bundle, videos, tmp_path):
    words = ["extract", "--bundle", toy_bundle, "--videos", videos, "--store", tmp_path / "s.sqlite"]
    done = CliRunner().invoke(app, [*map(str, words), "--precision", "auto", "--backend", "openvino"])
    assert done.exit_code == 2
    assert "finds the backend too" in done.output
    assert not (tmp_path / "s.sqlite").exists()
