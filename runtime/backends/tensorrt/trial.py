"""Opens a plan for the first time in a child process: TensorRT may crash, hang, or hand back nothing.

The child deserialises (and refits) the plan, makes a session of it and runs it three times at the usual
sizes, so that a captured graph is replayed too. However that ends, this process goes on, and what was seen
is the evidence. The module is the child's program as well: ``python -m flamest.runtime.backends.tensorrt.trial``.
"""

from __future__ import annotations

import os
import sys

import msgspec
import numpy as np

from ....base.errors import FlamestError
from ..child import run_child
from ..unavailable import BackendUnavailable, Code, unavailable
from .engine import EngineFile, load_engine

TRIAL_S = 300.0  # that deserialising, refitting and three runs may take
RUNS = 3  # plain, captured, replayed


class _Said(msgspec.Struct, frozen=True):
    """The child's last line. ``code`` is empty when all went well."""

    code: str = ""
    message: str = ""
    fix: str = ""


def try_engine(file: EngineFile, *, timeout_s: float = TRIAL_S) -> None:
    """Return when a child could open and run the plan; raise its error, or that of PLAN_REJECTED, when not."""
    job = msgspec.json.encode(file, enc_hook=str).decode()
    ended = run_child(["-m", "flamest.runtime.backends.tensorrt.trial", job], timeout_s=timeout_s)
    said = _last_line(ended.out)
    if said is not None and said.code:
        raise _error(said)
    if ended.problem or said is None:
        how = ended.problem or "no answer"
        what = f"graph '{file.graph}', {file.path.name}: the process that opened it first ended with {how}"
        raise unavailable(Code.PLAN_REJECTED, what).error()


def _last_line(out: str) -> _Said | None:
    lines = out.strip().splitlines()
    try:
        return msgspec.json.decode(lines[-1], type=_Said)
    except (IndexError, msgspec.DecodeError):
        return None


def _error(said: _Said) -> FlamestError:
    """The child's error again; one that has no code of backends/unavailable.py stays what it was to the ladder."""
    error = FlamestError(said.message, fix=said.fix, code=said.code)
    return BackendUnavailable.of(error).error()


def main() -> None:
    file = msgspec.json.decode(sys.argv[1], type=EngineFile, dec_hook=lambda kind, text: kind(text))
    try:
        _run(file)
        said = _Said()
    except FlamestError as error:
        said = _Said(error.code, error.message, error.fix)
    sys.stdout.write("\n" + msgspec.json.encode(said).decode() + "\n")
    sys.stdout.flush()
    # TensorRT's destructors were seen to crash without a driver: what there is to say has been said.
    os._exit(0)


def _run(file: EngineFile) -> None:
    from .cuda_device import CudaDevice
    from .package import import_tensorrt
    from .runner import TensorRtSession

    trt = import_tensorrt()
    opened = load_engine(trt, file)
    session = TensorRtSession(trt, opened, CudaDevice.open(), name=file.graph, where="trial")
    feeds = {name: np.zeros(shape, dtype) for name, (shape, dtype) in session.usual.items()}
    first = session.run(feeds)
    for _ in range(RUNS - 1):
        again = session.run(feeds)
        if any(first[name].tobytes() != again[name].tobytes() for name in first):
            said = f"graph '{file.graph}', {file.path.name}: the same inputs gave other outputs when run again"
            raise unavailable(Code.PLAN_REJECTED, said).error()


if __name__ == "__main__":
    main()
