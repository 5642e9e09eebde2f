"""The candidates of a graph from made-up facts: every backend, every reason."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest
from flamest.base.errors import UsageError
from flamest.runtime.backends.machine import Gpu, MachineFacts
from flamest.runtime.backends.options import BACKENDS, BackendOptions, parse_backend_options
from flamest.runtime.backends.ranking import BACKEND_KINDS, rank_backends
from flamest.runtime.backends.unavailable import Code
from flamest.runtime.bundle.graph_records import EngineOptions, EngineRecord, Graph

H100 = Gpu("NVIDIA H100", "9.0", 80_000)
T4 = Gpu("Tesla T4", "7.5", 16_000)
VERSIONS = {"tensorrt": "10.16.1.11", "cuda-bindings": "13.0.1", "onnxruntime-gpu": "1.31.1", "openvino": "2026.4.1"}
FULL = MachineFacts(
    gpu=H100, cuda="13.0", driver="580.95", versions=VERSIONS, tensorrt_builds=True, ort_has_cuda=True, bf16=True
)
BARE = MachineFacts(driver_problem="libcuda.so.1: cannot open shared object file", versions={"onnxruntime": "1.32.0"})
OPTIONS = EngineOptions()
PLAN = EngineRecord("cnn.plan", "0" * 64, "10.16.1.11", "13.0", "580.95", "NVIDIA H100", "9.0", OPTIONS, 60.0)
GRAPH = Graph("cnn.onnx", 18, (), (), {}, "fp32", {"float32": {"MatMul": 2}}, (PLAN,))


def with_precision(precision, operator="MatMul"):
    return msgspec.structs.replace(GRAPH, precision=precision, dtype_histogram={"x": {operator: 1}})


def with_engines(*engines):
    return msgspec.structs.replace(
        GRAPH, engines=tuple(msgspec.structs.replace(PLAN, **changes) for changes in engines)
    )


def lacking(facts, *packages):
    return dataclasses.replace(
        facts, versions={name: version for name, version in facts.versions.items() if name not in packages}
    )


def refused(facts=FULL, graph=GRAPH, backend_options=None, name="cnn"):
    """By candidate the code of its reason, or None."""
    candidates = rank_backends(name, graph, facts, backend_options or BackendOptions())
    return {
        candidate.kind: candidate.unavailable.code.value if candidate.unavailable else None for candidate in candidates
    }


def test_a_full_machine_ranks_the_engine_first_and_skips_openvino():
    assert refused() == {
        "plan": None,
        "rebuild": None,
        "onnxruntime-cuda": None,
        "openvino": "NOT_ASKED",
        "onnxruntime": None,
    }
    assert rank_backends("cnn", GRAPH, FULL, BackendOptions())[0].engine == PLAN


def test_a_bare_machine_has_only_onnxruntime():
    assert refused(BARE) == {
        "plan": "NO_DRIVER_OR_GPU",
        "rebuild": "NO_DRIVER_OR_GPU",
        "onnxruntime-cuda": "NO_DRIVER_OR_GPU",
        "openvino": "OPENVINO_MISSING",
        "onnxruntime": None,
    }


def test_a_backend_that_was_not_named_cannot_be_left_out():
    for candidate in rank_backends("cnn", GRAPH, BARE, BackendOptions())[:3]:
        assert "--backend" not in candidate.unavailable.fix


def test_without_a_gpu_tensorrt_names_all_that_is_missing():
    plan, rebuild, cuda, *_ = rank_backends(
        "cnn", GRAPH, dataclasses.replace(BARE, driver_missing=True), BackendOptions("tensorrt")
    )
    for candidate in (plan, rebuild):
        assert candidate.unavailable.evidence.startswith(f"{BARE.driver_problem}; TRT_MISSING: no package tensorrt")
        assert "CUDA_BINDINGS: no package cuda-bindings" in candidate.unavailable.evidence
        assert candidate.unavailable.fix.startswith("install the NVIDIA driver")
        assert candidate.unavailable.fix.count("then: pip install 'flamest[tensorrt]'") == 1
        assert candidate.unavailable.fix.endswith("without a GPU: leave --backend out")
    assert cuda.unavailable.evidence == BARE.driver_problem


@pytest.mark.parametrize(
    ("facts", "candidate", "code"),
    [
        (lacking(FULL, "tensorrt"), "plan", "TRT_MISSING"),
        (dataclasses.replace(FULL, tensorrt_problem="libnvinfer.so.10: cannot open"), "plan", "TRT_LIBS"),
        (lacking(FULL, "cuda-bindings"), "rebuild", "CUDA_BINDINGS"),
        (lacking(FULL, "cuda-bindings"), "onnxruntime-cuda", "CUDA_BINDINGS"),
        (dataclasses.replace(FULL, tensorrt_builds=False), "rebuild", "TRT_NO_BUILDER"),
        (dataclasses.replace(FULL, gpu=None, driver_problem="no device"), "onnxruntime-cuda", "NO_DRIVER_OR_GPU"),
        (dataclasses.replace(FULL, ort_has_cuda=False), "onnxruntime-cuda", "ORT_NO_CUDA"),
        (lacking(FULL, "onnxruntime-gpu"), "onnxruntime-cuda", "ORT_MISSING"),
        (lacking(FULL, "onnxruntime-gpu"), "onnxruntime", "ORT_MISSING"),
        (lacking(FULL, "openvino"), "openvino", "OPENVINO_MISSING"),
    ],
)
def test_what_the_machine_lacks_is_the_reason(facts, candidate, code):
    assert refused(facts)[candidate] == code
    assert refused()[candidate] in (None, "NOT_ASKED")  # and it is the only one


@pytest.mark.parametrize(
    ("engines", "code"),
    [
        ([], "PLAN_MISSING"),
        ([{"tensorrt": "10.3.0.26"}], "PLAN_VERSION"),
        ([{"tensorrt": "11.4.0.106", "options": EngineOptions(version_compatible=True)}], "PLAN_VERSION"),
        ([{"tensorrt": "10.3.0.26", "options": EngineOptions(version_compatible=True)}], None),
        ([{"gpu": "Tesla T4", "compute_capability": "7.5"}], "PLAN_GPU"),
        ([{"gpu": "NVIDIA H200"}], "PLAN_GPU"),
        ([{"gpu": "NVIDIA H200", "options": EngineOptions(hardware_compat="same-cc")}], None),
        ([{"gpu": "A100", "compute_capability": "8.0", "options": EngineOptions(hardware_compat="ampere+")}], None),
        ([{"tensorrt": "10.3.0"}, {"gpu": "Tesla T4"}], "PLAN_GPU"),
        ([{"tensorrt": "10.3.0"}, {}], None),
        ([{"tensorrt": "?"}], "PLAN_VERSION"),
    ],
)
def test_an_engine_needs_its_version_and_its_gpu(engines, code):
    assert refused(graph=with_engines(*engines))["plan"] == code


def test_ampere_plus_excludes_turing():
    older = dataclasses.replace(FULL, gpu=T4)
    plan = {"gpu": "A100", "compute_capability": "8.0", "options": EngineOptions(hardware_compat="ampere+")}
    assert refused(older, with_engines(plan))["plan"] == "PLAN_GPU"


def test_an_engine_for_another_machine_names_both_machines():
    (plan, *_) = rank_backends(
        "cnn", with_engines({"gpu": "NVIDIA H200"}, {"tensorrt": "10.3.0"}), FULL, BackendOptions()
    )
    for word in ("NVIDIA H200", "NVIDIA H100", "10.3.0", "10.16.1.11", "cnn.plan"):
        assert word in plan.unavailable.evidence


@pytest.mark.parametrize(
    ("precision", "operator", "codes"),
    [
        ("fp16", "MatMul", {"openvino": "PRECISION"}),
        ("bf16", "MatMul", {"onnxruntime": "PRECISION"}),
        ("int8", "MatMul", {"onnxruntime-cuda": "PRECISION"}),
        (
            "int8",
            "com.microsoft.MatMulIntegerToFloat",
            {"plan": "PRECISION", "rebuild": "PRECISION", "onnxruntime-cuda": "PRECISION", "openvino": "PRECISION"},
        ),
    ],
)
def test_a_precision_that_a_backend_cannot_compute_is_the_reason(precision, operator, codes):
    graph = with_precision(precision, operator)
    found = refused(graph=graph) | refused(graph=graph, backend_options=BackendOptions("openvino"))
    assert found == dict.fromkeys((kind for kind, _ in BACKEND_KINDS), None) | codes


@pytest.mark.parametrize(
    ("operators", "opset", "lacking"),
    [
        ({"Conv": 9, "MatMul": 2, "AveragePool": 1}, 22, ""),
        ({"Conv": 9, "MaxPool": 1, "Pad": 2}, 22, "MaxPool, Pad"),
        ({"Conv": 9, "MatMul": 2}, 18, "Conv"),
    ],
)
def test_bf16_operators_that_onnxruntime_cuda_lacks_are_named(operators, opset, lacking):
    histogram = {"bfloat16": operators, "float32": {"MaxPool": 1, "Pad": 1}}
    graph = msgspec.structs.replace(GRAPH, precision="bf16", opset=opset, dtype_histogram=histogram)
    plan, _, cuda, *_ = rank_backends("cnn", graph, FULL, BackendOptions())
    assert plan.unavailable is None
    if not lacking:
        assert cuda.unavailable is None
        return
    assert cuda.unavailable.code == "PRECISION"
    assert f"no bfloat16 {lacking}, which" in cuda.unavailable.evidence
    assert "--precision bf16" in cuda.unavailable.fix


def test_bf16_needs_a_gpu_or_a_processor_that_has_it():
    older = dataclasses.replace(FULL, gpu=T4, bf16=False)
    codes = refused(older, with_precision("bf16"))
    assert {codes[kind] for kind in ("plan", "rebuild", "onnxruntime-cuda")} == {"PRECISION"}
    assert refused(older, with_precision("bf16"), BackendOptions("openvino"))["openvino"] == "PRECISION"
    fix = rank_backends("vision", with_precision("bf16"), older, BackendOptions())[1].unavailable.fix
    assert "--precision fp16 --out" in fix
    assert "tf32" not in fix  # which begins with 8.0 too


def test_int8_over_bf16_is_not_for_onnx_runtime_or_an_older_gpu():
    histogram = {"int8": {"MatMul": 1}, "bfloat16": {"MatMul": 1}}
    graph = msgspec.structs.replace(with_precision("int8"), dtype_histogram=histogram)
    assert refused(FULL, graph)["onnxruntime"] == "PRECISION"
    assert refused(dataclasses.replace(FULL, gpu=T4), graph)["rebuild"] == "PRECISION"
    assert refused(FULL, with_precision("int8"))["onnxruntime"] is None


def test_requested_bf16_is_openvinos_and_never_for_keyframes():
    asked = BackendOptions(bf16=True)
    codes = refused(backend_options=asked)
    assert codes.pop("openvino") is None
    assert set(codes.values()) == {"PRECISION"}
    assert refused(backend_options=asked, name="keyframes")["plan"] is None
    assert refused(dataclasses.replace(FULL, bf16=False), backend_options=asked)["openvino"] == "PRECISION"
    assert refused(graph=with_precision("int8"), backend_options=asked)["openvino"] == "PRECISION"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_named_backend_is_first_and_lower_ones_follow(backend):
    kinds = [kind for kind, of in BACKEND_KINDS if BACKENDS.index(of) >= BACKENDS.index(backend)]
    assert list(refused(backend_options=BackendOptions(backend))) == kinds
    required = [kind for kind, of in BACKEND_KINDS if of == backend]
    assert list(refused(backend_options=BackendOptions(backend, require=True))) == required


def test_openvino_is_no_fallback_of_another_backend():
    assert refused(BARE, backend_options=BackendOptions("tensorrt"))["openvino"] == "OPENVINO_MISSING"
    assert refused(backend_options=BackendOptions("onnxruntime-cuda"))["openvino"] == "NOT_ASKED"


def test_one_graph_may_have_another_backend():
    backend_options = parse_backend_options(["openvino, text=onnxruntime"])
    assert list(refused(backend_options=backend_options, name="cnn")) == ["openvino", "onnxruntime"]
    assert list(refused(backend_options=backend_options, name="text")) == ["onnxruntime"]


@pytest.mark.parametrize("facts", [FULL, BARE, lacking(BARE, "onnxruntime"), dataclasses.replace(FULL, gpu=T4)])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_every_reason_has_evidence_and_a_fix(facts, precision):
    for candidate in rank_backends("cnn", with_precision(precision), facts, BackendOptions("tensorrt")):
        if candidate.unavailable is not None:
            assert candidate.unavailable.evidence
            assert candidate.unavailable.fix
            assert candidate.unavailable.code in Code


@pytest.mark.parametrize(
    ("words", "options", "evidence"),
    [
        (["cuda"], {}, "--backend cuda: no such backend"),
        (["mouth=openvino"], {}, "no such graph"),
        ([], {"precision": "fp16"}, "--precision fp16"),
        ([], {"require": True}, "--require-backend"),
        (["text=openvino"], {"require": True}, "--require-backend"),
    ],
)
def test_unknown_words_are_refused_with_the_known_ones(words, options, evidence):
    with pytest.raises(UsageError, match=evidence) as caught:
        parse_backend_options(words, **options)
    assert caught.value.fix


def test_no_option_leaves_the_choice_to_the_ranking():
    assert parse_backend_options([]) == BackendOptions()
    assert parse_backend_options(["auto"]) == BackendOptions()


def test_packages_for_a_newer_cuda_are_refused_with_those_that_fit():
    facts = dataclasses.replace(
        FULL, cuda="12.8", driver="570.86", cuda_majors={"tensorrt": 13, "cuda-bindings": 13, "onnxruntime-gpu": 13}
    )
    found = refused(facts)
    assert (found["plan"], found["rebuild"], found["onnxruntime-cuda"]) == ("DRIVER_TOO_OLD",) * 3
    reasons = {one.kind: one.unavailable for one in rank_backends("cnn", GRAPH, facts, BackendOptions())}
    assert "flamest[tensorrt-cu12]" in reasons["plan"].fix
    assert "flamest[agent-gpu-cu12]" in reasons["onnxruntime-cuda"].fix
    fitting = dataclasses.replace(facts, cuda_majors=dict.fromkeys(facts.cuda_majors, 12))
    assert refused(fitting) == refused()
