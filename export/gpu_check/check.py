"""One command for a machine with an NVIDIA GPU: build, verify, measure, decide every claim, and write one report.

Every step is the command that a person would type, as a process of its own: a step that fails or crashes is in the
report with its output, and the next one continues. The report is written after every step, so that Ctrl-C loses nothing
but the step that ran. Nothing in it names the machine.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec

from ... import __version__
from ...base.clock import utc_date
from ...base.errors import SettingsError
from ...base.files import write_atomic
from ...runtime.backends.machine import MachineFacts, gather_facts
from ...runtime.backends.tensorrt.supply import build_problems
from ...runtime.backends.unavailable import BackendUnavailable, Code, unavailable
from .plan import CUDA, GpuCheckRequest, plan_steps
from .report import make_report, write_report
from .step import Say, Step, StepPlan, run_step, skip_step

STAND_IN = "Stand-in GPU"  # the name of the GPU that a dry run sees
Runner = Callable[[StepPlan], Step]


def check_gpu(request: GpuCheckRequest, say: Say, *, facts: MachineFacts | None = None) -> tuple[Path, dict[str, Any]]:
    """Run every step and write the report; its path and content.

    Raises SettingsError at once, with nothing written, where there is no GPU (NO_DRIVER_OR_GPU), a package is
    missing (the first code of what is), or a dry run and a GPU do not go together (``stand_in``).
    """
    facts = gather_facts() if facts is None else facts
    require_gpu(facts)
    require_dry(request, facts)
    if not request.dry:
        require_packages(facts)
        request = replace(request, left_out=left_out(facts))
    measured = utc_date()  # of the beginning: the report's name does not change at midnight
    plans = plan_steps(request)
    minutes = sum(plan.usual_s for plan in plans) / 60
    say(f"{len(plans)} steps, estimated {minutes:.0f} minutes in all (never timed on a GPU; Ctrl-C keeps the report)")
    for name, why in request.left_out.items():
        say(f"{name} is left out: {why}")
    steps: list[Step] = []
    with contextlib.ExitStack() as stack:
        if request.work is None:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flamest-gpu-check-")))
        else:
            scratch = request.work.resolve()
            scratch.mkdir(parents=True, exist_ok=True)
        kept = KeptSteps(scratch, facts) if request.work is not None else None

        def run(plan: StepPlan) -> Step:
            step = None if kept is None else kept.find(plan)
            if step is not None:
                say(f"{plan.name}: done by an earlier run")
            else:
                step = run_step(plan, scratch, say)
                if kept is not None and step.ok:
                    kept.keep(step)
            steps.append(step)
            write_report(request.results, make_report(request, facts, steps, measured=measured, finished=False))
            return step

        run_steps(plans, run, steps, say)
    report = make_report(request, facts, steps, measured=measured)
    return write_report(request.results, report), report


def run_steps(plans: Sequence[StepPlan], run: Runner, steps: list[Step], say: Say) -> None:
    """Run the steps in order; one whose needed steps did not succeed is skipped. ``run`` adds to ``steps``."""
    for plan in plans:
        succeeded = {step.name for step in steps if step.ok}
        if missing := [name for name in plan.needs if name not in succeeded]:
            steps.append(skip_step(plan, missing[0], say))
        else:
            run(plan)


class KeptSteps:
    """Steps that succeeded in a work folder, so that an interrupted run continues there."""

    def __init__(self, folder: Path, facts: MachineFacts) -> None:
        self._folder = folder / "steps"
        self._folder.mkdir(exist_ok=True)
        gpu = facts.gpu.name if facts.gpu else ""
        self._made_by = f"{__version__} {facts.versions.get('tensorrt', '')} {facts.driver} {gpu}"

    def find(self, plan: StepPlan) -> Step | None:
        """The step as it was run before, by the same command, versions and GPU."""
        try:
            made_by, step = msgspec.json.decode(self._path(plan.name).read_bytes(), type=tuple[str, Step])
        except (OSError, msgspec.MsgspecError):
            return None
        return step if made_by == self._made_by and step.command == plan.typed else None

    def keep(self, step: Step) -> None:
        write_atomic(self._path(step.name), msgspec.json.encode((self._made_by, asdict(step))))

    def _path(self, name: str) -> Path:
        return self._folder / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}.json"


def require_gpu(facts: MachineFacts) -> None:
    if facts.gpu is None:
        raise unavailable(
            Code.NO_DRIVER_OR_GPU,
            f"gpu-check needs an NVIDIA GPU, and there is none here: {facts.driver_problem or 'no driver'}",
            fix="run it on the machine with the GPU: make gpu-check (nvidia-smi there shows what the driver sees); "
            "without a GPU: flamest-export check DIR, flamest-export bench DIR; to try the steps: make gpu-check-dry",
        ).error()


def require_dry(request: GpuCheckRequest, facts: MachineFacts) -> None:
    """Check that stand-ins are used in a dry run, and only there: their report must not look like a GPU's."""
    stand_in = facts.gpu is not None and facts.gpu.name == STAND_IN
    if request.dry == stand_in:
        return
    found = "a stand-in" if stand_in else "a real GPU"
    raise SettingsError(
        f"gpu-check {'--dry' if request.dry else 'without --dry'} found {found}",
        fix="with a GPU: make gpu-check; without one, to try the steps: make gpu-check-dry",
        code="stand_in",
    )


def require_packages(facts: MachineFacts) -> None:
    """Raise an error for all that is missing to build engines and to run them, before a long export."""
    problems = list(build_problems(facts))
    if problems:
        problems += _cuda_problems(facts)
        fixes = dict.fromkeys(problem.fix for problem in problems)
        evidence = "; ".join([problems[0].evidence, *(str(problem) for problem in problems[1:])])
        raise BackendUnavailable(
            problems[0].code, evidence, "; ".join((*fixes, f"or all at once in a checkout: {make_target(facts)}"))
        ).error()


def left_out(facts: MachineFacts) -> Mapping[str, str]:
    """Backends that this machine lacks and the check can do without, each with the reason."""
    problems = _cuda_problems(facts)
    return {CUDA: f"{problems[0]}; {problems[0].fix}"} if problems else {}


def _cuda_problems(facts: MachineFacts) -> list[BackendUnavailable]:
    if facts.ort_has_cuda:
        return []
    return [unavailable(Code.ORT_NO_CUDA, "ONNX Runtime's CUDA provider is not installed")]


def make_target(facts: MachineFacts) -> str:
    """The target that sets up an environment for the driver's CUDA."""
    return "make gpu-setup CUDA=12" if facts.cuda.partition(".")[0] == "12" else "make gpu-setup"
