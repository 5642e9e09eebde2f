"""One command for a machine with an NVIDIA GPU: build, verify, measure, and one report to send back.

Every step is the command that a person would type, as a process of its own: a step that fails or crashes
stands in the report with what it said, and the next one goes on. Nothing in the report names the machine.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..base.files import write_atomic
from ..runtime.backends.facts import MachineFacts, gather_facts
from ..runtime.backends.refusals import Code, refuse

PRECISIONS = ("fp32", "fp16")
BACKENDS = ("onnxruntime", "tensorrt", "onnxruntime-cuda")  # the first is what the others are compared with
_TAIL = 4000  # characters of what a failed step said


@dataclass(frozen=True)
class GpuCheckRequest:
    results: Path  # folder of the report
    weights: str = "random:full"
    precisions: tuple[str, ...] = PRECISIONS
    repeats: int = 30
    clips: int = 16


@dataclass(frozen=True)
class Step:
    """One command. ``said``: its JSON object; ``problem``: the end of its stderr when it failed."""

    name: str
    command: tuple[str, ...]
    exit_code: int  # negative: killed by that signal
    seconds: float
    said: dict[str, Any]
    problem: str = ""


Runner = Callable[[str, Sequence[str]], Step]
Say = Callable[[str], None]


def check_gpu(request: GpuCheckRequest, say: Say, *, facts: MachineFacts | None = None) -> tuple[Path, dict[str, Any]]:
    """Run every step and write the report; its path and content.

    Raises NO_DRIVER_OR_GPU (SettingsError) at once where there is no GPU: nothing is written then.
    """
    facts = gather_facts() if facts is None else facts
    if facts.gpu is None:
        raise refuse(
            Code.NO_DRIVER_OR_GPU,
            f"gpu-check needs an NVIDIA GPU, and there is none here: {facts.driver_problem or 'no driver'}",
            fix="run it on the machine with the GPU: make gpu-check (nvidia-smi there shows what the driver sees); "
            "without a GPU: flamest-export check DIR, flamest-export bench DIR",
        ).error()
    with tempfile.TemporaryDirectory(prefix="flamest-gpu-check-") as scratch:
        steps = run_steps(request, lambda name, words: _run(name, words, Path(scratch), say))
    report = make_report(request, facts, steps)
    return write_report(request.results, report), report


def run_steps(request: GpuCheckRequest, run: Runner) -> list[Step]:
    """Doctor; then per precision: build, plans, check, verify, bench. Without a bundle its later steps are left out."""
    steps = [run("doctor", ("doctor",))]
    for precision in request.precisions:
        bundle = f"bundle-{precision}"
        form = ("--backend", "tensorrt", "--no-plans")
        export = (*form, "--weights", request.weights, "--precision", precision, "--out", bundle)
        built = run(f"{precision}: build", export)
        steps.append(built)
        if built.exit_code != 0:
            continue
        steps.append(run(f"{precision}: plans", ("plans", bundle)))  # when they fail, the other backends are measured
        backends = [word for name in BACKENDS for word in ("--backend", name)]
        sizes = ("--repeats", str(request.repeats), "--clips", str(request.clips))
        steps.append(run(f"{precision}: inspect", ("inspect", bundle)))
        steps.append(run(f"{precision}: check", ("check", bundle)))
        steps.append(run(f"{precision}: verify", ("verify", bundle)))
        steps.append(run(f"{precision}: bench", ("bench", bundle, *sizes, *backends)))
    return steps


def make_report(request: GpuCheckRequest, facts: MachineFacts, steps: Sequence[Step]) -> dict[str, Any]:
    """What happened, on what; ``ok`` when every step ended in 0 and no backend was refused."""
    refused = [
        f"{step.name}: {name}: {why['code']}"
        for step in steps
        for name, why in step.said.get("refused", {}).items()
        if step.name.endswith("bench")
    ]
    failed = [step.name for step in steps if step.exit_code != 0]
    return {
        "report": "gpu-check",
        "measured": time.strftime("%Y-%m-%d", time.gmtime()),
        "flamest": __version__,
        "ok": not failed and not refused,
        "failed": failed,
        "refused": refused,
        "weights": request.weights,
        "machine": describe_machine(facts),
        "steps": [
            {
                "name": step.name,
                "command": " ".join(("flamest-export", *step.command)),
                "exit_code": step.exit_code,
                "seconds": round(step.seconds, 1),
                "said": step.said,
                "problem": step.problem,
            }
            for step in steps
        ],
    }


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
    """``FOLDER/gpu-check-GPU-DATE.json``; an earlier one of the same day and GPU is replaced."""
    gpu = report["machine"]["gpu"] or {"name": "none"}
    name = re.sub(r"[^a-z0-9]+", "-", gpu["name"].lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"gpu-check-{name}-{report['measured']}.json"
    write_atomic(path, (json.dumps(report, indent=2) + "\n").encode())
    return path


def _run(name: str, words: Sequence[str], scratch: Path, say: Say) -> Step:
    """The command in ``scratch``, where its bundles are."""
    say(f"{name}: flamest-export {' '.join(words)}")
    started = time.monotonic()
    command = [sys.executable, "-m", "flamest.export", *words, "--json"]
    done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    said = _last_json(done.stdout)
    problem = "" if done.returncode == 0 else done.stderr[-_TAIL:].replace(str(scratch), ".")
    say(f"  exit code {done.returncode}, {seconds:.0f} s")
    return Step(name, tuple(words), done.returncode, seconds, said, problem)


def _last_json(stdout: str) -> dict[str, Any]:
    lines = stdout.strip().splitlines()
    if not lines:
        return {}
    try:
        said = json.loads(lines[-1])
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
