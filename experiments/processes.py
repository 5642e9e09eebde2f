"""FLAMeST's own commands as real processes: run to their end, or kept running and ended in order."""

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

Room = Literal["export", "agent", "coordinator"]
END_WITHIN_S = 30.0  # what the daemons promise after SIGTERM
TAIL_LINES = 12  # of a failed process's log, shown to the person


class CommandFailed(FlamestError):
    """A command that was run here did not end with exit code 0."""

    code = "command_failed"
    reported: str = ""  # the error code that its JSON line gave, where it gave one
    said: str = ""  # its message there
    status: int = 1  # its exit code


def command_line(room: Room, arguments: Sequence[str | Path]) -> list[str]:
    return [sys.executable, "-m", f"flamest.{room}", *map(str, arguments)]


def run_command(room: Room, *arguments: str | Path, quiet: bool = True) -> dict[str, Any]:
    """Run ``flamest-ROOM ARGUMENTS --json`` to its end; its JSON object.

    With ``quiet`` its stderr is shown only on failure. Raises CommandFailed.
    """
    line = command_line(room, [*arguments, "--json"])
    stderr = subprocess.PIPE if quiet else None
    done = subprocess.run(line, stdout=subprocess.PIPE, stderr=stderr, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr or "").strip() or done.stdout.strip()
        failed = CommandFailed(f"flamest-{room} {arguments[0]} ended with status {done.returncode}: {said}")
        failed.reported, failed.said = _reported(done.stdout, "code"), _reported(done.stdout, "message")
        failed.status = done.returncode
        raise failed
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _reported(stdout: str, key: str) -> str:
    """``key`` of ``{"error": {"code": …, "message": …}}``, a failed command's last line; empty when there is none."""
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

    def must_run(self) -> None:
        """Raises CommandFailed with the end of its log when it has ended with an error."""
        if self.process.poll() not in (None, 0):
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
            raise CommandFailed(
                f"{self.name} ended with status {self.process.returncode}:\n{tail}", fix=f"see {self.log}"
            )


@contextlib.contextmanager
def daemons() -> Iterator[Callable[[str, Path, Room, Sequence[str | Path]], Daemon]]:
    """Yields ``start(name, log, room, arguments)``; all that it started are ended at the exit."""
    started: list[Daemon] = []

    def start(name: str, log: Path, room: Room, arguments: Sequence[str | Path]) -> Daemon:
        with log.open("ab") as out:
            process = subprocess.Popen(
                command_line(room, arguments), stdout=out, stderr=out, stdin=subprocess.DEVNULL, env={**os.environ}
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
        give_up = time.monotonic() + END_WITHIN_S
        for daemon in started:
            try:
                daemon.process.wait(max(give_up - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                daemon.process.kill()
                daemon.process.wait()


def wait_until(ready: Callable[[], bool], what: str, *, seconds: float, watched: Sequence[Daemon] = ()) -> None:
    """Ask ``ready`` a few times a second; UnreachableError when it stays false for ``seconds``."""
    give_up = time.monotonic() + seconds
    while not ready():
        for daemon in watched:
            daemon.must_run()
        if time.monotonic() > give_up:
            raise UnreachableError(f"{what} did not happen within {seconds:.0f} s")
        time.sleep(0.2)
