"""Rank the backends that can run a graph on a machine, from the best to the one that is always there.

    a TensorRT engine of the bundle > an engine built on this machine > ONNX Runtime CUDA > OpenVINO > ONNX Runtime CPU

A pure function of the manifest's graph, the machine's facts and the backend options. Each candidate is available or
carries the reason why it is not; opening.py tries the available ones in this order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..bundle.graph_records import EngineRecord, Graph
from .machine import MachineFacts, no_gpu_reason, old_driver_reasons
from .options import AUTO, BACKENDS, Backend, BackendOptions
from .tensorrt.engine import Version, version_problem
from .unavailable import BackendUnavailable, Code, unavailable

CandidateKind = Literal["plan", "rebuild", "onnxruntime-cuda", "openvino", "onnxruntime"]
BACKEND_KINDS: tuple[tuple[CandidateKind, Backend], ...] = (
    ("plan", "tensorrt"),
    ("rebuild", "tensorrt"),
    ("onnxruntime-cuda", "onnxruntime-cuda"),
    ("openvino", "openvino"),
    ("onnxruntime", "onnxruntime"),
)
CANDIDATE_TITLES: dict[CandidateKind, str] = {
    "plan": "TensorRT, an engine of the bundle",
    "rebuild": "TensorRT, an engine built here from the ONNX graph",
    "onnxruntime-cuda": "ONNX Runtime CUDA",
    "openvino": "OpenVINO CPU",
    "onnxruntime": "ONNX Runtime CPU",
}

# bfloat16 operators without a kernel in ONNX Runtime's CUDA provider
# (https://github.com/microsoft/onnxruntime/blob/main/docs/OperatorKernels.md), of those that our graphs may have.
NO_BF16_ON_CUDA = frozenset(
    {"ArgMax", "BatchNormalization", "Ceil", "Clip", "ConvTranspose", "Einsum", "Floor", "GlobalAveragePool"}
    | {"GlobalMaxPool", "InstanceNormalization", "Log", "MaxPool", "Pad", "ReduceMax", "ReduceMean", "ReduceMin"}
    | {"Resize", "Round"}
)
NO_BF16_ON_CUDA_BEFORE_22 = frozenset({"AveragePool", "Conv"})  # by opset

_SAME_EVERYWHERE = "add --backend openvino to flamest-agent extract, the same at every silo of a run"


ON_A_GPU = ("tensorrt", "onnxruntime-cuda")


@dataclass(frozen=True)
class Candidate:
    """A backend for one graph; ``unavailable`` is None where it may be tried."""

    kind: CandidateKind
    backend: Backend
    unavailable: BackendUnavailable | None = None
    engine: EngineRecord | None = None  # of the bundle, for this machine; of kind ``plan`` alone


def rank_backends(
    name: str, graph: Graph, facts: MachineFacts, backend_options: BackendOptions
) -> tuple[Candidate, ...]:
    """Candidates for graph ``name``, best first, from the requested backend down.

    With ``backend_options.require`` only those of the requested backend.
    """
    asked = backend_options.backend_of(name)
    candidates = []
    for kind, backend in BACKEND_KINDS:
        if asked != AUTO and BACKENDS.index(backend) < BACKENDS.index(_backend(asked)):
            continue
        if backend_options.require and backend != asked:
            continue
        engine, problem = _availability(kind, name, graph, facts, backend_options)
        candidates.append(Candidate(kind, backend, problem, engine))
    return tuple(candidates)


def _backend(word: str) -> Backend:
    return next(backend for backend in BACKENDS if backend == word)


def _availability(
    kind: CandidateKind, name: str, graph: Graph, facts: MachineFacts, backend_options: BackendOptions
) -> tuple[EngineRecord | None, BackendUnavailable | None]:
    if kind == "plan":
        if problem := _tensorrt_problem(name, graph, facts, backend_options):
            return None, problem
        return _matching_engine(graph, facts)
    if kind == "rebuild":
        return None, _tensorrt_problem(name, graph, facts, backend_options) or _builder_problem(facts)
    if kind == "onnxruntime-cuda":
        return None, _ort_cuda_problem(name, graph, facts, backend_options)
    if kind == "openvino":
        return None, _openvino_problem(name, graph, facts, backend_options)
    return None, _ort_problem(name, graph, facts, backend_options)


def _tensorrt_problem(
    name: str, graph: Graph, facts: MachineFacts, backend_options: BackendOptions
) -> BackendUnavailable | None:
    """The reason why TensorRT cannot run the graph. The driver comes first: without one TensorRT may crash."""
    missing = _missing_for_tensorrt(facts)
    if facts.gpu is None:
        return _without_gpu(facts, missing, asked=backend_options.backend_of(name) in ON_A_GPU)
    if missing:
        return missing[0]
    if backend_options.bf16_of(name):
        return unavailable(
            Code.PRECISION,
            "TensorRT takes the precision from the graph: bf16 is chosen at export",
            fix="flamest-export --backend tensorrt --precision bf16 --out DIR",
        )
    if foreign := _foreign_operators(graph):
        return unavailable(
            Code.PRECISION,
            f"the {graph.precision} graph has {foreign}, which TensorRT does not know",
            fix=f"flamest-export --backend tensorrt --precision {graph.precision} --out DIR",
        )
    return _bf16_gpu_problem(graph, facts.gpu.compute_capability, facts.gpu.name)


def _missing_for_tensorrt(facts: MachineFacts) -> list[BackendUnavailable]:
    """The packages for running an engine that are missing here, or do not fit the driver."""
    missing = [*old_driver_reasons(facts, ("tensorrt", "cuda-bindings"))]
    if facts.tensorrt_problem:
        missing.append(unavailable(Code.TRT_LIBS, facts.tensorrt_problem))
    elif "tensorrt" not in facts.versions:
        missing.append(unavailable(Code.TRT_MISSING, "no package tensorrt is installed"))
    if "cuda-bindings" not in facts.versions:
        missing.append(unavailable(Code.CUDA_BINDINGS, "no package cuda-bindings is installed"))
    return missing


def _without_gpu(facts: MachineFacts, missing: Sequence[BackendUnavailable] = (), *, asked: bool) -> BackendUnavailable:
    """No GPU, together with all else that is ``missing``, so that one answer names everything.

    ``asked``: a backend of a GPU was requested by name, which may be left out.
    """
    first = no_gpu_reason(facts)
    evidence = "; ".join((first.evidence, *map(str, missing)))
    fix = "; then: ".join(dict.fromkeys((first.fix, *(one.fix for one in missing))))
    way_out = "; without a GPU: leave --backend out" if asked else ""
    return unavailable(first.code, evidence, fix=f"{fix}{way_out}")


def _matching_engine(graph: Graph, facts: MachineFacts) -> tuple[EngineRecord | None, BackendUnavailable | None]:
    """The bundle's first engine for this TensorRT and this GPU; else why none of them matches."""
    if not graph.engines:
        return None, unavailable(Code.PLAN_MISSING, "the bundle holds no engine of this graph")
    versions, gpus = [], []
    for engine in graph.engines:
        if problem := _version_problem(engine, facts):
            versions.append(f"{engine.file}: {problem}")
        elif problem := _gpu_problem(engine, facts):
            gpus.append(f"{engine.file}: {problem}")
        else:
            return engine, None
    code = Code.PLAN_GPU if gpus else Code.PLAN_VERSION
    return None, unavailable(code, "; ".join((*gpus, *versions)))


