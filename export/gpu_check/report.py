"""The report of gpu-check as JSON: machine, steps, claims. Nothing in it names the host or the user."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ... import __version__
from ...base.files import write_atomic
from ...runtime.backends.machine import MachineFacts
from ...runtime.backends.unavailable import Code
from ..bench.comparison import compare_clips
from .engine_claims import ENGINE_CLAIMS
from .evidence import Claim, Decision, Evidence, decide
from .page import render_page
from .plan import CUDA, MINIWORLD, TENSORRT, GpuCheckRequest
from .speed_claims import SPEED_CLAIMS
from .step import Step

CLAIMS: tuple[Claim, ...] = (*ENGINE_CLAIMS, *SPEED_CLAIMS)
DRY_TITLE = "DRY RUN: stand-ins in place of TensorRT and a GPU. No figure here was measured on a GPU."
TITLE = "gpu-check: what this machine's GPU does with flamest"
_HOST_NEEDED = ("ORT_NO_CUDA", "NO_DRIVER_OR_GPU")  # refusals that a dry run has to have


def make_report(
    request: GpuCheckRequest, facts: MachineFacts, steps: Sequence[Step], *, measured: str, finished: bool = True
) -> dict[str, Any]:
    """The whole report; ``ok`` when every step ended in 0, no backend was refused wrongly and no required claim failed.

    ``measured``: the date. ``finished``: False after each step but the last; a report that says so was interrupted.
    """
    refused: dict[bool, list[str]] = {True: [], False: []}  # by whether it had to be
    for step in steps:
        found = step.output.get("refused", {}) if step.name.endswith("bench") else {}
        for name, why in found.items():
            expected = is_expected(step.name, name, why["message"], dry=request.dry)
            refused[expected].append(f"{step.name}: {name}: {why['code']}")
    failed = [step.name for step in steps if not step.ok and not step.skipped]
    evidence = Evidence(request, facts.gpu.name if facts.gpu else "none", {step.name: step for step in steps})
    claims = [claim_row(claim, decide(claim, evidence)) for claim in CLAIMS]
    broken = [row["claim"] for row in claims if row["verdict"] == "refuted" and row["required"]]
    return {
        "report": "gpu-check",
        "title": DRY_TITLE if request.dry else TITLE,
        "dry": request.dry,
        "measured": measured,
        "flamest": __version__,
        "finished": finished,
        "ok": finished and not failed and not refused[False] and not broken,
        "failed": failed,
        "refuted": broken,
        "claims": claims,
        "next": next_steps(claims, failed, dry=request.dry),
        "left_out": dict(request.left_out),
        "refused": refused[False],
        "refused_as_expected": refused[True],
        "beside_fp32_cuda": compare_with_fp32(steps),
        "weights": request.weights,
        "machine": describe_machine(facts),
        "steps": [step_row(step, dry=request.dry) for step in steps],
    }


def claim_row(claim: Claim, decision: Decision) -> dict[str, Any]:
    return {
        "claim": claim.key,
        "statement": claim.statement,
        "verdict": decision.verdict,
        "why": decision.why,
        "required": claim.required,
        "advice": claim.advice if decision.verdict == "refuted" else "",
        "evidence": dict(decision.evidence),
    }


def step_row(step: Step, *, dry: bool) -> dict[str, Any]:
    return {
        "name": step.name,
        "dry": dry,
        "command": step.command,
        "exit_code": step.exit_code,
        "seconds": round(step.seconds, 1),
        "said": _without_bulk(step.output),
        "problem": step.problem,
    }


def next_steps(claims: Sequence[Mapping[str, Any]], failed: Sequence[str], *, dry: bool = False) -> list[str]:
    """Advice for every claim that was refuted, the required ones first, and for failed steps."""
    refuted = sorted((row for row in claims if row["verdict"] == "refuted"), key=lambda row: not row["required"])
    advice = [f"{row['claim']}: {row['advice']}" for row in refuted]
    if failed:
        advice.append(f"steps failed ({', '.join(failed)}): 'problem' of each in the report holds its error output")
    if dry and not advice:
        return ["run make gpu-check on a machine with an NVIDIA GPU: only there are the other claims decided"]
    return advice or ["attach the report to an issue: nothing of this has run on hardware before"]


def is_expected(step: str, backend: str, message: str, *, dry: bool = False) -> bool:
    """Refusals that are right: a precision that ONNX Runtime lacks on this processor, in a bundle that is not fp32.

    TensorRT's fp16 form has BLIP's vision graph in bf16, which ONNX Runtime's CPU provider cannot load; its CUDA
    provider has no int8 matmuls, and may lack operators in bf16.
    """
    # The required backend's error is ``no_backend``; the candidate's code is in its message.
    if dry and backend == CUDA:
        return any(code in message for code in _HOST_NEEDED)
    return backend != TENSORRT and f"{Code.PRECISION}: " in message and not step.startswith(("fp32:", MINIWORLD))


def compare_with_fp32(steps: Sequence[Step]) -> dict[str, dict[str, Any]]:
    """Captions and embeddings of every benched backend against ONNX Runtime CUDA's of the fp32 bundle, same clips.

    By ``PRECISION: BACKEND``, the result of ``compare_clips``; empty where the fp32 bundle did not run there.
    """
    benched = {step.name.removesuffix(": bench"): step for step in steps if step.name.endswith(": bench")}
    runs = {
        (precision, backend): found["vectors"]
        for precision, step in benched.items()
        if precision != MINIWORLD
        for backend, found in step.output.get("backends", {}).items()
    }
    reference = runs.pop(("fp32", CUDA), None)
    if reference is None:
        return {}
    return {
        f"{precision}: {backend}": compare_clips(vectors, reference) for (precision, backend), vectors in runs.items()
    }


def _without_bulk(output: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the vectors, a megabyte (the report holds their comparison), and all but a graph's longest layers."""
    if not isinstance(output.get("backends"), dict):
        return dict(output)
    backends = {}
    for name, found in output["backends"].items():
        if isinstance(found, dict):  # doctor's own backends are a list
            kept = {key: value for key, value in found.items() if key != "vectors"}
            graphs = kept.get("graphs", {})
            kept["graphs"] = {
                graph: {**row, "layers": row["layers"][:20]} if "layers" in row else row
                for graph, row in graphs.items()
            }
            found = kept
        backends[name] = found
    return {**output, "backends": backends}


def describe_machine(facts: MachineFacts) -> dict[str, Any]:
    """Processor, GPU and versions; nothing that names the host."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), platform.machine())
    gpu = facts.gpu
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "gpu": None
        if gpu is None
        else {"name": gpu.name, "compute_capability": gpu.compute_capability, "memory_mb": gpu.memory_mb},
        "driver": facts.driver,
        "cuda": facts.cuda,
        "versions": facts.versions,
    }


def write_report(folder: Path, report: dict[str, Any]) -> Path:
    """Write ``FOLDER/gpu-check-GPU-DATE.json`` and the page next to it; earlier ones of that day and GPU are replaced.

    A dry run's name begins with ``gpu-check-dry``.
    """
    gpu = report["machine"]["gpu"] or {"name": "none"}
    name = re.sub(r"[^a-z0-9]+", "-", gpu["name"].lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    dry = "dry-" if report["dry"] else ""
    path = folder / f"gpu-check-{dry}{name}-{report['measured']}.json"
    write_atomic(path, (json.dumps(report, indent=2) + "\n").encode())
    write_atomic(path.with_suffix(".md"), render_page(report).encode())
    return path
