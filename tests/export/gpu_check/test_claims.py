"""Claims of gpu-check: each is decided from the outputs of steps, and says why where it cannot be."""

from __future__ import annotations

import json

import pytest
from flamest.export.gpu_check.evidence import Evidence, decide
from flamest.export.gpu_check.plan import GpuCheckRequest
from flamest.export.gpu_check.report import CLAIMS
from flamest.export.gpu_check.step import Step

BY_KEY = {claim.key: claim for claim in CLAIMS}
RIGHT = {"wrong": "", "cuda_graphs": True, "remarks": []}


def judged(key, *, gpu="NVIDIA H200", dry=False, **outputs):
    """The decision on a claim; ``outputs`` by step, "_" for ": " and "__" for " "."""
    steps = {}
    for word, output in outputs.items():
        name = word.replace("__", " ").replace("_", ": ", 1) if word != "one__layer" else "one layer"
        failed = "error" in output
        steps[name] = Step(name, "", 65 if failed else 0, 1.0, output, "it broke" if failed else "")
    return decide(BY_KEY[key], Evidence(GpuCheckRequest(None, dry=dry), gpu, steps))


def engines(*graphs, **verdict):
    return {"plans": [{"graph": name, "verdict": {**RIGHT, **verdict}} for name in graphs]}


def error(code, message="graph 'text': it is wrong"):
    return {"error": {"code": code, "message": message, "fix": ""}}


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.key)
def test_without_evidence_a_claim_is_not_tested_and_says_why(claim):
    found = decide(claim, Evidence(GpuCheckRequest(None), "NVIDIA H200", {}))
    if claim.key == "exports":
        return  # nothing was asked for
    assert found.verdict == "not tested"
    assert found.why


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.key)
def test_every_claim_is_a_sentence_with_advice(claim):
    assert claim.statement.endswith(".")
    assert claim.advice
    json.dumps(claim.key)


def test_keys_of_claims_are_unique():
    assert len(BY_KEY) == len(CLAIMS)


def test_a_wrong_engine_refutes_the_claim_of_right_engines():
    assert judged("engines_right", bf16_engines=engines("text", "cnn")).verdict == "proved"
    wrong = judged("engines_right", bf16_engines=engines("text"), fp32_engines=error("ENGINE_WRONG"))
    assert wrong.verdict == "refuted"
    assert "graph 'text': it is wrong" in wrong.why
    assert BY_KEY["engines_right"].required


def test_an_engine_that_was_not_built_leaves_the_claim_open():
    found = judged("engines_right", bf16_engines=engines("text"), fp32_engines=error("PLAN_BUILD", "no kernel"))
    assert (found.verdict, "no kernel" in found.why) == ("not tested", True)


def test_cuda_graphs_that_are_wrong_refute_their_claim_alone():
    row = engines("text", cuda_graphs=False, remarks=["CUDA graphs stay off: cosine 0.2"])
    assert judged("engines_right", bf16_engines=row).verdict == "proved"
    found = judged("cuda_graphs_right", bf16_engines=row)
    assert (found.verdict, "cosine 0.2" in found.why) == ("refuted", True)
    assert judged("cuda_graphs_right", bf16_engines=engines("text")).verdict == "proved"


def test_lost_half_precision_is_refuted():
    assert judged("half_precision_kept", fp16_engines=error("PRECISION", "PRECISION: none is float16")).verdict == (
        "refuted"
    )
    assert judged("half_precision_kept", fp16_engines=engines("text")).verdict == "proved"


def test_a_text_engine_stands_for_inputs_without_elements():
    assert judged("empty_inputs", bf16_engines=engines("text")).verdict == "proved"
    assert judged("empty_inputs", bf16_engines=engines("cnn")).verdict == "not tested"
    assert judged("empty_inputs", bf16_engines=error("PLAN_REJECTED", "graph 'text': crash")).verdict == "refuted"


@pytest.mark.parametrize(("package", "verdict"), [("12.9.0", "proved"), ("13.0.0", "refuted")])
def test_a_driver_that_is_too_old_is_refuted(package, verdict):
    output = {"machine": {"cuda": "12.8", "versions": {"cuda-bindings": package}}}
    assert judged("driver_fits", doctor=output).verdict == verdict


def test_the_aim_counts_on_the_gpu_that_it_is_about():
    output = {"batches": {"1": {"clips_per_second": 90.0}, "16": {"clips_per_second": 1300.0}}}
    assert judged("aim", prepared_tensorrt=output).verdict == "proved"
    other = judged("aim", gpu="NVIDIA L4", prepared_tensorrt=output)
    assert (other.verdict, "1300" in other.why) == ("not tested", True)
    slow = {"batches": {"16": {"clips_per_second": 700.0}}}
    assert judged("aim", prepared_tensorrt=slow).verdict == "refuted"


