"""A step of gpu-check: one command of flamest-export as a process of its own, with a time limit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# No step was timed on a GPU yet. An hour is meant to be far beyond the slowest (the engines of four graphs, or a full
# export on few cores), and soon enough for somebody who waits for a GPU that hangs.
STEP_S = 3600.0
_TAIL = 4000  # characters of a failed step's stderr


@dataclass(frozen=True)
class Step:
    """One command. ``output``: its JSON object; ``problem``: the end of its stderr when it failed."""

    name: str
    command: tuple[str, ...]
    exit_code: int  # negative: killed by that signal
    seconds: float
    output: dict[str, Any]
    problem: str = ""


Say = Callable[[str], None]


def run_step(name: str, words: Sequence[str], scratch: Path, say: Say, *, limit_s: float = STEP_S) -> Step:
    """The command in ``scratch``, where its bundles are; after ``limit_s`` it is killed, and has failed."""
    say(f"{name}: flamest-export {' '.join(words)}")
    started = time.monotonic()
    command = [sys.executable, "-m", "flamest.export", *words, "--json"]
    # A session of its own: a step's own children (bench has one per backend) must end with it, or they keep the GPU.
    with subprocess.Popen(
        command, cwd=scratch, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        late = ""
        try:
            out, err = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            late = f"\nended by gpu-check: not done within {limit_s:g} s"
            _kill(process)
            out, err = process.communicate()
        except BaseException:  # Ctrl-C does not reach another session by itself
            _kill(process)
            raise
    seconds = time.monotonic() - started
    code = process.returncode
    problem = "" if code == 0 else (err[-_TAIL:] + late).strip().replace(str(scratch), ".")
    say(f"  exit code {code}, {seconds:.0f} s{late.replace(chr(10), ', ')}")
    return Step(name, tuple(words), code, seconds, last_json(out), problem)


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
