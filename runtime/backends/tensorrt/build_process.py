"""``build_engine`` in a process of its own: TensorRT may crash, and it keeps gigabytes until its process ends.

The child writes the plan to a file and what happens to a pipe, one JSON object a line: ``{"steps": 3}``, then
``{"built": …}`` or ``{"error": …}``. A child that ends without either crashed; its last words are the evidence.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec

from ....base.errors import FlamestError
from ....base.progress import Progress
from ...bundle.records import EngineOptions, Graph
from ..child import child_environment, how_ended
from ..unavailable import BackendUnavailable, Code, unavailable
from .builder import BuiltEngine, EngineRequest, build_engine
from .engine import engine_version

LAST_WORDS = 2000  # characters of a child's stderr that are kept
PATIENCE_S = 10.0  # from asking a child to end to killing it


class _Job(msgspec.Struct, frozen=True):
    name: str
    onnx: str
    onnx_sha256: str
    graph: Graph
    options: EngineOptions
    timing_cache: str | None


class _Built(msgspec.Struct, frozen=True):
    seconds: float
    remarks: tuple[str, ...]


class _Error(msgspec.Struct, frozen=True):
    code: str
    message: str
    fix: str


class _Said(msgspec.Struct, frozen=True):
    """One line of the child."""

    steps: int = 0
    built: _Built | None = None
    error: _Error | None = None


def build_engine_in_child(request: EngineRequest, progress: Progress) -> BuiltEngine:
    """As ``plan_build.build_engine``, in a child; a child that crashes is the error of PLAN_BUILD."""
    with tempfile.TemporaryDirectory(prefix="flamest-plan-") as private:  # mode 0700
        out = Path(private, "plan")
        cache = None if request.timing_cache is None else str(request.timing_cache)
        job = _Job(
            request.name, str(request.onnx.resolve()), request.onnx_sha256, request.graph, request.options, cache
        )
        said, problem = _run(job, out, progress)
        if said.error is not None:
            raise _raised(said.error)
        if said.built is None:
            raise unavailable(
                Code.PLAN_BUILD, f"graph '{request.name}': building the plan ended with {problem}"
            ).error()
        data = out.read_bytes()
    return BuiltEngine(data, engine_version(data), said.built.seconds, said.built.remarks)


def _run(job: _Job, out: Path, progress: Progress) -> tuple[_Said, str]:
    """The child's last line, and how it ended."""
    last = _Said()
    attention_mode, writing = os.pipe()
    with tempfile.TemporaryFile() as words, os.fdopen(attention_mode, "rb") as lines:
        with _child([str(out), str(writing)], words, writing) as child:
            os.close(writing)
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it ended already: its words say why
                child.stdin.write(msgspec.json.encode(job))
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()
            for line in lines:
                last = msgspec.json.decode(line, type=_Said)
                if last.steps:
                    progress.advance(last.steps)
            status = child.wait()
        words.seek(0)
        text = words.read().decode(errors="replace").strip()[-LAST_WORDS:]
    return last, f"{how_ended(status)}: {text}" if text else how_ended(status)


@contextlib.contextmanager
def _child(arguments: list[str], words: IO[bytes], writing: int) -> Iterator[subprocess.Popen[bytes]]:
    """A child that does not outlive the block, however it ends."""
    child = subprocess.Popen(
        [sys.executable, "-m", __spec__.name, *arguments],
        stdin=subprocess.PIPE,
        stdout=words,
        stderr=words,
        pass_fds=(writing,),
        env=child_environment(),
    )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _raised(said: _Error) -> FlamestError:
    """The child's error again, of its own class where its code is one of backends/unavailable.py."""
    if said.code in Code.__members__:
        code = Code(said.code)
        return BackendUnavailable(code, said.message.removeprefix(f"{code}: "), said.fix).error()
    return FlamestError(said.message, fix=said.fix, code=said.code)


class _Pipe:
    """Progress that the parent reads. Called from within TensorRT, where nothing may be raised."""

    def __init__(self, writing: int) -> None:
        self._writing = writing

    def advance(self, steps: int = 1) -> None:
        self.say(_Said(steps=steps))

    def describe(self, text: str) -> None:
        pass

    def say(self, said: _Said) -> None:
        try:
            os.write(self._writing, msgspec.json.encode(said) + b"\n")
        except BrokenPipeError:
            os._exit(1)  # nobody waits for this plan any more


def main() -> None:
    out, writing = Path(sys.argv[1]), int(sys.argv[2])
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=_Job)
    pipe = _Pipe(writing)
    cache = None if job.timing_cache is None else Path(job.timing_cache)
    request = EngineRequest(job.name, Path(job.onnx), job.onnx_sha256, job.graph, job.options, cache)
    try:
        built = build_engine(request, pipe)
    except FlamestError as error:
        pipe.say(_Said(error=_Error(error.code, error.message, error.fix)))
        # TensorRT's destructors were seen to crash without a driver: what there is to say has been said.
        os._exit(1)
    out.write_bytes(built.data)
    pipe.say(_Said(built=_Built(built.seconds, built.remarks)))
    os._exit(0)


if __name__ == "__main__":
    main()
