"""``build_engine`` in a child process, and the engine's comparison with its graph there.

TensorRT may crash, and keeps gigabytes until its process ends. The child sends its progress, the engine, then the
verdict; or its error. The module is the child's program as well.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from ....base.channel import Channel, Failed, Message
from ....base.child_process import ChildEnded, ChildProcess
from ....base.errors import FlamestError
from ....base.progress import Progress
from ..unavailable import BackendUnavailable, Code, unavailable
from .builder import BuiltEngine, EngineRequest, build_engine
from .engine import EngineFile, deserialize_engine, engine_version
from .package import import_tensorrt
from .proof import Proof, prove_engine
from .verdict import Verdict

PROGRAM = "flamest.runtime.backends.tensorrt.build_process"
MAX_ENGINE_BYTES = 1 << 36  # bytes


class Build(Message, frozen=True):
    """The engine to build, as ``builder.EngineRequest``."""

    proof: Proof
    timing_cache: str | None

    @property
    def request(self) -> EngineRequest:
        one, cache = self.proof, None if self.timing_cache is None else Path(self.timing_cache)
        where, graph = Path(one.onnx.path), one.onnx.graph
        return EngineRequest(
            one.name, where, one.onnx.sha256, graph, one.options, cache, one.vocabulary, one.source, one.device
        )


class Advanced(Message, frozen=True):
    """``steps`` more of ``progress.BUILD_STEPS`` are done."""

    steps: int


class Described(Message, frozen=True):
    """The child's present work, for the person."""

    text: str


class Built(Message, frozen=True):
    """Payload: the engine. A ``Compared`` follows."""

    seconds: float
    remarks: tuple[str, ...]


class Compared(Message, frozen=True):
    """The engine that was built, compared with its graph."""

    verdict: Verdict


def build_engine_in_child(request: EngineRequest, progress: Progress) -> BuiltEngine:
    """Build as ``builder.build_engine``, in a child, and compare the engine there.

    ``request.arrived`` is called with the engine before it is compared. A child that crashes while it builds is the
    error of PLAN_BUILD. The verdict may be that the engine is wrong; where there is none the engine's ``unproved`` is
    the reason, PLAN_REJECTED for a child that crashed with it.
    """
    cache = None if request.timing_cache is None else str(request.timing_cache)
    built: BuiltEngine | None = None
    try:
        with ChildProcess(PROGRAM) as child:
            child.send(Build(request.proof, cache))
            while True:
                answer, payload = child.receive(
                    Advanced | Described | Built | Compared | Failed, largest_payload=MAX_ENGINE_BYTES
                )
                if isinstance(answer, Advanced):
                    progress.advance(answer.steps)
                elif isinstance(answer, Described):
                    progress.describe(answer.text)
                elif isinstance(answer, Built):
                    data = bytes(payload)
                    built = BuiltEngine(data, engine_version(data), answer.seconds, answer.remarks)
                    if request.arrived is not None:
                        request.arrived(built)
                else:
                    break
    except ChildEnded as ended:
        if built is not None:
            return dataclasses.replace(built, unproved=_crash_error(request.name, ended))
        evidence = f"graph '{request.name}': building the engine ended with {ended}"
        raise unavailable(Code.PLAN_BUILD, evidence).error() from ended
    if isinstance(answer, Failed):
        error = answer.error()
        error = BackendUnavailable.of(error).error() if error.code in Code.__members__ else error
        if built is None:
            raise error
        return dataclasses.replace(built, unproved=error)
    if built is None:
        raise unavailable(Code.PLAN_BUILD, f"graph '{request.name}': the child compared what it had not built").error()
    return dataclasses.replace(built, verdict=answer.verdict)


def _crash_error(name: str, ended: ChildEnded) -> FlamestError:
    evidence = f"graph '{name}': the engine was built, and the process that ran it first ended with {ended}"
    return unavailable(Code.PLAN_REJECTED, evidence).error()


class ProgressToParent:
    """Progress that the parent shows. Called from within TensorRT, where nothing may be raised."""

    def __init__(self, parent: Channel) -> None:
        self._parent = parent

    def advance(self, steps: int = 1) -> None:
        self._send(Advanced(steps))

    def describe(self, text: str) -> None:
        self._send(Described(text))

    def _send(self, message: Message) -> None:
        try:
            self._parent.send(message)
        except OSError:
            os._exit(1)  # the parent is gone


def main() -> None:
    parent = Channel.to_parent()
    build, _ = parent.receive(Build)
    request, progress = build.request, ProgressToParent(parent)
    try:
        built = build_engine(request, progress)
        parent.send(Built(built.seconds, built.remarks), built.data)
        parent.send(Compared(compare_built(request, built, progress)))
    except FlamestError as error:
        parent.send(Failed.of(error))
        # TensorRT's destructors were seen to crash without a driver.
        os._exit(1)
    os._exit(0)


def compare_built(request: EngineRequest, built: BuiltEngine, progress: Progress) -> Verdict:
    """Open the engine that this process built, and compare it with its graph."""
    trt = import_tensorrt()
    stripped = request.options.strip_weights
    file = EngineFile(
        request.name, Path("the new engine"), "", request.onnx if stripped else None, request.onnx_sha256,
        host_code=request.options.version_compatible,
    )  # fmt: skip
    return prove_engine(trt, deserialize_engine(trt, built.data, file), request.proof, progress.describe)


if __name__ == "__main__":
    main()
