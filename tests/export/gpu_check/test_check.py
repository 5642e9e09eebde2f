"""gpu-check: its refusals without a GPU, its steps, and the report of a machine with one."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from flamest.base.errors import SettingsError, UsageError
from flamest.export.cli.main import app
from flamest.export.gpu_check import check, engine_facts, probes
from flamest.export.gpu_check.check import STAND_IN, KeptSteps, check_gpu, require_packages, run_steps
from flamest.export.gpu_check.engine_facts import TrialSizes
from flamest.export.gpu_check.plan import BATCHES, DRY_BATCH, PRECISIONS, GpuCheckRequest, plan_steps
from flamest.export.gpu_check.report import compare_with_fp32, make_report, write_report
from flamest.export.gpu_check.step import PROBE, Step, StepPlan, last_json, run_step
from flamest.runtime.backends.machine import Gpu, MachineFacts
from typer.testing import CliRunner

H100 = MachineFacts(gpu=Gpu("NVIDIA H100 80GB HBM3", "9.0", 81_559), driver="580.95.05", cuda="13.0")
READY = dataclasses.replace(
    H100, versions={"tensorrt": "10.13.0", "cuda-bindings": "13.0.0"}, tensorrt_builds=True, ort_has_cuda=True
)


def fake_run(request, fails=(), outputs=None):
    """The steps of a request with outputs that are given; the steps, and the names of those that ran."""
    steps: list[Step] = []
    ran: list[str] = []

    def run(plan):
        ran.append(plan.name)
        code = 1 if plan.name in fails else 0
        step = Step(plan.name, plan.typed, code, 1.0, (outputs or {}).get(plan.name, {}), "it broke" if code else "")
        steps.append(step)
        return step

    run_steps(plan_steps(request), run, steps, lambda text: None)
    return steps, ran


def report_of(request, fails=(), outputs=None):
    return make_report(request, H100, fake_run(request, fails, outputs)[0], measured="2026-11-25")


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
    monkeypatch.setattr(check, "gather_facts", lambda: MachineFacts(driver_problem="no driver"))
    result = CliRunner().invoke(app, ["gpu-check", "--results", str(tmp_path), "--json"])
    assert result.exit_code == 78
    assert json.loads(result.stdout.splitlines()[-1])["error"]["code"] == "NO_DRIVER_OR_GPU"


def test_every_precision_is_built_checked_verified_and_measured(tmp_path):
    request = GpuCheckRequest(tmp_path)
    steps, ran = fake_run(request)
    for precision in ("default", *PRECISIONS, "miniworld"):
        for what in ("build", "engines", "inspect", "check", "verify", "bench"):
            assert f"{precision}: {what}" in ran
    typed = {step.name: step.command for step in steps}
    assert typed["fp16: build"].startswith("flamest-export --backend tensorrt --no-plans --weights random:full")
    assert "--backend onnxruntime --backend tensorrt --backend onnxruntime-cuda" in typed["fp16: bench"]


def test_speed_is_measured_at_every_batch_against_pytorch(tmp_path):
    steps, _ = fake_run(GpuCheckRequest(tmp_path))
    typed = {step.name: step.command for step in steps}
    batches = " ".join(f"--batch {batch}" for batch in BATCHES)
    for name in ("sweep: tensorrt", "sweep: onnxruntime-cuda", "prepared: tensorrt", "prepared: onnxruntime-cuda"):
        assert "bundle-default" in typed[name]
        assert typed[name].endswith(batches)
    assert typed["torch"].endswith(batches)
    assert typed["torch"].startswith(f"python -m {PROBE} torch")


def test_a_bundle_that_failed_is_skipped_and_the_next_is_measured(tmp_path):
    report = report_of(GpuCheckRequest(tmp_path), fails={"fp32: build"})
    steps = {step["name"]: step for step in report["steps"]}
    assert steps["fp32: bench"]["exit_code"] is None
    assert steps["fp32: bench"]["problem"] == "not run, because 'fp32: build' did not succeed"
    assert steps["fp16: bench"]["exit_code"] == 0
    assert (report["ok"], report["failed"]) == (False, ["fp32: build"])
    assert steps["fp32: build"]["problem"] == "it broke"


def test_without_engines_the_other_backends_are_measured(tmp_path):
    request = GpuCheckRequest(tmp_path)
    _, ran = fake_run(request, fails={"default: engines"})
    assert "default: bench" in ran
    assert "prepared: onnxruntime-cuda" in ran
    assert "prepared: tensorrt" not in ran
    assert report_of(request, fails={"default: engines"})["failed"] == ["default: engines"]


def test_a_refused_backend_makes_the_report_not_ok(tmp_path):
    outputs = {
        "fp32: bench": {"backends": {}, "refused": {"tensorrt": {"code": "PLAN_REJECTED", "message": "", "fix": ""}}}
    }
    report = report_of(GpuCheckRequest(tmp_path), outputs=outputs)
    assert (report["ok"], report["refused"]) == (False, ["fp32: bench: tensorrt: PLAN_REJECTED"])


def test_the_report_names_gpu_driver_and_versions_but_no_host(tmp_path):
    import platform

    report = report_of(GpuCheckRequest(tmp_path))
    path = write_report(tmp_path / "results", report)
    assert path.name == f"gpu-check-nvidia-h100-80gb-hbm3-{report['measured']}.json"
    read = json.loads(path.read_text())
    machine = read["machine"]
    assert (machine["gpu"]["compute_capability"], machine["driver"], machine["cuda"]) == ("9.0", "580.95.05", "13.0")
    assert {"processor", "cores", "python", "versions"} <= machine.keys()
    for text in (path.read_text(), path.with_suffix(".md").read_text()):
        assert len(platform.node()) < 3 or platform.node() not in text
        assert str(tmp_path) not in text


def test_a_failed_step_is_kept_without_paths_of_this_machine(tmp_path):
    lines = []
    good = run_step(StepPlan("list", ("inspect", "nothing"), 60, 1), tmp_path, lines.append)
    assert good.exit_code == 65
    assert good.output["error"]["code"] == "bad_data"
    assert "is not a bundle" in good.problem
    assert str(tmp_path) not in good.problem
    assert lines[0] == "list: flamest-export inspect nothing"


def test_output_that_is_no_json_is_no_answer():
    assert last_json("") == last_json("words") == last_json("[1]") == {}
    assert last_json('progress\n{"a": 1}\n') == {"a": 1}


def test_missing_packages_end_it_before_any_export(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "run_step", lambda *_: pytest.fail("a step ran"))
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
        ({"tensorrt_builds": False}, "TRT_NO_BUILDER"),
    ],
)
def test_each_missing_package_has_its_code(lacks, code):
    with pytest.raises(SettingsError) as caught:
        require_packages(dataclasses.replace(READY, **lacks))
    assert caught.value.code == code
    require_packages(READY)


def test_a_missing_cuda_provider_leaves_out_its_own_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "run_step", lambda plan, scratch, say: Step(plan.name, plan.typed, 0, 1.0, {}))
    lines = []
    jetson = dataclasses.replace(READY, ort_has_cuda=False)
    path, report = check_gpu(GpuCheckRequest(tmp_path), lines.append, facts=jetson)
    commands = {step["name"]: step["command"] for step in report["steps"]}
    assert "prepared: tensorrt" in commands
    assert not any("onnxruntime-cuda" in f"{name} {typed}" for name, typed in commands.items())
    assert report["left_out"]["onnxruntime-cuda"].startswith("ORT_NO_CUDA: ")
    assert any("onnxruntime-cuda is left out: ORT_NO_CUDA" in line for line in lines)
    assert "onnxruntime-cuda is left out" in path.with_suffix(".md").read_text()
    verdicts = {row["claim"]: row["verdict"] for row in report["claims"]}
    assert verdicts["cuda_loads_bf16"] == verdicts["faster_than_onnxruntime"] == "not tested"


@pytest.mark.parametrize(("cuda", "target"), [("12.8", "make gpu-setup CUDA=12"), ("13.0", "make gpu-setup")])
def test_missing_packages_are_named_for_the_driver_of_this_machine(cuda, target):
    with pytest.raises(SettingsError) as caught:
        require_packages(dataclasses.replace(H100, cuda=cuda))
    assert caught.value.fix.endswith(f"in a checkout: {target}")


def test_make_gpu_check_has_an_environment_of_its_own():
    makefile = (Path(check.__file__).parents[2] / "Makefile").read_text()
    assert re.search(r"^gpu-check: gpu-setup ", makefile, re.MULTILINE)
    recipe = makefile.partition("\n$(GPU_STAMP): ")[2].partition("\n\n")[0]
    assert "$(GPU_VENV)/bin/pip install" in recipe
    assert "[dev-gpu" in recipe
    assert "$(VENV)" not in recipe


@pytest.mark.parametrize(
    ("words", "extra", "has_torch"), [((), "dev-gpu", True), (("CUDA=12",), "dev-gpu-cu12", False)]
)
def test_make_gpu_setup_installs_for_the_cuda_that_is_named(words, extra, has_torch):
    folder = Path(check.__file__).parents[2]
    typed = subprocess.run(
        ["make", "--dry-run", "--always-make", "gpu-setup", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert f"'.[{extra}]'" in typed
    kept = re.search(r"grep -vE '(\S+)'", typed)[1]
    pins = [line for line in (folder / "constraints.txt").read_text().splitlines() if not re.match(kept, line)]
    assert any(line.startswith("torch==") for line in pins) is has_torch
    assert any(line.startswith("numpy==") for line in pins)


def test_every_network_of_a_bundle_has_the_precision_that_is_measured(tmp_path):
    request = GpuCheckRequest(tmp_path, precisions=("bf16", "fp16", "cnn=fp16", "int8"))
    builds = {step.name: step.command for step in fake_run(request)[0] if step.name.endswith("build")}
    for precision in request.precisions:
        assert f"--weights random:full --precision {precision} --out" in builds[f"{precision}: build"]
    assert "--precision" not in builds["default: build"]


def test_the_swept_bundle_describes_its_layers_once(tmp_path):
    typed = {step.name: step.command for step in fake_run(GpuCheckRequest(tmp_path))[0]}
    assert typed["default: engines"].endswith("engines bundle-default --detailed")
    assert "profile bundle-default --backend tensorrt --detailed" in typed["profile: tensorrt"]
    assert "--detailed" not in typed["fp32: engines"]


@pytest.mark.parametrize(
    ("step", "backend", "why", "ok"),
    [
        ("fp16", "onnxruntime", "PRECISION: ONNX Runtime's CPU provider cannot load bf16 graphs", True),
        ("int8", "onnxruntime-cuda", "PRECISION: ONNX Runtime's CUDA provider has no int8 matmuls", True),
        ("fp32", "onnxruntime", "PRECISION: ONNX Runtime's CPU provider cannot load bf16 graphs", False),
        ("miniworld", "onnxruntime", "PRECISION: ONNX Runtime's CPU provider cannot load bf16 graphs", False),
        ("fp16", "tensorrt", "PRECISION: the graph is bf16", False),
        ("fp16", "onnxruntime", "BACKEND_FAILED: it broke", False),
    ],
)
def test_onnxruntime_alone_may_refuse_a_precision(tmp_path, step, backend, why, ok):
    message = f"graph 'vision' does not run on {backend}, which is required:\n  ONNX Runtime CPU: {why}"
    outputs = {f"{step}: bench": {"refused": {backend: {"code": "no_backend", "message": message}}}}
    report = report_of(GpuCheckRequest(tmp_path), outputs=outputs)
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
    report = report_of(GpuCheckRequest(tmp_path), outputs=outputs)
    compared = report["beside_fp32_cuda"]
    assert compared.keys() == {"fp32: onnxruntime", "fp16: tensorrt"}
    assert compared["fp32: onnxruntime"]["min_cosine"]["cnn"] == pytest.approx(1.0)
    assert compared["fp16: tensorrt"] == {"captions_equal": 1, "captions": 1, "min_cosine": {"cnn": pytest.approx(0.6)}}
    assert '"vectors"' not in json.dumps(report)
    assert '"precision": "fp16"' in json.dumps(report)


def test_without_cuda_in_fp32_nothing_is_compared():
    bench = Step("fp16: bench", "", 0, 1.0, {"backends": {"tensorrt": {"vectors": vectors(1.0)}}})
    assert compare_with_fp32([bench]) == {}


def test_the_report_is_written_after_every_step(tmp_path, monkeypatch):
    def step(plan, scratch, say):
        if plan.name == "default: build":
            raise KeyboardInterrupt
        return Step(plan.name, plan.typed, 0, 1.0, {})

    monkeypatch.setattr(check, "run_step", step)
    with pytest.raises(KeyboardInterrupt):
        check_gpu(GpuCheckRequest(tmp_path), print, facts=READY)
    report = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert [done["name"] for done in report["steps"]] == ["doctor", "one layer", "attention casts"]
    assert (report["finished"], report["ok"]) == (False, False)
    assert "interrupted" in next(tmp_path.glob("*.md")).read_text()


def test_a_step_that_hangs_is_killed_with_its_children(tmp_path, monkeypatch):
    # The grandchild holds the pipes: unless it ends too, reading them never ends.
    script = tmp_path / "hang"
    script.write_text("#!/bin/sh\nsleep 60 &\nwait\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    step = run_step(StepPlan("engines", ("engines", "bundle"), 0.2, 1), tmp_path, lambda text: None)
    assert step.exit_code == -9
    assert step.seconds < 30
    assert step.problem == "ended by gpu-check: not done within 0.2 s"
    assert step.late


def test_engines_that_took_too_long_are_continued_once(tmp_path, monkeypatch):
    script = tmp_path / "slow"
    script.write_text("#!/bin/sh\n[ -e ran ] && exec echo '{\"plans\": []}'\ntouch ran\nsleep 60\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    engines = next(plan for plan in plan_steps(GpuCheckRequest(tmp_path)) if plan.name == "default: engines")
    assert engines.continues
    step = run_step(dataclasses.replace(engines, limit_s=2), tmp_path, lambda text: None)
    assert (step.ok, step.output, step.late) == (True, {"plans": []}, False)
    assert step.seconds > 2


def test_every_step_has_a_time_limit_beyond_its_usual_time(tmp_path):
    for plan in plan_steps(GpuCheckRequest(tmp_path)):
        assert 3 * plan.usual_s <= plan.limit_s <= 2 * 3600


def test_a_ready_bundle_is_copied_without_its_folder_in_the_report(tmp_path):
    ready = tmp_path / "somebody" / "bundle"
    ready.mkdir(parents=True)
    plans = plan_steps(GpuCheckRequest(tmp_path, precisions=("bf16",), bundles={"bf16": ready}))
    build = next(plan for plan in plans if plan.name == "bf16: build")
    assert build.words == ("copy", str(ready), "bundle-bf16")
    assert build.typed == f"python -m {PROBE} copy bundle bundle-bf16"


def test_a_ready_bundle_needs_its_precision(tmp_path):
    result = CliRunner().invoke(app, ["gpu-check", "--results", str(tmp_path), "--bundle", "folder", "--json"])
    assert result.exit_code == 2


def test_what_an_interrupted_build_left_is_removed_first(tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "old.plan").write_bytes(b"of another run")
    plan = StepPlan("build", ("copy", str(tmp_path / "nothing"), "bundle"), 60, 1, PROBE, makes="bundle")
    assert run_step(plan, tmp_path, lambda text: None).exit_code == 65
    assert not (tmp_path / "bundle").exists()


def test_one_step_runs_with_those_that_it_needs(tmp_path):
    request = GpuCheckRequest(tmp_path, only=("profiles",))
    assert [plan.name for plan in plan_steps(request)] == ["default: build", "profiles"]
    with pytest.raises(UsageError, match="expected one of: doctor, one layer") as caught:
        plan_steps(GpuCheckRequest(tmp_path, only=("polish",)))
    assert caught.value.exit_code == 2


def test_the_estimated_time_is_announced_first(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "run_step", lambda plan, scratch, say: Step(plan.name, plan.typed, 0, 1.0, {}))
    lines = []
    check_gpu(GpuCheckRequest(tmp_path), lines.append, facts=READY)
    assert re.match(r"\d+ steps, estimated \d+ minutes in all", lines[0])


def test_an_interrupted_run_continues_in_its_work_folder(tmp_path, monkeypatch):
    ran = []

    def step(plan, scratch, say):
        ran.append(plan.name)
        return Step(plan.name, plan.typed, 1 if plan.name == "torch" else 0, 1.0, {"seconds": 1.0, "of": plan.name})

    monkeypatch.setattr(check, "run_step", step)
    request = GpuCheckRequest(tmp_path / "results", work=tmp_path / "work")
    _, first = check_gpu(request, print, facts=READY)
    ran.clear()
    _, second = check_gpu(request, print, facts=READY)
    assert ran == ["torch"]
    assert [row["said"] for row in second["steps"]] == [row["said"] for row in first["steps"]]


def test_a_kept_step_of_another_gpu_or_command_is_run_again(tmp_path):
    plan = StepPlan("doctor", ("doctor",), 60, 1)
    kept = KeptSteps(tmp_path, READY)
    kept.keep(Step(plan.name, plan.typed, 0, 1.0, {}))
    assert kept.find(plan) is not None
    assert kept.find(StepPlan("doctor", ("doctor", "--bundle", "x"), 60, 1)) is None
    assert KeptSteps(tmp_path, dataclasses.replace(READY, driver="590.1")).find(plan) is None


def test_a_failed_step_ends_the_command_in_65_with_a_report(tmp_path, monkeypatch):
    def step(plan, scratch, say):
        return Step(plan.name, plan.typed, 1 if plan.name == "fp32: engines" else 0, 1.0, {})

    monkeypatch.setattr(check, "gather_facts", lambda: READY)
    monkeypatch.setattr(check, "run_step", step)
    result = CliRunner().invoke(app, ["gpu-check", "--results", str(tmp_path), "--json"])
    assert result.exit_code == 65
    error = json.loads(result.stdout.splitlines()[-1])["error"]
    assert error["code"] == "gpu_check_failed"
    assert str(next(tmp_path.glob("*.md"))) in error["message"]
    assert "fp32: engines" in error["message"]
    assert json.loads(next(tmp_path.glob("*.json")).read_text())["finished"]


def test_the_command_ends_in_0_when_all_steps_succeed(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "gather_facts", lambda: READY)
    monkeypatch.setattr(check, "run_step", lambda plan, scratch, say: Step(plan.name, plan.typed, 0, 1.0, {}))
    result = CliRunner().invoke(app, ["gpu-check", "--results", str(tmp_path), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout.splitlines()[-1])["ok"]


def test_a_step_that_is_named_is_the_only_one(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(check, "gather_facts", lambda: READY)
    monkeypatch.setattr(
        check, "run_step", lambda plan, scratch, say: ran.append(plan.name) or Step(plan.name, plan.typed, 0, 1.0, {})
    )
    words = ["gpu-check", "--results", str(tmp_path), "--step", "inspect", "--step", "doctor"]
    assert CliRunner().invoke(app, words).exit_code == 2
    assert CliRunner().invoke(app, [*words[:3], "--step", "doctor"]).exit_code == 0
    assert ran == ["doctor"]


@pytest.mark.parametrize(("name", "dry"), [(STAND_IN, False), ("NVIDIA H200", True)])
def test_stand_ins_and_a_real_gpu_are_never_mixed_up(tmp_path, name, dry):
    facts = dataclasses.replace(READY, gpu=Gpu(name, "9.0", 1))
    with pytest.raises(SettingsError) as caught:
        check_gpu(GpuCheckRequest(tmp_path / "results", dry=dry), print, facts=facts)
    assert caught.value.code == "stand_in"
    assert not (tmp_path / "results").exists()


TRIALS = ("profiles", "cuda graphs", "tf32")


def test_trials_of_a_dry_run_are_small(tmp_path):
    typed = {plan.name: plan.typed for plan in plan_steps(GpuCheckRequest(tmp_path, dry=True, repeats=3))}
    for name in TRIALS:
        assert typed[name].endswith(f" --rows {DRY_BATCH} --repeats 3 --max-batch {DRY_BATCH}")
    for name in ("attention casts", "convolutions"):
        assert typed[name].endswith(" --repeats 3")


def test_trials_on_a_gpu_have_their_full_size(tmp_path):
    words = {plan.name: plan.words for plan in plan_steps(GpuCheckRequest(tmp_path, repeats=3))}
    assert [words[name] for name in TRIALS] == [
        ("profiles", "bundle-default"), ("cuda-graphs", "bundle-default"), ("tf32", "bundle-fp32"),
    ]  # fmt: skip
    assert "--repeats" not in words["attention casts"] + words["convolutions"]
    assert TrialSizes() == TrialSizes(rows=16, repeats=50, max_batch=None)


@pytest.mark.parametrize(
    ("words", "sizes"),
    [
        ((), TrialSizes()),
        (("--rows", "4", "--repeats", "3", "--max-batch", "4"), TrialSizes(rows=4, repeats=3, max_batch=4)),
    ],
)
@pytest.mark.parametrize("trial", ["profiles", "cuda-graphs", "tf32"])
def test_a_trial_has_the_sizes_that_are_typed(trial, words, sizes, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(engine_facts, f"compare_{trial.replace('-', '_')}", lambda *given: asked.append(given) or {})
    assert probes.main([trial, "bundle", *words]) == 0
    assert asked == [(Path("bundle"), sizes)]


@pytest.mark.parametrize("dry", [True, False])
def test_every_probe_takes_the_words_of_its_step(dry, tmp_path, monkeypatch, capsys):
    stubs = {name: (lambda given: {}, takes) for name, (_, takes) in probes.PROBES.items()}
    monkeypatch.setattr(probes, "PROBES", stubs)
    plans = [plan for plan in plan_steps(GpuCheckRequest(tmp_path, dry=dry)) if plan.program == PROBE]
    assert {plan.words[0] for plan in plans} == probes.PROBES.keys()
    assert [probes.main([*plan.words, "--json"]) for plan in plans] == [0] * len(plans)
