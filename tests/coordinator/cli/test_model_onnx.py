"""``flamest-coordinator model --format onnx``, as typed."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import onnx
import pytest
from flamest.agent.training.trainer import HeadTrainer, log_softmax
from flamest.coordinator.cli import main
from flamest.fedproto.model_file import read_model
from typer.testing import CliRunner


def typed(*words) -> tuple[int, dict]:
    result = CliRunner().invoke(main.app, [*map(str, words), "--json"])
    return result.exit_code, json.loads(result.stdout.splitlines()[-1])


@pytest.fixture
def started(make_federation):
    """A federation whose first model has been made, its server stopped."""
    federation = make_federation("a", rounds=2)
    federation.start()
    federation.stop()
    return federation


def test_model_writes_both_graphs_and_lists_them(started, tmp_path):
    import onnxruntime

    place = ["model", "--config", started.config, "--round", 0, "--out"]
    assert typed(*place, tmp_path / "m.safetensors")[1]["format"] == "safetensors"
    model = read_model(tmp_path / "m.safetensors")
    widths = (2, model.head.inputs - 2)
    options = ["--format", "onnx", "--parts", f"{widths[0]},{widths[1]}"]
    code, taken = typed(*place, tmp_path / "m.onnx", *options)
    assert (code, taken["format"], taken["model"]) == (0, "onnx", str(tmp_path / "m.onnx"))
    assert [(row["file"], row["graph"]) for row in taken["files"]] == [
        (str(tmp_path / "m.onnx"), "head"),
        (str(tmp_path / "m.fused.onnx"), "fused"),
    ]
    assert taken["files"][1]["inputs"] == {"vlm": widths[0], "cnn": widths[1]}
    x = np.random.default_rng(0).standard_normal((3, model.head.inputs)).astype(np.float32)
    expected = np.exp(log_softmax(HeadTrainer(model.head, threads=1).logits(model.params, x)))
    for name, feeds in (("m.onnx", {"x": x}), ("m.fused.onnx", {"vlm": x[:, :2], "cnn": x[:, 2:]})):
        found = onnxruntime.InferenceSession(tmp_path / name).run(["probabilities"], feeds)[0]
        assert np.abs(found - expected).max() <= 1e-6
        held = {entry.key: json.loads(entry.value) for entry in onnx.load(tmp_path / name).metadata_props}
        assert held["flamest.labels"] == list(model.labels)
        assert (held["flamest.run"], held["flamest.round"]) == (model.run, model.round)
        assert held["flamest.fingerprint"] == model.fingerprint
    first = (tmp_path / "m.fused.onnx").read_bytes()
    shown = CliRunner().invoke(main.app, [*map(str, (*place, tmp_path / "m.onnx")), *options]).output
    assert f"m.fused.onnx: vlm float32[batch, 2], cnn float32[batch, {widths[1]}] -> logits, probabilities" in shown
    assert (tmp_path / "m.fused.onnx").read_bytes() == first, "the same model gives the same bytes"


def test_without_known_parts_only_the_head_is_written(started, tmp_path):
    place = ["model", "--config", started.config, "--round", 0, "--out", tmp_path / "m.onnx", "--format", "onnx"]
    (tmp_path / "m.fused.onnx").write_text("another's")
    assert [row["graph"] for row in typed(*place)[1]["files"]] == ["head"]
    shown = CliRunner().invoke(main.app, list(map(str, place))).output
    assert "no fused graph: the embedding is one part, or the widths of its parts are unknown" in shown
    assert "m.fused.onnx is there from an earlier time and was left as it is" in shown
    assert (tmp_path / "m.fused.onnx").read_text() == "another's"


@pytest.mark.parametrize(
    ("words", "exit_code", "code"),
    [
        (["--out", "m.safetensors", "--format", "onnx"], 2, "usage"),
        (["--out", "m.onnx", "--parts", "2,3"], 2, "usage"),
        (["--out", "m.onnx", "--format", "onnx", "--parts", "2,x"], 2, "usage"),
        (["--out", "m.onnx", "--format", "onnx", "--parts", "1,1"], 65, "bad_parts"),
        (["--out", "m.onnx", "--format", "tflite"], 2, "usage"),
        (["--out", "no/folder/m.onnx", "--format", "onnx"], 74, "storage"),
    ],
)
def test_a_wrong_request_leaves_no_file(started, tmp_path, monkeypatch, words, exit_code, code):
    monkeypatch.chdir(tmp_path)
    found, answer = typed("model", "--config", started.config, "--round", 0, *words)
    assert (found, answer["error"]["code"]) == (exit_code, code)
    assert answer["error"]["fix"]
    assert not list(tmp_path.rglob("m.*"))


def test_without_onnx_the_coordinators_extra_is_named(started, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "onnx" else find(name, *rest))
    place = ["model", "--config", started.config, "--round", 0, "--out"]
    code, answer = typed(*place, tmp_path / "m.onnx", "--format", "onnx")
    assert (code, answer["error"]["fix"]) == (78, "pip install 'flamest[coordinator,onnx]'")
    assert typed(*place, tmp_path / "m.safetensors")[0] == 0, "safetensors need no further package"
