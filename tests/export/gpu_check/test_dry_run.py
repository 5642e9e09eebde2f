"""gpu-check against stand-ins: the steps are those of a GPU machine, and ONNX Runtime computes the engines."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from flamest.export.gpu_check.evidence import UNREADABLE

RIG = Path(__file__).parents[2] / "tensorrt_rig"
# What takes seconds. The others load PyTorch, or build engines of their own: they are in the whole dry run.
QUICK = (
    "doctor", "one layer", "default: engines", "default: inspect", "default: check", "sweep: tensorrt",
    "prepared: tensorrt",
)  # fmt: skip
READY = ("--precision", "fp32", "--bundle", "default=miniworld", "--batch", "2")


def dry_module():
    sys.path.insert(0, str(RIG))
    spec = importlib.util.spec_from_file_location("flamest_tests_dry_gpu_check", RIG / "dry_gpu_check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_dry(folder, *options, extra=None):
    """The end of the command, the report and its page."""
    dry = dry_module()
    done = subprocess.run(
        dry.command(folder, *map(str, options)),
        env=dry.environment(folder, extra),
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    (path,) = folder.glob("gpu-check-dry-*.json")
    return done, json.loads(path.read_text()), path.with_suffix(".md").read_text()


def steps_of(names):
    return [word for name in names for word in ("--step", name)]


@pytest.fixture(scope="module")
def dry(one_rig, tmp_path_factory):
    return run_dry(tmp_path_factory.mktemp("dry"), *READY, *steps_of(QUICK))


def test_every_step_of_a_dry_run_succeeds(dry):
    done, report, _ = dry
    assert {step["name"]: step["problem"] for step in report["steps"] if step["exit_code"] != 0} == {}
    assert (done.returncode, report["ok"], report["finished"]) == (0, True, True), done.stderr
    assert set(QUICK) <= {step["name"] for step in report["steps"]}


def test_a_dry_run_decides_what_stand_ins_can_show(dry):
    verdicts = {row["claim"]: (row["verdict"], row["why"]) for row in dry[1]["claims"]}
    for claim in ("one_layer", "engines_right", "cuda_graphs_right", "empty_inputs"):
        assert verdicts[claim][0] == "proved", verdicts[claim]
    for claim in ("aim", "faster_than_torch", "files_feed_it", "single_frames_are_faster", "attention_is_fused"):
        assert verdicts[claim] == ("not tested", "a dry run: stand-ins show nothing about hardware")


def test_every_claim_can_read_what_the_steps_wrote(dry):
    assert [row["why"] for row in dry[1]["claims"] if UNREADABLE in row["why"]] == []


def test_a_dry_report_cannot_be_taken_for_a_real_one(dry):
    _, report, page = dry
    assert report["dry"] is True
    assert report["title"].startswith("DRY RUN")
    assert all(step["dry"] for step in report["steps"])
    assert page.startswith("# DRY RUN")
    table = page.partition("## Clips a second")[2].partition("## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "batch" not in line]
    assert rows
    for line in page.splitlines():
        if line.startswith("| ") and any(character.isdigit() for character in line.partition("|")[2][2:]):
            assert "(dry)" in line or line.startswith("| batch |"), line


def test_a_wrong_engine_is_refuted_and_the_report_not_ok(one_rig, tmp_path):
    words = (*READY, *steps_of(["default: engines"]), "--json")
    done, report, page = run_dry(tmp_path, *words, extra={"FLAMEST_SCRIPT": "stale"})
    claim = next(row for row in report["claims"] if row["claim"] == "engines_right")
    assert (claim["verdict"], claim["required"]) == ("refuted", True), claim["why"]
    assert (report["ok"], done.returncode) == (False, 65)
    assert "engines_right" in report["refuted"]
    assert "**REFUTED**" in page
    assert any(line.startswith("engines_right: ") for line in report["next"])
    assert "- engines_right: " in page.partition("## Summary")[2]


@pytest.mark.soak
def test_the_whole_dry_run_succeeds(one_rig, tmp_path):
    done, report, _ = run_dry(tmp_path, *dry_module().BATCHES, "--precision", "bf16", "--precision", "fp16")
    failed = {step["name"]: step["problem"] for step in report["steps"] if step["exit_code"] != 0}
    assert (failed, done.returncode, report["ok"]) == ({}, 0, True)
