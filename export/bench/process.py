"""The parent's end of a contestant's process (child.py)."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from types import TracebackType
from typing import Any

import msgspec

from ...base.errors import DataError, FlamestError
from .child import Contestant


class Refused(FlamestError):
    """The contestant said why it does not run, or its process ended; the contest goes on without it."""

    exit_code = DataError.exit_code
    code = "refused"


class Process:
    """A contestant that answers one question after the other; a context manager.

    Raises Refused with the child's own code, message and fix, from the constructor too.
    """

    def __init__(self, told: Contestant) -> None:
        self.told = told
        command = [sys.executable, "-m", "flamest.export.bench.child", msgspec.json.encode(told).decode()]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def ask(self, question: str, *arguments: Any) -> Any:
        """The result of ``Child.question(*arguments)``."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": question, "with": arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # what ended it is found below
        return self._answer()

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not pipe.closed:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Refused(f"its process ended: {self._ending()}", code="BACKEND_FAILED")
        said = json.loads(line)
        if "error" in said:
            error = said["error"]
            raise Refused(error["message"], fix=error["fix"], code=error["code"])
        return said["ok"]

    def _ending(self) -> str:
        status = self._process.wait()
        return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit code {status}"
