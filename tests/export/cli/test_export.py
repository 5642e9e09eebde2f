"""The command line: refusals, output, and the packages that each command loads."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from flamest.export.cli.main import app
from typer.testing import CliRunner


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def said(result):
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no backend given"),
        (("--backend", "onnx"), "no folder given"),
        (("--backend", "caffe", "--out", "b"), "no such backend, expected onnx or tensorrt"),
        (("--backend", "onnx", "--opt-level", "5", "--tf32", "--out", "b"), "--opt-level, --tf32: only with"),
        (
            ("--backend", "tensorrt", "--no-plans", "--blip", "nothing-here", "--out", "b"),
            "nothing-here: no such file or folder",
        ),
        (("--backend", "onnx", "--no-plans", "--out", "b"), "--plans/--no-plans: only with --backend tensorrt"),
        (("--backend", "tensorrt", "--no-plans", "--tf32", "--out", "b"), "--tf32: only with --backend tensorrt that"),
        (("--backend", "tensorrt", "--hardware-compat", "all", "--out", "b"), "expected one of none, ampere+, same-cc"),
        (("--backend", "onnx", "--precision", "fp8", "--out", "b"), "no such precision, expected one of fp32, fp16"),
        (("--backend", "onnx", "--precision", "clip=int8", "--out", "b"), "no such graph, expected one of vision"),
        (("--backend", "onnx", "--cross-attention", "both", "--out", "b"), "expected one of bidirectional"),
        (("--backend", "onnx", "--blip", "nothing-here", "--out", "b"), "--blip nothing-here: no such file or folder"),
        (("--backend", "onnx", "--extractor", "blip+clip", "--out", "b"), "no such extractor, expected one of blip,"),
        (("--backend", "onnx", "--weights", "random:huge", "--out", "b"), "expected published, miniworld, random:full"),
        (("--backend", "onnx", "--extractor", "i3d", "--blip", "x", "--out", "b"), "extractor i3d has no such network"),
        (("--backend", "onnx", "--captions", "c.json", "--out", "b"), "extractor blip+slow retrieves no captions"),
        (("--backend", "onnx", "--captioned-frames", "9", "--out", "b"), "expected one of 1 to 8"),
        (
            ("--backend", "onnx", "--extractor", "slow", "--captioned-frames", "2", "--out", "b"),
            "extractor slow captions no frames",
        ),
        (
            ("--backend", "onnx", "--extractor", "blip-text", "--cross-attention", "causal-last", "--out", "b"),
            "extractor blip-text encodes no caption with its frame",
        ),
    ],
)
def test_an_export_that_cannot_work_is_a_usage_error_with_fix(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    result = run(*words, "--json")
    error = said(result)["error"]
    assert result.exit_code == said(result)["exit_code"] == 2
    assert message in error["message"]
    assert error["code"] == "usage"
    assert "flamest-export" in error["fix"] or "expected one of" in error["message"]
    assert list(tmp_path.iterdir()) == []


def test_inspect_describes_a_bundle(tiny_bundle):
    found = said(run("inspect", tiny_bundle, "--json"))
    assert found["width"] == 2816
    assert found["sources"]["blip"]["parameters"] == 58_656_188
    assert set(found["graphs"]) == {"vision", "text", "cnn", "keyframes"}
    shown = run("inspect", tiny_bundle).stdout
    assert found["fingerprint"] in shown
    assert "768 + 2048 = 2816 dimensions per clip" in shown
    assert "58,656,188 parameters as the paper counts, 35,213,756 stored" in shown


def test_inspect_loads_no_runtime(tiny_bundle):
    code = (
        "import sys\nfrom flamest.export.cli.main import app\n"
        "try:\n    app(['inspect', sys.argv[1]])\nexcept SystemExit as ended:\n    assert not ended.code\n"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tiny_bundle)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_inspect_of_something_else_ends_in_65(tmp_path):
    result = run("inspect", tmp_path, "--json")
    assert result.exit_code == 65
    assert "is not a bundle" in said(result)["error"]["message"]


def test_doctor_lists_what_can_be_built_with_fixes(monkeypatch):
    from flamest.export import doctor

    monkeypatch.setattr(doctor, "EXPORT_MODULES", ("msgspec", "flamest_is_missing_this"))
    found = said(run("doctor", "--json"))
    assert found["can_build"] == {"onnx": False, "tensorrt": False}
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["msgspec"]["ok"]
    assert not checks["flamest_is_missing_this"]["ok"]
    assert "ModuleNotFoundError" in checks["flamest_is_missing_this"]["found"]
    assert all(check["ok"] != bool(check["fix"]) for check in found["checks"])
    shown = run("doctor").stdout
    assert "fix: pip install 'flamest[export]'" in shown
    for words in ("TensorRT, an engine of the bundle", "ONNX Runtime CUDA", "OpenVINO CPU", "ok  ONNX Runtime CPU"):
        assert words in shown
    (candidates,) = found["ladder"].values()
    assert [row["backend"] for row in candidates][-3:] == ["onnxruntime-cuda", "openvino", "onnxruntime"]
    assert all(row["ok"] or (row["code"] and row["evidence"] and row["fix"]) for row in candidates)


def test_doctor_finds_this_machine_able():
    found = said(run("doctor", "--json"))
    assert found["can_build"]["onnx"] is True


@pytest.mark.parametrize(("cosine", "missed"), [(0.99875, True), (0.9995, False)])
def test_int8_below_its_aim_says_that_it_was_not_reached(cosine, missed):
    from flamest.export.cli.output import int8_line
    from flamest.runtime.bundle.graph_records import Int8Arithmetic

    line = int8_line(Int8Arithmetic((), 1.0, 0.9, 1000, cosine, 10))
    assert ("the aim of 0.999 was not reached" in line) is missed
