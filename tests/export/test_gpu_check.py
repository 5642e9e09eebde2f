"""gpu-check: what it does without a GPU, and the report that a machine with one would send back."""

from __future__ import annotations

import json

import pytest
from flamest.base.errors import SettingsError
from flamest.export.cli import app
from flamest.export.gpu_check import (
    GpuCheckRequest,
    Step,
    _last_json,
    _run,
    check_gpu,
    make_report,
    run_steps,
    write_report,
)
from flamest.runtime.backends.facts import Gpu, MachineFacts
from typer.testing import CliRunner

H100 = MachineFacts(gpu=Gpu("NVIDIA H100 80GB HBM3", "9.0", 81_559), driver="580.95.05", cuda="13.0")


def fake_runner(fails=(), said=None):
    ran = []

    def run(name, words):
        ran.append(name)
        code = 1 if name in fails else 0
        return Step(name, tuple(words), code, 1.0, (said or {}).get(name, {}), "it broke" if code else "")

    return run, ran


def test_without_a_gpu_it_ends_at_once_with_what_to_do_and_writes_nothing(tmp_path):
    facts = MachineFacts(driver_problem="libcuda.so.1: cannot open shared object file")
    with pytest.raises(SettingsError, match=r"NO_DRIVER_OR_GPU: .*there is none here: libcuda\.so\.1") as caught:
        check_gpu(GpuCheckRequest(tmp_path / "results"), print, facts=facts)
    assert caught.value.exit_code == 78
    assert "make gpu-check" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_the_command_without_a_gpu_is_an_error_for_machines_too(tmp_path, monkeypatch):
    from flamest.export import gpu_check

    monkeypatch.setattr(gpu_check, "gather_facts", lambda: MachineFacts(driver_problem="no driver"))
    result = CliRunner().invoke(app, ["gpu-check", "--results", str(tmp_path), "--json"])
    assert result.exit_code == 78
    assert json.loads(result.stdout.splitlines()[-1])["error"]["code"] == "NO_DRIVER_OR_GPU"


def test_every_precision_is_built_checked_verified_and_measured(tmp_path):
    run, ran = fake_runner()
    steps = run_steps(GpuCheckRequest(tmp_path), run)
    per_bundle = ["build", "plans", "inspect", "check", "verify", "bench"]
    assert ran == ["doctor", *(f"{precision}: {what}" for precision in ("fp32", "fp16") for what in per_bundle)]
    build = next(step for step in steps if step.name == "fp16: build")
    assert " ".join(build.command).startswith("--backend tensorrt --no-plans --weights random:full")
    bench = next(step for step in steps if step.name == "fp16: bench")
    assert [word for word in bench.command if word in ("tensorrt", "onnxruntime", "onnxruntime-cuda")] == [
        "onnxruntime", "tensorrt", "onnxruntime-cuda",
    ]  # fmt: skip


def test_a_bundle_that_was_not_built_is_not_measured_and_the_next_one_still_is(tmp_path):
    run, ran = fake_runner(fails={"fp32: build"})
    report = make_report(GpuCheckRequest(tmp_path), H100, run_steps(GpuCheckRequest(tmp_path), run))
    assert [name for name in ran if name.startswith("fp32")] == ["fp32: build"]
    assert "fp16: bench" in ran
    assert (report["ok"], report["failed"]) == (False, ["fp32: build"])
    assert next(step for step in report["steps"] if step["name"] == "fp32: build")["problem"] == "it broke"


def test_where_plans_cannot_be_built_the_other_backends_are_measured_all_the_same(tmp_path):
    run, ran = fake_runner(fails={"fp32: plans"})
    report = make_report(GpuCheckRequest(tmp_path), H100, run_steps(GpuCheckRequest(tmp_path), run))
    assert "fp32: bench" in ran
    assert (report["ok"], report["failed"]) == (False, ["fp32: plans"])


def test_a_backend_that_was_refused_is_not_a_report_that_all_is_well(tmp_path):
    said = {
        "fp32: bench": {"backends": {}, "refused": {"tensorrt": {"code": "PLAN_REJECTED", "message": "", "fix": ""}}}
    }
    run, _ = fake_runner(said=said)
    report = make_report(GpuCheckRequest(tmp_path), H100, run_steps(GpuCheckRequest(tmp_path), run))
    assert (report["ok"], report["refused"]) == (False, ["fp32: bench: tensorrt: PLAN_REJECTED"])


def test_the_report_is_one_file_with_gpu_driver_versions_and_no_host_name(tmp_path):
    import platform

    run, _ = fake_runner()
    report = make_report(GpuCheckRequest(tmp_path), H100, run_steps(GpuCheckRequest(tmp_path), run))
    path = write_report(tmp_path / "results", report)
    assert path.name == f"gpu-check-nvidia-h100-80gb-hbm3-{report['measured']}.json"
    read = json.loads(path.read_text())
    assert read["ok"]
    machine = read["machine"]
    assert (machine["gpu"]["compute_capability"], machine["driver"], machine["cuda"]) == ("9.0", "580.95.05", "13.0")
    assert {"processor", "cores", "python", "versions"} <= machine.keys()
    assert len(platform.node()) < 3 or platform.node() not in path.read_text()
    assert str(tmp_path) not in path.read_text()


def test_a_step_is_the_command_itself_and_its_failure_is_kept_without_paths_of_this_machine(tmp_path):
    told = []
    good = _run("list", ("inspect", "nothing"), tmp_path, told.append)
    assert good.exit_code == 65
    assert good.said["error"]["code"] == "bad_data"
    assert "is not a bundle" in good.problem
    assert str(tmp_path) not in good.problem
    assert told[0] == "list: flamest-export inspect nothing"


def test_what_is_no_json_is_no_answer():
    assert _last_json("") == _last_json("words") == _last_json("[1]") == {}
    assert _last_json('progress\n{"a": 1}\n') == {"a": 1}
