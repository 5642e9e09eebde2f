"""gpu-check: its refusals without a GPU, and the report of a machine with one."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path

import pytest
from flamest.base.errors import SettingsError
from flamest.export.bench import gpu_check, gpu_step
from flamest.export.bench.gpu_check import (
    GpuCheckRequest,
    check_gpu,
    compare_with_fp32,
    make_report,
    run_steps,
    write_report,
)
from flamest.export.bench.gpu_step import Step, last_json, run_step
from flamest.export.cli.main import app
from flamest.runtime.backends.machine import Gpu, MachineFacts
from typer.testing import CliRunner

H100 = MachineFacts(gpu=Gpu("NVIDIA H100 80GB HBM3", "9.0", 81_559), driver="580.95.05", cuda="13.0")
READY = dataclasses.replace(
    H100, versions={"tensorrt": "10.13.0", "cuda-bindings": "13.0.0"}, tensorrt_builds=True, ort_has_cuda=True
)


def fake_runner(fails=(), outputs=None):
    ran = []

    def run(name, words):
        ran.append(name)
        code = 1 if name in fails else 0
        return Step(name, tuple(words), code, 1.0, (outputs or {}).get(name, {}), "it broke" if code else "")

    return run, ran


def report_of(request, run):
    return make_report(request, H100, run_steps(request, run), measured="2026-11-25")


def vectors(*cnn):
    return [{"caption": "a", "token_ids": [1], "vlm": [], "cnn": list(cnn)}]


def test_without_a_gpu_it_ends_at_once_and_writes_nothing(tmp_path):
    facts = MachineFacts(driver_problem="libcuda.so.1: cannot open shared object file")
    with pytest.raises(SettingsError, match=r"NO_DRIVER_OR_GPU: .*there is none here: libcuda\.so\.1") as caught:
        check_gpu(GpuCheckRequest(tmp_path / "results"), print, facts=facts)
    assert caught.value.exit_code == 78
    assert "make gpu-check" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_the_command_without_a_gpu_is_an_error_for_machines_too(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "gather_facts", lambda: MachineFacts(driver_problem="no driver"))
    result = CliRunner().invoke(app, ["gpu-check", "--results", str(tmp_path), "--json"])
    assert result.exit_code == 78
    assert json.loads(result.stdout.splitlines()[-1])["error"]["code"] == "NO_DRIVER_OR_GPU"


def test_every_precision_is_built_checked_verified_and_measured(tmp_path):
    run, ran = fake_runner()
    steps = run_steps(GpuCheckRequest(tmp_path), run)
    per_bundle = ["build", "engines", "inspect", "check", "verify", "bench"]
    assert ran == ["doctor", *(f"{precision}: {what}" for precision in ("fp32", "fp16") for what in per_bundle)]
    build = next(step for step in steps if step.name == "fp16: build")
    assert " ".join(build.command).startswith("--backend tensorrt --no-plans --weights random:full")
    bench = next(step for step in steps if step.name == "fp16: bench")
    assert [word for word in bench.command if word in ("tensorrt", "onnxruntime", "onnxruntime-cuda")] == [
        "onnxruntime", "tensorrt", "onnxruntime-cuda",
    ]  # fmt: skip


def test_a_bundle_that_failed_is_skipped_and_the_next_is_measured(tmp_path):
    run, ran = fake_runner(fails={"fp32: build"})
    report = report_of(GpuCheckRequest(tmp_path), run)
    assert [name for name in ran if name.startswith("fp32")] == ["fp32: build"]
    assert "fp16: bench" in ran
    assert (report["ok"], report["failed"]) == (False, ["fp32: build"])
    assert next(step for step in report["steps"] if step["name"] == "fp32: build")["problem"] == "it broke"


def test_without_engines_the_other_backends_are_measured(tmp_path):
    run, ran = fake_runner(fails={"fp32: engines"})
    report = report_of(GpuCheckRequest(tmp_path), run)
    assert "fp32: bench" in ran
    assert (report["ok"], report["failed"]) == (False, ["fp32: engines"])


def test_a_refused_backend_makes_the_report_not_ok(tmp_path):
    outputs = {
        "fp32: bench": {"backends": {}, "refused": {"tensorrt": {"code": "PLAN_REJECTED", "message": "", "fix": ""}}}
    }
    run, _ = fake_runner(outputs=outputs)
    report = report_of(GpuCheckRequest(tmp_path), run)
    assert (report["ok"], report["refused"]) == (False, ["fp32: bench: tensorrt: PLAN_REJECTED"])


def test_the_report_names_gpu_driver_and_versions_but_no_host(tmp_path):
    import platform

    run, _ = fake_runner()
    report = report_of(GpuCheckRequest(tmp_path), run)
    path = write_report(tmp_path / "results", report)
    assert path.name == f"gpu-check-nvidia-h100-80gb-hbm3-{report['measured']}.json"
    read = json.loads(path.read_text())
    assert read["ok"]
    machine = read["machine"]
    assert (machine["gpu"]["compute_capability"], machine["driver"], machine["cuda"]) == ("9.0", "580.95.05", "13.0")
    assert {"processor", "cores", "python", "versions"} <= machine.keys()
    assert len(platform.node()) < 3 or platform.node() not in path.read_text()
    assert str(tmp_path) not in path.read_text()


def test_a_failed_step_is_kept_without_paths_of_this_machine(tmp_path):
    lines = []
    good = run_step("list", ("inspect", "nothing"), tmp_path, lines.append)
    assert good.exit_code == 65
    assert good.output["error"]["code"] == "bad_data"
    assert "is not a bundle" in good.problem
    assert str(tmp_path) not in good.problem
    assert lines[0] == "list: flamest-export inspect nothing"


def test_output_that_is_no_json_is_no_answer():
    assert last_json("") == last_json("words") == last_json("[1]") == {}
    assert last_json('progress\n{"a": 1}\n') == {"a": 1}


def test_missing_packages_end_it_before_any_export(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "run_step", lambda *_: pytest.fail("a step ran"))
    with pytest.raises(SettingsError, match=r"^TRT_MISSING: .*; ORT_NO_CUDA: ") as caught:
        check_gpu(GpuCheckRequest(tmp_path / "results"), print, facts=H100)
    assert caught.value.exit_code == 78
    assert "pip install 'flamest[tensorrt]'" in caught.value.fix
    assert "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'flamest[agent-gpu]'" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("lacks", "code"),
    [
        ({"versions": {"tensorrt": "10.13.0"}}, "CUDA_BINDINGS"),
        ({"ort_has_cuda": False}, "ORT_NO_CUDA"),
        ({"tensorrt_builds": False}, "TRT_NO_BUILDER"),
    ],
)
def test_each_missing_package_has_its_code(lacks, code):
    with pytest.raises(SettingsError) as caught:
        gpu_check.require_packages(dataclasses.replace(READY, **lacks))
    assert caught.value.code == code
    gpu_check.require_packages(READY)


def test_make_gpu_check_has_an_environment_of_its_own():
    makefile = (Path(gpu_check.__file__).parents[2] / "Makefile").read_text()
    assert re.search(r"^gpu-check: gpu-setup ", makefile, re.MULTILINE)
    recipe = makefile.partition("\n$(GPU_STAMP): ")[2].partition("\n\n")[0]
    assert "$(GPU_VENV)/bin/pip install" in recipe
    assert "[dev-gpu]" in recipe
    assert "$(VENV)" not in recipe


def test_seeded_slow_stays_fp32_in_a_lower_precision_unless_it_was_named(tmp_path):
    run, _ = fake_runner()
    request = GpuCheckRequest(tmp_path, precisions=("fp32", "fp16", "cnn=fp16"))
    builds = [" ".join(step.command) for step in run_steps(request, run) if step.name.endswith("build")]
    assert "--precision fp32 --out" in builds[0]
    assert "--precision fp16 --precision cnn=fp32 --out" in builds[1]
    assert "--precision cnn=fp16 --out" in builds[2]


@pytest.mark.parametrize(
    ("step", "backend", "why", "ok"),
    [
        ("fp16", "onnxruntime", "PRECISION: ONNX Runtime's CPU provider cannot load bf16 graphs", True),
        ("fp32", "onnxruntime", "PRECISION: ONNX Runtime's CPU provider cannot load bf16 graphs", False),
        ("fp16", "tensorrt", "PRECISION: the graph is bf16", False),
        ("fp16", "onnxruntime", "BACKEND_FAILED: it broke", False),
    ],
)
def test_only_the_reference_may_refuse_bf16(tmp_path, step, backend, why, ok):
    message = f"graph 'vision' does not run on {backend}, which is required:\n  ONNX Runtime CPU: {why}"
    run, _ = fake_runner(outputs={f"{step}: bench": {"refused": {backend: {"code": "no_backend", "message": message}}}})
    report = report_of(GpuCheckRequest(tmp_path), run)
    assert report["ok"] is ok
    assert report["refused_as_expected" if ok else "refused"] == [f"{step}: bench: {backend}: no_backend"]


def test_every_backend_and_precision_is_compared_with_cuda_in_fp32(tmp_path):
    outputs = {
        "fp32: bench": {
            "backends": {
                "onnxruntime": {"vectors": vectors(1.0, 0.0)},
                "onnxruntime-cuda": {"vectors": vectors(1.0, 0.0)},
            }
        },
        "fp16: bench": {"backends": {"tensorrt": {"precision": "fp16", "vectors": vectors(0.6, 0.8)}}},
    }
    run, _ = fake_runner(outputs=outputs)
    report = report_of(GpuCheckRequest(tmp_path), run)
    compared = report["beside_fp32_cuda"]
    assert compared.keys() == {"fp32: onnxruntime", "fp16: tensorrt"}
    assert compared["fp32: onnxruntime"]["min_cosine"]["cnn"] == pytest.approx(1.0)
    assert compared["fp16: tensorrt"] == {"captions_equal": 1, "captions": 1, "min_cosine": {"cnn": pytest.approx(0.6)}}
    assert '"vectors"' not in json.dumps(report)
    assert '"precision": "fp16"' in json.dumps(report)


def test_without_cuda_in_fp32_nothing_is_compared():
    bench = Step("fp16: bench", (), 0, 1.0, {"backends": {"tensorrt": {"vectors": vectors(1.0)}}})
    assert compare_with_fp32([bench]) == {}


def test_the_report_is_written_after_every_step(tmp_path, monkeypatch):
    def step(name, words, scratch, say):
        if name == "fp32: engines":
            raise KeyboardInterrupt
        return Step(name, tuple(words), 0, 1.0, {})

    monkeypatch.setattr(gpu_check, "run_step", step)
    with pytest.raises(KeyboardInterrupt):
        check_gpu(GpuCheckRequest(tmp_path), print, facts=READY)
    (path,) = tmp_path.iterdir()
    report = json.loads(path.read_text())
    assert [done["name"] for done in report["steps"]] == ["doctor", "fp32: build"]
    assert (report["finished"], report["ok"]) == (False, False)


def test_a_step_that_hangs_is_killed_with_its_children(tmp_path, monkeypatch):
    # The grandchild holds the pipes: unless it ends too, reading them never ends.
    script = tmp_path / "hang"
    script.write_text("#!/bin/sh\nsleep 60 &\nwait\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    step = run_step("engines", ("engines", "bundle"), tmp_path, lambda text: None, limit_s=0.2)
    assert step.exit_code == -9
    assert step.seconds < 30
    assert step.problem == "ended by gpu-check: not done within 0.2 s"
    assert gpu_step.STEP_S >= 600


def test_a_failed_step_ends_the_command_in_65_with_a_report(tmp_path, monkeypatch):
    failing, _ = fake_runner(fails={"fp32: engines"})
    monkeypatch.setattr(gpu_check, "gather_facts", lambda: READY)
    monkeypatch.setattr(gpu_check, "run_step", lambda name, words, scratch, say: failing(name, words))
    result = CliRunner().invoke(app, ["gpu-check", "--results", str(tmp_path), "--json"])
    assert result.exit_code == 65
    error = json.loads(result.stdout.splitlines()[-1])["error"]
    assert error["code"] == "gpu_check_failed"
    (path,) = tmp_path.iterdir()
    assert str(path) in error["message"]
    assert "fp32: engines" in error["message"]
    assert json.loads(path.read_text())["finished"]


def test_the_command_ends_in_0_when_all_steps_succeed(tmp_path, monkeypatch):
    good, _ = fake_runner()
    monkeypatch.setattr(gpu_check, "gather_facts", lambda: READY)
    monkeypatch.setattr(gpu_check, "run_step", lambda name, words, scratch, say: good(name, words))
    result = CliRunner().invoke(app, ["gpu-check", "--results", str(tmp_path), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout.splitlines()[-1])["ok"]
