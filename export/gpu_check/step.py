"""A step of gpu-check: one command of this package as a process of its own, with a time limit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

_TAIL = 4000  # characters of a failed step's stderr
EXPORT, PROBE = "flamest.export", "flamest.export.gpu_check.probes"  # programs that steps run
_TYPED = {EXPORT: "flamest-export", PROBE: f"python -m {PROBE}"}


@dataclass(frozen=True)
class StepPlan:
    """A step to run. ``needs``: names of steps that must have succeeded before."""

    name: str
    words: tuple[str, ...]
    limit_s: float
    usual_s: float  # estimated, on a GPU machine; only for the time that is announced
    program: str = EXPORT
    needs: tuple[str, ...] = ()
    makes: str = ""  # folder that it makes: what an interrupted run left there is removed first
    continues: bool = False  # run again, once, after its limit: what was finished is found again
    private: frozenset[str] = frozenset()  # words that name this machine's folders

    @property
    def typed(self) -> str:
        """The command as a person types it; of a private word the last part."""
        shown = (Path(word).name if word in self.private else word for word in self.words)
        return " ".join((_TYPED[self.program], *shown))


@dataclass(frozen=True)
class Step:
    """One step that ran, or was skipped. ``output``: its JSON object; ``problem``: the end of its stderr."""

    name: str
    command: str
    exit_code: int | None  # negative: killed by that signal; None: it was not run
    seconds: float
    output: dict[str, Any]
    problem: str = ""
    late: bool = False  # ended by gpu-check after its limit

    @property
    def ok(self) -> bool:
        return self.exit_code == 0

    @property
    def skipped(self) -> bool:
        return self.exit_code is None


Say = Callable[[str], None]


def run_step(plan: StepPlan, scratch: Path, say: Say) -> Step:
    """Run the command in ``scratch``, where its bundles are; after the plan's limit it is killed, and has failed.

    One that continues is then run a second time.
    """
    if plan.makes:
        shutil.rmtree(scratch / plan.makes, ignore_errors=True)
    step = _run_once(plan, scratch, say)
    if not (step.late and plan.continues):
        return step
    again = _run_once(plan, scratch, say)
    return replace(again, seconds=step.seconds + again.seconds)


def _run_once(plan: StepPlan, scratch: Path, say: Say) -> Step:
    say(f"{plan.name}: {plan.typed}")
    started = time.monotonic()
    command = [sys.executable, "-m", plan.program, *plan.words, "--json"]
    # A session of its own: a step's own children (bench has one per backend) must end with it, or they keep the GPU.
    with subprocess.Popen(
        command, cwd=scratch, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        late = ""
        try:
            out, err = process.communicate(timeout=plan.limit_s)
        except subprocess.TimeoutExpired:
            late = f"\nended by gpu-check: not done within {plan.limit_s:g} s"
            _kill(process)
            out, err = process.communicate()
        except BaseException:  # Ctrl-C does not reach another session by itself
            _kill(process)
            raise
    seconds = time.monotonic() - started
    code = process.returncode
    problem = "" if code == 0 else (err[-_TAIL:] + late).strip().replace(str(scratch), ".")
    say(f"  exit code {code}, {seconds:.0f} s{late.replace(chr(10), ', ')}")
    return Step(plan.name, plan.typed, code, seconds, last_json(out), problem, bool(late))


def skip_step(plan: StepPlan, missing: str, say: Say) -> Step:
    """The step, not run because the step ``missing`` did not succeed."""
    say(f"{plan.name}: not run, because '{missing}' did not succeed")
    return Step(plan.name, plan.typed, None, 0.0, {}, f"not run, because '{missing}' did not succeed")


def _kill(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def last_json(stdout: str) -> dict[str, Any]:
    """The JSON object of the last line; empty when there is none."""
    lines = stdout.strip().splitlines()
    if not lines:
        return {}
    try:
        found = json.loads(lines[-1])
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