def _version_problem(engine: EngineRecord, facts: MachineFacts) -> str:
    try:
        built, here = Version.parse(engine.tensorrt), Version.parse(facts.versions["tensorrt"])
    except ValueError as error:
        return str(error)
    return version_problem(built, here, version_compatible=engine.options.version_compatible)


def _gpu_problem(engine: EngineRecord, facts: MachineFacts) -> str:
    """The reason why the engine's kernels do not fit this GPU; empty when they do (--hardware-compat)."""
    if facts.gpu is None:
        return "no GPU"
    here, reach = facts.gpu, engine.options.hardware_compat
    built_for = f"built for {engine.gpu} (compute capability {engine.compute_capability}, --hardware-compat {reach})"
    if reach == "ampere+":
        fits = _capability(here.compute_capability) >= (8, 0)
    elif reach == "same-cc":
        fits = here.compute_capability == engine.compute_capability
    else:
        fits = (here.name, here.compute_capability) == (engine.gpu, engine.compute_capability)
    return "" if fits else f"{built_for}, here is {here.name} ({here.compute_capability})"


def _builder_problem(facts: MachineFacts) -> BackendUnavailable | None:
    if facts.tensorrt_builds:
        return None
    return unavailable(Code.TRT_NO_BUILDER, f"tensorrt {facts.versions['tensorrt']} has no Builder")


