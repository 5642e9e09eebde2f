"""Running what may crash in a process of its own: a broken runtime ends that process, and its end is evidence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TOLD = 2000  # characters of a child's last words that are kept


@dataclass(frozen=True)
class Ended:
    """How a child ended. ``problem`` is empty when it ended well."""

    out: str
    problem: str  # "signal SIGSEGV", "status 1", "no answer within 60 s"; with its last words


def run_child(
    arguments: Sequence[str], *, timeout_s: float, bare: bool = False, environment: dict[str, str] | None = None
) -> Ended:
    """Run this interpreter with ``arguments``; ``bare``: without site-packages, for scripts that need none.

    Waits at most ``timeout_s`` and then kills it. Raises nothing: not to start is a problem too.
    """
    command = [sys.executable, *(["-I", "-S"] if bare else []), *arguments]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=timeout_s,
            env={**child_environment(), **(environment or {})},
        )
    except subprocess.TimeoutExpired as ended:
        return Ended("", _with_words(f"no answer within {timeout_s:g} s", ended.stderr))
    except OSError as error:
        return Ended("", f"cannot start {sys.executable}: {error.strerror}")
    out = done.stdout.decode(errors="replace")
    if done.returncode == 0:
        return Ended(out, "")
    return Ended(out, _with_words(how_ended(done.returncode), done.stderr))


def child_environment() -> dict[str, str]:
    """This process's; the child imports what this process imports, wherever it starts."""
    root = str(Path(__file__).resolve().parents[3])
    known = [path for path in sys.path if path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys([*known, root]))}


def how_ended(status: int) -> str:
    """A process's exit status in words."""
    if status >= 0:
        return f"status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"


def _with_words(how: str, words: bytes | None) -> str:
    said = (words or b"").decode(errors="replace").strip()[-TOLD:]
    return f"{how}: {said}" if said else how
