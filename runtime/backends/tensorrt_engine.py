"""A plan's bytes become an engine. A plan is native code: its hash has been checked before, or it is not opened.

Where there is no driver, ``deserialize_cuda_engine`` ends the process (seen with the lean runtime of 11.4):
``facts.py`` asks the driver first, and ``trial.py`` opens a plan for the first time in a child.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...base.errors import StorageError
from ...base.files import sha256_bytes
from .refusals import Code, refuse
from .tensorrt_package import Log, make_logger


@dataclass(frozen=True)
class PlanFile:
    """One plan on the disk, and what belongs to it."""

    graph: str  # name, for messages
    plan: Path
    sha256: str
    onnx: Path | None = None  # the graph whose weights a stripped plan gets; None: it has its own
    onnx_sha256: str = ""
    host_code: bool = False  # a version-compatible plan brings code of its own for this machine's processor


@dataclass(frozen=True, eq=False)
class Engine:
    """``log`` and ``kept`` must live as long as the engine."""

    engine: Any
    log: Log
    kept: tuple[Any, ...]


def load_engine(trt: Any, file: PlanFile) -> Engine:
    """Deserialise and, where it is stripped, refit. Raises UNTRUSTED, PLAN_REJECTED, PLAN_REFIT, StorageError."""
    plan = read_trusted(file.plan, file.sha256)
    log = Log()
    logger = make_logger(trt, log)
    try:
        runtime = trt.Runtime(logger)
        if file.host_code:
            runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(plan)
    except Exception as error:  # pybind11 turns TensorRT's C++ exceptions into several types
        raise _rejected(file, f"{type(error).__name__}: {error}", log) from error
    if engine is None:
        raise _rejected(file, "TensorRT returned no engine", log)
    if file.onnx is not None:
        refit(trt, engine, logger, log, file)
    return Engine(engine, log, (runtime, logger))


def refit(trt: Any, engine: Any, logger: Any, log: Log, file: PlanFile) -> None:
    """Put the ONNX graph's weights into an engine that was built without."""
    assert file.onnx is not None
    model = read_trusted(file.onnx, file.onnx_sha256)
    try:
        refitter = trt.Refitter(engine, logger)
    except TypeError as error:  # pybind11: "factory function returned nullptr"
        raise _not_refitted(file, f"the plan takes no weights ({error}); built without --strip-weights?") from error
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_bytes(model):
        said = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise _not_refitted(file, "; ".join(said) or log.errors)
    if missing := refitter.get_missing_weights():
        raise _not_refitted(file, f"{len(missing)} weights are missing, the first is {missing[0]}")
    if not refitter.refit_cuda_engine():
        raise _not_refitted(file, log.errors)


def read_trusted(path: Path, sha256: str) -> bytes:
    """The file's bytes, which are those of the hash; raises UNTRUSTED, StorageError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    if sha256_bytes(data) != sha256:
        raise refuse(Code.UNTRUSTED, f"{path} is not the file whose SHA-256 is {sha256[:12]}…").error()
    return data


def _rejected(file: PlanFile, how: str, log: Log) -> Exception:
    said = f"{how}; TensorRT says: {log.errors}" if log.errors else how
    return refuse(Code.PLAN_REJECTED, f"graph '{file.graph}', {file.plan.name}: {said}").error()


def _not_refitted(file: PlanFile, said: str) -> Exception:
    return refuse(Code.PLAN_REFIT, f"graph '{file.graph}', {file.plan.name}: {said or 'no reason given'}").error()
