"""First opening of an engine, in a child process: TensorRT may crash, hang, or return nothing, and the engine be wrong.

The child deserialises (and refits) the engine, makes a session of it and compares it with its ONNX graph. A child that
fails is the evidence of PLAN_REJECTED, and this process goes on. The module is the child's program as well.
"""

from __future__ import annotations

import os
from pathlib import Path

from ....base.channel import Channel, Failed, Message
from ....base.child_process import ChildEnded, ask_child
from ....base.errors import FlamestError
from ..unavailable import BackendUnavailable, Code, unavailable
from .cuda_calls import use_gpu
from .engine import EngineFile, load_engine
from .package import import_tensorrt
from .proof import Proof, prove_engine
from .verdict import Verdict

PROGRAM = "flamest.runtime.backends.tensorrt.trial"
TRIAL_S = 1800.0  # for deserialising, refitting and the comparison, most of which is the CPU's; a minute is usual


class Trial(Message, frozen=True):
    """The engine to open, as ``engine.EngineFile``, and what to compare it with."""

    graph: str
    path: str
    sha256: str
    onnx: str | None
    onnx_sha256: str
    host_code: bool
    proof: Proof

    @property
    def file(self) -> EngineFile:
        onnx = None if self.onnx is None else Path(self.onnx)
        return EngineFile(self.graph, Path(self.path), self.sha256, onnx, self.onnx_sha256, self.host_code)


class Tried(Message, frozen=True):
    """The engine ran and was compared."""

    verdict: Verdict


def try_engine(file: EngineFile, proof: Proof, *, timeout_s: float = TRIAL_S) -> Verdict:
    """Return the verdict of a child that opened and ran the engine; else raise the child's error or PLAN_REJECTED."""
    onnx = None if file.onnx is None else str(file.onnx)
    trial = Trial(file.graph, str(file.path), file.sha256, onnx, file.onnx_sha256, file.host_code, proof)
    try:
        answer = ask_child(PROGRAM, trial, Tried | Failed, timeout_s=timeout_s)
    except ChildEnded as ended:
        evidence = f"graph '{file.graph}', {file.path.name}: the process that opened it first ended with {ended}"
        raise unavailable(Code.PLAN_REJECTED, evidence).error() from ended
    if isinstance(answer, Failed):
        raise BackendUnavailable.of(answer.error()).error()
    verdict: Verdict = answer.verdict
    return verdict


def main() -> None:
    parent = Channel.to_parent()
    trial, _ = parent.receive(Trial)
    try:
        use_gpu(trial.proof.device)
        trt = import_tensorrt()
        parent.send(Tried(prove_engine(trt, load_engine(trt, trial.file), trial.proof, lambda text: None)))
    except FlamestError as error:
        parent.send(Failed.of(error))
    os._exit(0)  # TensorRT's destructors were seen to crash without a driver


if __name__ == "__main__":
    main()
