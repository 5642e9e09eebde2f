"""Can plans be built on this machine, and what is written down about where one was built."""

from __future__ import annotations

from ..graph_records import Graph
from ..plan_records import Plan, PlanOptions
from .facts import MachineFacts, no_gpu
from .plan_build import BuiltPlan
from .plan_cache import PlanKey
from .refusals import Code, Refusal, refuse


def site_problems(facts: MachineFacts) -> tuple[Refusal, ...]:
    """All that is missing here to build plans, driver first; empty when they can be built."""
    problems = []
    if facts.gpu is None:
        problems.append(no_gpu(facts))
    if facts.tensorrt_problem:
        problems.append(refuse(Code.TRT_LIBS, facts.tensorrt_problem))
    elif "tensorrt" not in facts.versions:
        problems.append(refuse(Code.TRT_MISSING, "the Python package tensorrt is not installed"))
    elif not facts.tensorrt_builds:
        problems.append(refuse(Code.TRT_NO_BUILDER, f"tensorrt {facts.versions['tensorrt']} has no Builder"))
    return tuple(problems)


def plan_key(facts: MachineFacts, onnx_sha256: str, options: PlanOptions) -> PlanKey:
    """What a plan built here would be; raises the first of ``site_problems``."""
    if problems := site_problems(facts):
        raise problems[0].error()
    gpu, capability = ("", "") if facts.gpu is None else (facts.gpu.name, facts.gpu.compute_capability)
    return PlanKey(onnx_sha256, facts.versions["tensorrt"], gpu, capability, options)


def plan_file(name: str, key: PlanKey) -> str:
    """The file of graph ``name``'s plan in a bundle: one per key, readable up to its last word."""
    capability = key.compute_capability.replace(".", "")
    return f"{name}.trt{key.tensorrt}-sm{capability}-{key.digest[:8]}.plan"


def find_plan(name: str, graph: Graph, key: PlanKey) -> Plan | None:
    """The plan of ``key`` among those of the bundle."""
    return next((plan for plan in graph.plans if plan.file == plan_file(name, key)), None)


def record_plan(name: str, built: BuiltPlan, key: PlanKey, facts: MachineFacts) -> Plan:
    return Plan(
        file=plan_file(name, key),
        onnx_sha256=key.onnx_sha256,
        tensorrt=str(built.version),
        cuda=facts.cuda,
        driver=facts.driver or "unknown",
        gpu=key.gpu,
        compute_capability=key.compute_capability,
        options=key.options,
        build_seconds=round(built.seconds, 2),
    )
