"""A release of flamest as processes: its commands, its coordinator, its agents, whatever release the tests run in."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WITHIN_S = 120.0  # for anything that is waited for; a busy machine takes half of it


@dataclass(frozen=True)
class Release:
    """``site``: a folder with the package ``flamest``; None for the code under test."""

    site: Path | None = None

    def environment(self) -> dict[str, str]:
        if self.site is None:
            return dict(os.environ)
        return {**os.environ, "PYTHONPATH": str(self.site)}

    def run(self, program: str, *words: str | Path) -> dict[str, Any]:
        """Run ``flamest-PROGRAM WORDS --json``; return its object. Raises AssertionError with its errors."""
        line = [sys.executable, "-m", f"flamest.{program}", *map(str, words), "--json"]
        done = subprocess.run(line, capture_output=True, text=True, check=False, env=self.environment())
        assert done.returncode == 0, f"{line}: {done.stderr}{done.stdout}"
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer

    def python(self, *words: str | Path) -> str:
        """Run Python with this release on its path; return what it prints."""
        line = [sys.executable, *map(str, words)]
        done = subprocess.run(line, capture_output=True, text=True, check=False, env=self.environment())
        assert done.returncode == 0, f"{line}: {done.stderr}"
        return done.stdout


@dataclass
class Running:
    """Daemons that run; all are ended with the block of ``running``."""

    logs: Path
    processes: list[tuple[str, subprocess.Popen[bytes], Path]] = field(default_factory=list)

    def start(self, release: Release, program: str, *words: str | Path) -> subprocess.Popen[bytes]:
        log = self.logs / f"{program}-{len(self.processes)}.log"
        line = [sys.executable, "-m", f"flamest.{program}", *map(str, words)]
        with log.open("wb") as file:
            process = subprocess.Popen(line, stdout=file, stderr=subprocess.STDOUT, env=release.environment())
        self.processes.append((program, process, log))
        return process

    def start_centre(self, release: Release, folder: Path) -> str:
        """Start a coordinator; return the address at which it listens."""
        written = folder / "state" / "address"
        written.unlink(missing_ok=True)
        self.start(release, "coordinator", "run", "--config", folder / "coordinator.toml")
        self.wait(written.exists, "the coordinator's start")
        return written.read_text().strip()

    def start_silo(self, release: Release, home: Path, address: str) -> subprocess.Popen[bytes]:
        """Start an agent that ends with the run."""
        settings = home / "agent.toml"
        settings.write_text(re.sub(r"(?m)^address = .*$", f'address = "{address}"', settings.read_text()))
        return self.start(release, "agent", "run", "--config", settings, "--once")

    def wait(self, done: Callable[[], bool], what: str) -> None:
        """Wait until ``done``; raises AssertionError with the logs when a daemon fails or it takes too long."""
        until = time.monotonic() + WITHIN_S
        while not done():
            failed = [name for name, process, _ in self.processes if process.poll() not in (None, 0)]
            assert not failed and time.monotonic() < until, f"{what}: failed {failed}\n{self.said()}"  # noqa: PT018
            time.sleep(0.05)

    def said(self) -> str:
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for _, _, log in self.processes)


@contextlib.contextmanager
def running(logs: Path) -> Iterator[Running]:
    logs.mkdir(parents=True, exist_ok=True)
    daemons = Running(logs)
    try:
        yield daemons
    finally:
        for _, process, _ in daemons.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for _, process, _ in daemons.processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
