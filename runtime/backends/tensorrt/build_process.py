"""``build_engine`` in a child process: TensorRT may crash, and keeps gigabytes until its process ends.

The child sends its progress, then the engine or its error. The module is the child's program as well.
"""

from __future__ import annotations

import os
from pathlib import Path

from ....base.channel import Channel, Failed, Message
from ....base.child_process import ChildEnded, ChildProcess
from ....base.errors import FlamestError
from ....base.progress import Progress
from ...bundle.graph_records import EngineOptions, Graph
from ..unavailable import BackendUnavailable, Code, unavailable
from .builder import BuiltEngine, EngineRequest, build_engine
from .engine import engine_version

PROGRAM = "flamest.runtime.backends.tensorrt.build_process"
MAX_ENGINE_BYTES = 1 << 36  # bytes


class Build(Message, frozen=True):
    """The engine to build, as ``builder.EngineRequest``."""

    name: str
    onnx: str
    onnx_sha256: str
    graph: Graph
    options: EngineOptions
    timing_cache: str | None

    @property
    def request(self) -> EngineRequest:
        cache = None if self.timing_cache is None else Path(self.timing_cache)
        return EngineRequest(self.name, Path(self.onnx), self.onnx_sha256, self.graph, self.options, cache)


class Advanced(Message, frozen=True):
    """``steps`` more of ``progress.BUILD_STEPS`` are done."""

    steps: int


class Built(Message, frozen=True):
    """Payload: the engine."""

    seconds: float
    remarks: tuple[str, ...]


def build_engine_in_child(request: EngineRequest, progress: Progress) -> BuiltEngine:
    """Build as ``builder.build_engine``, in a child; a child that crashes is the error of PLAN_BUILD."""
    cache = None if request.timing_cache is None else str(request.timing_cache)
    build = Build(request.name, str(request.onnx), request.onnx_sha256, request.graph, request.options, cache)
    try:
        with ChildProcess(PROGRAM) as child:
            child.send(build)
            answer, payload = child.receive(Advanced | Built | Failed, largest_payload=MAX_ENGINE_BYTES)
            while isinstance(answer, Advanced):
                progress.advance(answer.steps)
                answer, payload = child.receive(Advanced | Built | Failed, largest_payload=MAX_ENGINE_BYTES)
    except ChildEnded as ended:
        evidence = f"graph '{request.name}': building the engine ended with {ended}"
        raise unavailable(Code.PLAN_BUILD, evidence).error() from ended
    if isinstance(answer, Failed):
        error = answer.error()
        raise BackendUnavailable.of(error).error() if error.code in Code.__members__ else error
    data = bytes(payload)
    return BuiltEngine(data, engine_version(data), answer.seconds, answer.remarks)


class _ProgressToParent:
    """Progress that the parent shows. Called from within TensorRT, where nothing may be raised."""

    def __init__(self, parent: Channel) -> None:
        self._parent = parent

    def advance(self, steps: int = 1) -> None:
        try:
            self._parent.send(Advanced(steps))
        except OSError:
            os._exit(1)  # the parent is gone

    def describe(self, text: str) -> None:
        pass


def main() -> None:
    parent = Channel.to_parent()
    build, _ = parent.receive(Build)
    try:
        built = build_engine(build.request, _ProgressToParent(parent))
    except FlamestError as error:
        parent.send(Failed.of(error))
        # TensorRT's destructors were seen to crash without a driver.
        os._exit(1)
    parent.send(Built(built.seconds, built.remarks), built.data)
    os._exit(0)


if __name__ == "__main__":
    main()
