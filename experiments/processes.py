"""FLAMeST's own commands as processes: run to their end, or kept running as daemons."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..base.errors import FlamestError, UnreachableError

Program = Literal["export", "agent", "coordinator"]
END_WITHIN_S = 30.0  # time for the daemons to end after SIGTERM
TAIL_LINES = 12  # of a failed process's log, shown to the user


class CommandFailed(FlamestError):
    """A command ended with an exit code other than 0."""

    code = "command_failed"
    error_code: str = ""  # of its JSON line, if there is one
    error_message: str = ""  # of its JSON line
    error_fix: str = ""  # of its JSON line
    exit_status: int = 1


def command_line(program: Program, arguments: Sequence[str | Path]) -> list[str]:
    """The command line that runs ``flamest-PROGRAM`` with this Python."""
    return [sys.executable, "-m", f"flamest.{program}", *map(str, arguments)]


def run_command(program: Program, *arguments: str | Path, quiet: bool = True) -> dict[str, Any]:
    """Run ``flamest-PROGRAM ARGUMENTS --json`` to its end and return its JSON object.

    With ``quiet`` its stderr is shown only on failure. Raises CommandFailed.
    """
    line = command_line(program, [*arguments, "--json"])
    stderr = subprocess.PIPE if quiet else None
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=stderr, text=True) as process:
        try:
            out, errors = process.communicate()
        except BaseException:  # including Ctrl-C: it removes what it has half done
            _end(process)
            raise
    done = subprocess.CompletedProcess(line, process.returncode, out, errors)
    if done.returncode != 0:
        output = (done.stderr or "").strip() or done.stdout.strip()
        fix = _error_field(done.stdout, "fix")
        failed = CommandFailed(
            f"flamest-{program} {arguments[0]} ended with status {done.returncode}: {output}",
            fix=fix or "see its output above",
        )
        failed.error_fix = fix
        failed.error_code = _error_field(done.stdout, "code")
        failed.error_message = _error_field(done.stdout, "message")
        failed.exit_status = done.returncode
        raise failed
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _end(process: subprocess.Popen[str]) -> None:
    """Ask a process to end; kill it when it does not."""
    process.terminate()
    try:
        process.wait(END_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _error_field(stdout: str, key: str) -> str:
    """Return ``key`` of a failed command's last line ``{"error": {code, message, fix}}``; empty without such a line."""
    try:
        return str(json.loads(stdout.splitlines()[-1])["error"][key])
    except (IndexError, ValueError, KeyError, TypeError):
        return ""


@dataclass(frozen=True)
class Daemon:
    """A running flamest-coordinator or flamest-agent and its log."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def check_running(self) -> None:
        """Raise CommandFailed with the end of the log if the process has ended with an error."""
        if self.process.poll() not in (None, 0):
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
            raise CommandFailed(
                f"{self.name} ended with status {self.process.returncode}:\n{tail}", fix=f"see {self.log}"
            )


@contextlib.contextmanager
def daemons() -> Iterator[Callable[[str, Path, Program, Sequence[str | Path]], Daemon]]:
    """Yield ``start(name, log, program, arguments)``; ends all started daemons at the exit."""
    started: list[Daemon] = []

    def start(name: str, log: Path, program: Program, arguments: Sequence[str | Path]) -> Daemon:
        with log.open("ab") as out:
            process = subprocess.Popen(
                command_line(program, arguments), stdout=out, stderr=out, stdin=subprocess.DEVNULL, env={**os.environ}
            )
        daemon = Daemon(name, process, log)
        started.append(daemon)
        return daemon

    try:
        yield start
    finally:
        for daemon in started:
            if daemon.process.poll() is None:
                daemon.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + END_WITHIN_S
        for daemon in started:
            try:
                daemon.process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                daemon.process.kill()
                daemon.process.wait()


def wait_until(ready: Callable[[], bool], what: str, *, seconds: float, watched: Sequence[Daemon] = ()) -> None:
    """Call ``ready`` a few times a second until it is true. Raises UnreachableError after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not ready():
        for daemon in watched:
            daemon.check_running()
        if time.monotonic() > deadline:
            raise UnreachableError(
                f"{what} did not happen within {seconds:.0f} s",
                fix="see the logs in the output folder; a slow machine may need another try",
            )
        time.sleep(0.2)
