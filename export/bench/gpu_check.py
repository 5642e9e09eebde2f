"""One command for a machine with an NVIDIA GPU: build, verify, measure, and one report to send back.

Every step is the command that a person would type, as a process of its own: a step that fails or crashes
is in the report with its output, and the next one continues. The report is written after every step, so that
Ctrl-C loses nothing but the step that ran. Nothing in it names the machine.
"""

from __future__ import annotations

import json
import os
import platform
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import __version__
from ...base.clock import utc_date
from ...base.files import write_atomic
from ...runtime.backends.machine import MachineFacts, gather_facts
from ...runtime.backends.tensorrt.supply import build_problems
from ...runtime.backends.unavailable import BackendUnavailable, Code, unavailable
from .comparison import REFERENCE, compare_clips
from .gpu_step import Say, Step, run_step

PRECISIONS = ("fp32", "fp16")
BACKENDS = (REFERENCE, "tensorrt", "onnxruntime-cuda")  # the others are compared with the first
CUDA = "onnxruntime-cuda"  # every backend in every precision is compared with its fp32 outputs


@dataclass(frozen=True)
class GpuCheckRequest:
    results: Path  # folder of the report
    weights: str = "random:full"
    precisions: tuple[str, ...] = PRECISIONS
    repeats: int = 30
    clips: int = 16


Runner = Callable[[str, Sequence[str]], Step]


def check_gpu(request: GpuCheckRequest, say: Say, *, facts: MachineFacts | None = None) -> tuple[Path, dict[str, Any]]:
    """Run every step and write the report; its path and content.

    Raises SettingsError at once, with nothing written, where there is no GPU (NO_DRIVER_OR_GPU) or a package is
    missing (the first code of what is).
    """
    facts = gather_facts() if facts is None else facts
    require_gpu(facts)
    require_packages(facts)
    measured = utc_date()  # of the beginning: the report's name does not change at midnight
    steps: list[Step] = []

    def run(name: str, words: Sequence[str]) -> Step:
        steps.append(run_step(name, words, Path(scratch), say))
        write_report(request.results, make_report(request, facts, steps, measured=measured, finished=False))
        return steps[-1]

    with tempfile.TemporaryDirectory(prefix="flamest-gpu-check-") as scratch:
        run_steps(request, run)
    report = make_report(request, facts, steps, measured=measured)
    return write_report(request.results, report), report


def require_gpu(facts: MachineFacts) -> None:
    if facts.gpu is None:
        raise unavailable(
            Code.NO_DRIVER_OR_GPU,
            f"gpu-check needs an NVIDIA GPU, and there is none here: {facts.driver_problem or 'no driver'}",
            fix="run it on the machine with the GPU: make gpu-check (nvidia-smi there shows what the driver sees); "
            "without a GPU: flamest-export check DIR, flamest-export bench DIR",
        ).error()


def require_packages(facts: MachineFacts) -> None:
    """Raise an error for all that is missing to build engines and to run both GPU backends, before a long export."""
    problems = list(build_problems(facts))
    if not problems and "cuda-bindings" not in facts.versions:
        problems.append(unavailable(Code.CUDA_BINDINGS, "the Python package cuda-bindings is not installed"))
    if not facts.ort_has_cuda:
        problems.append(unavailable(Code.ORT_NO_CUDA, "ONNX Runtime's CUDA provider is not installed"))
    if problems:
        fixes = dict.fromkeys(problem.fix for problem in problems)
        evidence = "; ".join([problems[0].evidence, *(str(problem) for problem in problems[1:])])
        raise BackendUnavailable(
            problems[0].code, evidence, "; ".join((*fixes, "or all at once in a checkout: make gpu-setup"))
        ).error()


