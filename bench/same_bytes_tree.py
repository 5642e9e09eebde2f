"""One of the two trees that ``same_bytes`` compares: its commands, as an installation would start them."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COMMAND_S = 1800.0  # a command that takes longer has hung
TAIL = 1500  # characters of a failed command's words that are shown
NOT_RUNNING = 69  # exit code of `status` when no daemon runs
# Sums in another order are other bytes: one thread each. Nothing is downloaded.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


class CommandFailed(Exception):
    """A command did not end as it should have."""


# What ends a scenario of a tree, and not the comparison: a command failed, or something is not where it should be.
FAILURES = (CommandFailed, subprocess.SubprocessError, OSError, LookupError, ValueError, sqlite3.Error)


@dataclass(frozen=True, eq=False)
class Tree:
    """A tree of the package and the folder in which its commands work. Both are in ``home``."""

    name: str  # before, after
    home: Path  # absolute; that of the other tree is as long, for messages that are cut at some length
    _running: set[subprocess.Popen[Any]] = field(default_factory=set)
    _stopped: threading.Event = field(default_factory=threading.Event)

    @property
    def parent(self) -> Path:
        """Of the folder ``flamest``: what goes on PYTHONPATH."""
        return self.home / "package"

    @property
    def work(self) -> Path:
        return self.home / "work"

    @property
    def scripts(self) -> dict[str, str]:
        """The console entry points, as this tree's own pyproject.toml has them."""
        project = tomllib.loads((self.parent / "flamest" / "pyproject.toml").read_text())["project"]
        return dict(project["scripts"])

    def check(self) -> None:
        """Raise CommandFailed unless processes of this tree find the package in it."""
        code = "import importlib.util as u; print(u.find_spec('flamest').origin)"
        found = subprocess.run(
            [sys.executable, "-P", "-c", code], env=self.environment(), cwd=self.work, capture_output=True, text=True
        )
        if Path(found.stdout.strip()).parent != self.parent / "flamest":
            raise CommandFailed(f"{self.name}: the package is taken from {found.stdout}{found.stderr}")

    def environment(self, *first: Path, **more: str) -> dict[str, str]:
        """``first``: folders before the tree on PYTHONPATH."""
        return {**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(map(str, (*first, self.parent))), **more}

    def line(self, command: str, *words: str | Path) -> list[str]:
        """Argument list that runs ``COMMAND WORDS`` from this tree."""
        module, function = self.scripts[command].split(":")
        code = f"import sys; sys.argv[0] = {command!r}; from {module} import {function}; {function}()"
        return [sys.executable, "-P", "-c", code, *map(str, words)]

    def run(self, command: str, *words: str | Path, status: int = 0) -> Any:
        """Run to the end with ``--json``; the object of the last line. CommandFailed with another exit status."""
        return json.loads(self.output_of(command, *words, "--json", status=status).splitlines()[-1])

    def output_of(self, command: str, *words: str | Path, status: int = 0) -> str:
        """Run to the end; what it wrote to stdout."""
        process = self._start(self.environment(), command, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            out, errors = (text.decode(errors="replace") for text in process.communicate(timeout=COMMAND_S))
        finally:
            process.kill()  # where it has hung
            process.wait()
            self._running.discard(process)
        stopped = process.returncode == NOT_RUNNING and words[0] == "status"  # it is asked after the run
        if process.returncode != status and not stopped:
            answer = (errors + out)[-TAIL:]
            raise CommandFailed(f"{command} {' '.join(map(str, words))} ended with {process.returncode}: {answer}")
        return out

    def stop(self) -> None:
        """End what runs; nothing is started any more."""
        self._stopped.set()
        for process in list(self._running):
            process.terminate()

    def _start(
        self, environment: Mapping[str, str], command: str, *words: str | Path, stdout: Any, stderr: Any
    ) -> subprocess.Popen[bytes]:
        if self._stopped.is_set():
            raise CommandFailed("stopped")
        line, nothing = self.line(command, *words), subprocess.DEVNULL
        process = subprocess.Popen(line, env=environment, cwd=self.work, stdin=nothing, stdout=stdout, stderr=stderr)
        self._running.add(process)
        return process

    @contextlib.contextmanager
    def daemons(self) -> Iterator[Callable[..., Daemon]]:
        """``start(log, environment, command, *words)``; what still runs at the end is ended."""
        started: list[Daemon] = []

        def start(log: Path, environment: Mapping[str, str], command: str, *words: str | Path) -> Daemon:
            with log.open("wb") as file:
                process = self._start(environment, command, *words, stdout=file, stderr=file)
            started.append(Daemon(process, log))
            return started[-1]

        try:
            yield start
        finally:
            for daemon in started:
                if daemon.process.poll() is None:
                    daemon.process.terminate()
            for daemon in started:
                daemon.process.wait()
                self._running.discard(daemon.process)


@dataclass(frozen=True)
class Daemon:
    """A running command and its log."""

    process: subprocess.Popen[bytes]
    log: Path

    def ended(self) -> bool:
        """Raises CommandFailed when it ended with an error."""
        status = self.process.poll()
        if status:
            raise CommandFailed(f"{self.log} ended with {status}: {self.log.read_text(errors='replace')[-TAIL:]}")
        return status == 0


def wait_until(done: Callable[[], bool], what: str, *, seconds: float) -> None:
    """Raises CommandFailed when it takes longer."""
    until = time.monotonic() + seconds
    while not done():
        if time.monotonic() > until:
            raise CommandFailed(f"{what} took more than {seconds:g} s")
        time.sleep(0.05)