def test_torch_is_compared_at_the_best_batch_of_each():
    ours = {"batches": {"1": {"clips_per_second": 50.0}, "8": {"clips_per_second": 200.0}}}
    theirs = {"batches": {"1": {"clips_per_second": 40.0}, "8": {"problem": "out of memory"}}}
    found = judged("faster_than_torch", prepared_tensorrt=ours, torch=theirs)
    assert (found.verdict, found.evidence["times"]) == ("proved", 5.0)
    skipped = judged("faster_than_torch", prepared_tensorrt=ours, torch={"skipped": "PyTorch sees no GPU"})
    assert (skipped.verdict, skipped.why) == ("not tested", "PyTorch sees no GPU")


def test_seeded_weights_decide_nothing_about_overflow():
    found = {"largest": 70000.0, "limit": 65504.0, "value": "a", "has_room": False}
    claim = {"means_something": True, **found}
    assert judged("fp16_overflows", fp16__overflow={**found, "means_something": False}).verdict == "not tested"
    assert judged("fp16_overflows", fp16__overflow=claim).verdict == "proved"
    calm = {**claim, "largest": 900.0, "has_room": True}
    assert judged("fp16_overflows", fp16__overflow=calm).verdict == "refuted"


@pytest.mark.parametrize(("ms", "verdict"), [(10.2, "proved"), (14.0, "refuted")])
def test_casts_around_the_softmax_may_cost_five_per_cent(ms, verdict):
    def timed(large):
        return {"build_seconds": 1.0, "batches": {"1": {"p50_ms": 1.0}, "16": {"p50_ms": large}}}

    output = {"precision": "bf16", "with": timed(ms), "without": timed(10.0)}
    assert judged("casts_cost_nothing", attention__casts=output).verdict == verdict


def test_captions_that_differ_are_refuted():
    def bench(equal, cosine):
        row = {"captions_equal": equal, "captions": 4, "min_cosine": {"vlm": cosine}}
        return {"backends": {"tensorrt": {"beside_reference": row}}, "refused": {}}

    assert judged("miniworld_tensorrt", miniworld_bench=bench(4, 0.99999)).verdict == "proved"
    assert judged("miniworld_tensorrt", miniworld_bench=bench(3, 0.99999)).verdict == "refuted"
    assert judged("miniworld_tensorrt", miniworld_bench=bench(4, 0.99)).verdict == "refuted"


@pytest.mark.parametrize(("equal", "verdict"), [(4, "proved"), (3, "refuted")])
def test_keyframes_that_the_gpu_chooses_otherwise_are_refuted(equal, verdict):
    row = {"captions_equal": 4, "captions": 4, "min_cosine": {}, "keyframes_equal": equal}
    found = judged("miniworld_keyframes", miniworld_bench={"backends": {"tensorrt": {"beside_reference": row}}})
    assert (found.verdict, f"{equal} of 4 clips" in found.why) == (verdict, True)
    assert not BY_KEY["miniworld_keyframes"].required


def test_onnxruntime_cuda_may_load_or_refuse_bf16():
    assert judged("cuda_loads_bf16", bf16_bench={"backends": {"onnxruntime-cuda": {}}}).verdict == "proved"
    refused = {"backends": {}, "refused": {"onnxruntime-cuda": {"code": "no_backend", "message": "no MaxPool in bf16"}}}
    found = judged("cuda_loads_bf16", bf16_bench=refused)
    assert (found.verdict, found.why) == ("refuted", "no MaxPool in bf16")
    assert not BY_KEY["cuda_loads_bf16"].required


def test_files_are_compared_with_the_slower_of_readers_and_networks():
    def bench(speed):
        stages = {"decode": {"p50_ms": 30.0}, "keyframes": {"p50_ms": 5.0}, "prepare": {"p50_ms": 5.0}}
        pipeline = {"readers": 8, "clips_per_second": speed}
        return {"backends": {"tensorrt": {"stages": stages, "pipeline": pipeline}}}

    networks = {"batches": {"16": {"clips_per_second": 900.0}}}
    assert judged("files_feed_it", default_bench=bench(190.0), prepared_tensorrt=networks).verdict == "proved"
    assert judged("files_feed_it", default_bench=bench(100.0), prepared_tensorrt=networks).verdict == "refuted"


def test_a_dry_run_decides_nothing_about_hardware():
    output = {"batches": {"16": {"clips_per_second": 5000.0}}}
    found = judged("aim", dry=True, prepared_tensorrt=output)
    assert (found.verdict, "dry" in found.why) == ("not tested", True)
    assert judged("engines_right", dry=True, bf16_engines=engines("text")).verdict == "proved"


def test_evidence_of_another_form_is_said_and_breaks_no_report():
    found = judged("profiles_are_tuned", profiles={"batch": 16})
    assert (found.verdict, "cannot be read" in found.why) == ("not tested", True)