def run_steps(request: GpuCheckRequest, run: Runner) -> list[Step]:
    """Doctor; then per precision: build, engines, check, verify, bench. A bundle that fails ends its own steps."""
    steps = [run("doctor", ("doctor",))]
    for precision in request.precisions:
        bundle = f"bundle-{precision}"
        form = ("--backend", "tensorrt", "--no-plans")
        words: tuple[str, ...] = ("--precision", precision)
        if precision != "fp32" and "=" not in precision:
            words += ("--precision", "cnn=fp32")  # seeded Slow amplifies rounding: parity_failed in any lower precision
        built = run(f"{precision}: build", (*form, "--weights", request.weights, *words, "--out", bundle))
        steps.append(built)
        if built.exit_code != 0:
            continue
        steps.append(
            run(f"{precision}: engines", ("engines", bundle))
        )  # when they fail, the other backends are measured
        backends = [word for name in BACKENDS for word in ("--backend", name)]
        sizes = ("--repeats", str(request.repeats), "--clips", str(request.clips))
        steps.append(run(f"{precision}: inspect", ("inspect", bundle)))
        steps.append(run(f"{precision}: check", ("check", bundle)))
        steps.append(run(f"{precision}: verify", ("verify", bundle)))
        steps.append(run(f"{precision}: bench", ("bench", bundle, *sizes, "--vectors", *backends)))
    return steps


def make_report(
    request: GpuCheckRequest, facts: MachineFacts, steps: Sequence[Step], *, measured: str, finished: bool = True
) -> dict[str, Any]:
    """Outcome of the steps and the machine; ``ok`` when every step ended in 0 and no backend was refused wrongly.

    ``measured``: the date. ``finished``: False after each step but the last; a report that says so was interrupted.
    """
    refused: dict[bool, list[str]] = {True: [], False: []}  # by whether it had to be
    for step in steps:
        for name, why in step.output.get("refused", {}).items() if step.name.endswith("bench") else ():
            refused[_is_expected(step.name, name, why["message"])].append(f"{step.name}: {name}: {why['code']}")
    failed = [step.name for step in steps if step.exit_code != 0]
    return {
        "report": "gpu-check",
        "measured": measured,
        "flamest": __version__,
        "finished": finished,
        "ok": finished and not failed and not refused[False],
        "failed": failed,
        "refused": refused[False],
        "refused_as_expected": refused[True],
        "beside_fp32_cuda": compare_with_fp32(steps),
        "weights": request.weights,
        "machine": describe_machine(facts),
        "steps": [
            {
                "name": step.name,
                "command": " ".join(("flamest-export", *step.command)),
                "exit_code": step.exit_code,
                "seconds": round(step.seconds, 1),
                "said": _without_vectors(step.output),
                "problem": step.problem,
            }
            for step in steps
        ],
    }


def _is_expected(step: str, backend: str, message: str) -> bool:
    """TensorRT's fp16 form has BLIP's vision graph in bf16, which ONNX Runtime's CPU provider cannot load."""
    # The required backend's error is ``no_backend``; the candidate's code is in its message.
    return backend == REFERENCE and f"{Code.PRECISION}: " in message and not step.startswith("fp32:")


def compare_with_fp32(steps: Sequence[Step]) -> dict[str, dict[str, Any]]:
    """Captions and embeddings of every benched backend against ONNX Runtime CUDA's of the fp32 bundle, same clips.

    By ``PRECISION: BACKEND``, the result of ``compare_clips``; empty where the fp32 bundle did not run there.
    """
    benched = {step.name.removesuffix(": bench"): step for step in steps if step.name.endswith(": bench")}
    runs = {
        (precision, backend): found["vectors"]
        for precision, step in benched.items()
        for backend, found in step.output.get("backends", {}).items()
    }
    reference = runs.pop(("fp32", CUDA), None)
    if reference is None:
        return {}
    return {
        f"{precision}: {backend}": compare_clips(vectors, reference) for (precision, backend), vectors in runs.items()
    }


def _without_vectors(output: Mapping[str, Any]) -> dict[str, Any]:
    """Leave the vectors out, a megabyte: the report holds the comparison of them."""
    if not isinstance(output.get("backends"), dict):
        return dict(output)
    backends = {
        name: {key: value for key, value in found.items() if key != "vectors"}
        if isinstance(found, dict)
        else found  # doctor's own backends
        for name, found in output["backends"].items()
    }
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
    """Write ``FOLDER/gpu-check-GPU-DATE.json``; an earlier one of the same day and GPU is replaced."""
    gpu = report["machine"]["gpu"] or {"name": "none"}
    name = re.sub(r"[^a-z0-9]+", "-", gpu["name"].lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"gpu-check-{name}-{report['measured']}.json"
    write_atomic(path, (json.dumps(report, indent=2) + "\n").encode())
    return path