def _ort_cuda_problem(
    name: str, graph: Graph, facts: MachineFacts, backend_options: BackendOptions
) -> BackendUnavailable | None:
    if facts.gpu is None:
        return _without_gpu(facts, asked=backend_options.backend_of(name) in ON_A_GPU)
    if problem := _onnxruntime_missing(facts, "pip install 'flamest[agent-gpu]'"):
        return problem
    if not facts.ort_has_cuda:
        if {"onnxruntime", "onnxruntime-gpu"} <= set(facts.versions):
            return unavailable(Code.ORT_NO_CUDA, "onnxruntime and onnxruntime-gpu are both installed, in one folder")
        return unavailable(Code.ORT_NO_CUDA, f"onnxruntime {_onnxruntime(facts)} came without a CUDA provider")
    if too_old := old_driver_reasons(facts, ("onnxruntime-gpu",)):
        return too_old[0]
    if backend_options.bf16_of(name):
        return unavailable(
            Code.PRECISION,
            "ONNX Runtime takes the precision from the graph: bf16 is chosen at export",
            fix="flamest-export --backend onnx --precision bf16 --out DIR",
        )
    if graph.precision == "int8":
        return unavailable(
            Code.PRECISION,
            "ONNX Runtime's CUDA provider has no int8 matmuls: it would compute them in float32 or on the CPU",
            fix="flamest-export --backend onnx --precision bf16 --out DIR (a GPU before Ampere: --precision fp16)",
        )
    if lacking := _without_bf16_kernel(graph):
        return unavailable(
            Code.PRECISION,
            f"ONNX Runtime's CUDA provider has no bfloat16 {lacking}, which this graph has",
            fix="flamest-export --backend onnx --precision bf16 --out DIR: this version keeps them in float32",
        )
    if problem := _bf16_gpu_problem(graph, facts.gpu.compute_capability, facts.gpu.name):
        return problem
    if "cuda-bindings" not in facts.versions:
        return unavailable(
            Code.CUDA_BINDINGS, "no package cuda-bindings is installed", fix="pip install 'flamest[agent-gpu]'"
        )
    return None


def _openvino_problem(
    name: str, graph: Graph, facts: MachineFacts, backend_options: BackendOptions
) -> BackendUnavailable | None:
    asked = backend_options.backend_of(name) == "openvino" or backend_options.bf16
    if "openvino" not in facts.versions:
        fix = "" if asked else f"pip install 'flamest[openvino]', and {_SAME_EVERYWHERE}"
        return unavailable(Code.OPENVINO_MISSING, "no package openvino is installed", fix=fix)
    if not asked:
        return unavailable(
            Code.NOT_ASKED,
            f"openvino {facts.versions['openvino']} is installed; its rounding differs from ONNX Runtime's",
            fix=_SAME_EVERYWHERE,
        )
    if graph.precision == "fp16":
        return unavailable(Code.PRECISION, "OpenVINO's CPU device would compute the fp16 graph in float32")
    if foreign := _foreign_operators(graph):
        return unavailable(Code.PRECISION, f"the {graph.precision} graph has {foreign}, which are ONNX Runtime's own")
    if backend_options.bf16_of(name) and graph.precision not in ("fp32", "bf16"):
        return unavailable(Code.PRECISION, f"bf16 is requested, the graph is already {graph.precision}")
    if (backend_options.bf16_of(name) or graph.precision == "bf16") and not facts.bf16:
        return unavailable(Code.PRECISION, "this processor does not compute bf16", fix="leave --precision bf16 out")
    return None


def _ort_problem(
    name: str, graph: Graph, facts: MachineFacts, backend_options: BackendOptions
) -> BackendUnavailable | None:
    if problem := _onnxruntime_missing(facts, "pip install 'flamest[agent]'"):
        return problem
    if _computes_in_bf16(graph):
        return unavailable(Code.PRECISION, "ONNX Runtime's CPU provider cannot load bf16 graphs")
    if backend_options.bf16_of(name):
        return unavailable(
            Code.PRECISION,
            "ONNX Runtime's CPU provider does not compute in bf16",
            fix="leave --precision bf16 out, or pip install 'flamest[openvino]'",
        )
    return None


def _bf16_gpu_problem(graph: Graph, capability: str, gpu: str) -> BackendUnavailable | None:
    if not _computes_in_bf16(graph) or _capability(capability) >= (8, 0):
        return None
    return unavailable(
        Code.PRECISION,
        f"the graph is bf16; {gpu} has compute capability {capability}, bf16 begins with 8.0",
        fix="flamest-export --backend tensorrt --precision fp16 --out DIR",
    )


def _computes_in_bf16(graph: Graph) -> bool:
    """True for graphs in bf16, and for int8 ones of TensorRT's form, of which the rest is bf16."""
    return graph.precision == "bf16" or "bfloat16" in graph.dtype_histogram


def _without_bf16_kernel(graph: Graph) -> str:
    """The graph's bfloat16 operators that ONNX Runtime's CUDA provider lacks, for a message."""
    missing = NO_BF16_ON_CUDA | (NO_BF16_ON_CUDA_BEFORE_22 if graph.opset < 22 else frozenset())
    return ", ".join(sorted(missing & set(graph.dtype_histogram.get("bfloat16", {}))))


def _foreign_operators(graph: Graph) -> str:
    """The graph's operators outside of standard ONNX, for a message."""
    found = {word for operators in graph.dtype_histogram.values() for word in operators if "." in word}
    return ", ".join(sorted(found))


def _onnxruntime(facts: MachineFacts) -> str:
    return facts.versions.get("onnxruntime-gpu") or facts.versions.get("onnxruntime", "")


def _onnxruntime_missing(facts: MachineFacts, fix: str) -> BackendUnavailable | None:
    return (
        None if _onnxruntime(facts) else unavailable(Code.ORT_MISSING, "no package onnxruntime is installed", fix=fix)
    )


def _capability(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())
