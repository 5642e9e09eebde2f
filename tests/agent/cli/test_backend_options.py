"""The backend options of a silo's commands, and the lines that show where networks ran."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec

import pytest
from flamest.agent.cli.main import app
from flamest.agent.extraction.report import ExtractRequest
from flamest.agent.settings import load_agent_settings
from flamest.agent.status import AgentStatus
from flamest.agent.tasks import extract_new
from flamest.base.errors import SettingsError
from flamest.runtime.backends.options import parse_backend_options
from flamest.runtime.video.decoder import DecodeLimits
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def videos(clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    clips.write_clip(folder / "wave" / "a.avi", frames=12, noise=10)
    return folder


def run(*words, code=0):
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == code, done.output
    return done.stdout


def extract(bundle, videos, store, *words, **options):
    return run("extract", "--bundle", bundle, "--videos", videos, "--store", store, "--threads", 1, *words, **options)


def test_extraction_prints_where_each_network_ran(toy_bundle, videos, tmp_path):
    out = extract(toy_bundle, videos, tmp_path / "s.sqlite")
    assert "vision, text, cnn, keyframes ran on ONNX Runtime CPU, fp32" in out
    output = json.loads(extract(toy_bundle, videos, tmp_path / "t.sqlite", "--json").splitlines()[-1])
    assert output["precision"] == "fp32"
    assert set(output["backends"]) == {"keyframes", "vision", "text", "cnn"}
    assert output["backends"]["vision"]["where"] == "ONNX Runtime CPU"
    assert {row["code"] for row in output["backends"]["vision"]["refused"]} >= {"NOT_ASKED"}
    again = json.loads(extract(toy_bundle, videos, tmp_path / "t.sqlite", "--json").splitlines()[-1])
    assert (again["extracted"], again["backends"]) == (0, {})


def test_a_fallback_from_a_named_backend_is_explained(toy_bundle, videos, tmp_path, no_gpu):
    out = extract(toy_bundle, videos, tmp_path / "s.sqlite", "--backend", "onnxruntime-cuda")
    assert "ran on ONNX Runtime CPU" in out
    assert "vision, text, cnn, keyframes not on ONNX Runtime CUDA\n    NO_DRIVER_OR_GPU" in out
    assert "NOT_ASKED" not in out
    assert "fix: install the NVIDIA driver" in out or "fix: nvidia-smi" in out


def test_a_required_backend_makes_the_fallback_an_error(toy_bundle, videos, tmp_path, no_gpu):
    words = ("--backend", "tensorrt", "--require-backend", "--json")
    out = extract(toy_bundle, videos, tmp_path / "s.sqlite", *words, code=78)
    error = json.loads(out.splitlines()[-1])["error"]
    assert error["code"] == "no_backend"
    assert "NO_DRIVER_OR_GPU" in error["message"]
    if find_spec("tensorrt") is None:
        assert "TRT_MISSING" in error["message"]
    assert error["fix"]


@pytest.mark.parametrize("words", [("--backend", "cuda"), ("--require-backend",), ("--precision", "int8")])
def test_unknown_backend_names_are_refused_before_any_work(toy_bundle, videos, tmp_path, words):
    extract(toy_bundle, videos, tmp_path / "s.sqlite", *words, code=2)
    assert not (tmp_path / "s.sqlite").exists()


@pytest.fixture
def no_gpu():
    from flamest.runtime.backends.machine import gather_facts
    from flamest.runtime.backends.opening import machine_facts

    machine_facts.cache_clear()  # asked while other tests had stand-in packages about
    if gather_facts().gpu is not None:
        pytest.skip("this machine has a GPU")


def test_doctor_shows_every_backend_with_a_fix(toy_bundle, no_gpu):
    out = run("doctor", "--bundle", toy_bundle)
    for words in (
        "NVIDIA GPU: none",
        "TensorRT, an engine of the bundle",
        "ONNX Runtime CUDA",
        "OpenVINO CPU",
        "optional: ",
    ):
        assert words in out
    assert "fix: " not in out
    assert "keyframes, vision, text, cnn would run on ONNX Runtime CPU" in out.splitlines()[0]
    assert "the same at every silo of a run" in out
    assert "ok  ONNX Runtime CPU" in out
    output = json.loads(run("doctor", "--json").splitlines()[-1])
    (candidates,) = output["ladder"].values()
    assert [row["rung"] for row in candidates] == [
        "plan",
        "rebuild",
        "onnxruntime-cuda",
        "openvino",
        "onnxruntime",
    ]
    assert candidates[0]["code"] == "NO_DRIVER_OR_GPU"
    assert candidates[-1] == {"rung": "onnxruntime", "backend": "onnxruntime", "ok": True}
    assert output["ok"] is True


SETTINGS = """
state = "state"
store = "features.sqlite"
[coordinator]
address = "a:1"
ca = "ca.pem"
certificate = "silo.pem"
key = "silo.key"
[work]
"""


def test_the_settings_accept_the_same_backend_names(tmp_path):
    path = tmp_path / "agent.toml"
    path.write_text(SETTINGS + 'backend = "openvino,text=onnxruntime"\nprecision = "bf16"\nrequire_backend = true\n')
    backend_options = load_agent_settings(path).work.backend_options
    assert backend_options == parse_backend_options(["openvino", "text=onnxruntime"], require=True, precision="bf16")
    path.write_text(SETTINGS + 'backend = "gpu"\n')
    with pytest.raises(SettingsError, match="no such backend, expected one of auto, tensorrt"):
        load_agent_settings(path)


def test_the_settings_bound_the_time_for_a_clip(tmp_path):
    path = tmp_path / "agent.toml"
    path.write_text(SETTINGS)
    assert load_agent_settings(path).work.clip_timeout == DecodeLimits().timeout_s == 120.0
    path.write_text(SETTINGS + "clip_timeout = 600\n")
    assert load_agent_settings(path).work.clip_timeout == 600.0
    for wrong in ("0", "nan", "inf"):
        path.write_text(SETTINGS + f"clip_timeout = {wrong}\n")
        with pytest.raises(SettingsError, match=r"work\.clip_timeout: expected 1 to 86400 seconds"):
            load_agent_settings(path)


def test_the_daemon_learns_where_its_worker_ran(toy_bundle, videos, tmp_path):
    request = ExtractRequest(toy_bundle, shutil.copytree(videos, tmp_path / "v"), tmp_path / "s.sqlite", threads=1)
    extracted = extract_new(request)
    assert extracted.figures["extracted"] == 1
    status = AgentStatus(backends=extracted.backends)
    assert status.graphs_by_place() == {"ONNX Runtime CPU": ["vision", "text", "cnn", "keyframes"]}
    assert extract_new(request).backends == {}
