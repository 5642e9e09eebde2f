"""First opening of an engine, in a child process: TensorRT may crash, hang, or return nothing.

The child deserialises (and refits) the engine, makes a session of it and runs it three times at the usual sizes, so
that a captured CUDA graph is replayed too. A child that fails is the evidence of PLAN_REJECTED, and this process goes
on. The module is the child's program as well.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ....base.channel import Channel, Failed, Message
from ....base.child_process import ChildEnded, ask_child
from ....base.errors import FlamestError
from ..unavailable import BackendUnavailable, Code, unavailable
from .engine import EngineFile, load_engine

PROGRAM = "flamest.runtime.backends.tensorrt.trial"
TRIAL_S = 300.0  # for deserialising, refitting and three runs
RUNS = 3  # plain, captured, replayed


class Trial(Message, frozen=True):
    """The engine to open, as ``engine.EngineFile``."""

    graph: str
    path: str
    sha256: str
    onnx: str | None
    onnx_sha256: str
    host_code: bool

    @property
    def file(self) -> EngineFile:
        onnx = None if self.onnx is None else Path(self.onnx)
        return EngineFile(self.graph, Path(self.path), self.sha256, onnx, self.onnx_sha256, self.host_code)


class Passed(Message, frozen=True):
    """The engine ran and gave the same outputs each time."""


def try_engine(file: EngineFile, *, timeout_s: float = TRIAL_S) -> None:
    """Return when a child could open and run the engine; otherwise raise the child's error or PLAN_REJECTED."""
    onnx = None if file.onnx is None else str(file.onnx)
    trial = Trial(file.graph, str(file.path), file.sha256, onnx, file.onnx_sha256, file.host_code)
    try:
        answer = ask_child(PROGRAM, trial, Passed | Failed, timeout_s=timeout_s)
    except ChildEnded as ended:
        evidence = f"graph '{file.graph}', {file.path.name}: the process that opened it first ended with {ended}"
        raise unavailable(Code.PLAN_REJECTED, evidence).error() from ended
    if isinstance(answer, Failed):
        raise BackendUnavailable.of(answer.error()).error()


def main() -> None:
    parent = Channel.to_parent()
    trial, _ = parent.receive(Trial)
    try:
        run_trial(trial.file)
    except FlamestError as error:
        parent.send(Failed.of(error))
    else:
        parent.send(Passed())
    os._exit(0)  # TensorRT's destructors were seen to crash without a driver


def run_trial(file: EngineFile) -> None:
    """Open the engine and run it ``RUNS`` times; raises PLAN_REJECTED when the outputs differ."""
    from .cuda_device import CudaDevice
    from .package import import_tensorrt
    from .runner import TensorRtSession

    trt = import_tensorrt()
    loaded = load_engine(trt, file)
    session = TensorRtSession(trt, loaded, CudaDevice.open(), name=file.graph, where="trial")
    feeds = {name: np.zeros(shape, dtype) for name, (shape, dtype) in session.usual.items()}
    first = session.run(feeds)
    for _ in range(RUNS - 1):
        repeated = session.run(feeds)
        if any(first[name].tobytes() != repeated[name].tobytes() for name in first):
            evidence = f"graph '{file.graph}', {file.path.name}: the same inputs gave other outputs when run again"
            raise unavailable(Code.PLAN_REJECTED, evidence).error()


if __name__ == "__main__":
    main()
