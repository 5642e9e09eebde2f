"""Engine files: their version, their loading, and refitting their weights.

An engine is native code: its hash is checked before it is opened. Where there is no driver,
``deserialize_cuda_engine`` ends the process (seen with the lean runtime of 11.4): ``backends/machine.py`` asks the
driver first, and trial.py opens an engine for the first time in a child.

TensorRT cannot be asked whether it would accept an engine without deserialising it, but the file's header is plain
bytes (NVIDIA's trtexec reads it in ``printPlanVersion``,
https://github.com/NVIDIA/TensorRT/blob/main/samples/common/sampleEngines.cpp): bytes 0 to 3 ``ftrt``, a serialisation
version 0 as four bytes, and in bytes 24 to 27 major, minor, patch and build of TensorRT.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ....base.errors import StorageError
from ....base.files import open_regular, read_regular, sha256_bytes
from ..unavailable import Code, unavailable
from .package import TensorRtLog, make_logger

TAG = b"ftrt"
HEADER_BYTES = 28
MAX_TRUSTED_BYTES = 1 << 36  # of an engine or a graph


@dataclass(frozen=True)
class EngineFile:
    """An engine's file, and its ONNX graph where it needs the weights."""

    graph: str  # name, for messages
    path: Path
    sha256: str
    onnx: Path | None = None  # the graph whose weights a stripped engine gets; None: it has its own
    onnx_sha256: str = ""
    host_code: bool = False  # a version-compatible engine contains code for this machine's processor


@dataclass(frozen=True, eq=False)
class LoadedEngine:
    """An engine with its log; ``kept`` must live as long as the engine."""

    engine: Any
    log: TensorRtLog
    kept: tuple[Any, ...]


def load_engine(trt: Any, file: EngineFile) -> LoadedEngine:
    """Deserialise an engine; refit a stripped one. Raises UNTRUSTED, PLAN_REJECTED, PLAN_REFIT, StorageError."""
    return deserialize_engine(trt, read_trusted(file.path, file.sha256), file)


def deserialize_engine(trt: Any, serialized: bytes, file: EngineFile) -> LoadedEngine:
    """``load_engine`` of bytes that are known to be right; ``file`` says what else there is to know."""
    log = TensorRtLog()
    logger = make_logger(trt, log)
    try:
        runtime = trt.Runtime(logger)
        if file.host_code:
            runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(serialized)
    except Exception as error:  # pybind11 turns TensorRT's C++ exceptions into several types
        raise _rejected_error(file, f"{type(error).__name__}: {error}", log) from error
    if engine is None:
        raise _rejected_error(file, "TensorRT returned no engine", log)
    if file.onnx is not None:
        refit(trt, engine, logger, log, file)
    return LoadedEngine(engine, log, (runtime, logger))


def refit(trt: Any, engine: Any, logger: Any, log: TensorRtLog, file: EngineFile) -> None:
    """Put the ONNX graph's weights into an engine that was built without weights."""
    assert file.onnx is not None
    model = read_trusted(file.onnx, file.onnx_sha256)
    try:
        refitter = trt.Refitter(engine, logger)
    except TypeError as error:  # pybind11: "factory function returned nullptr"
        reason = f"the engine takes no weights ({error}); was it built without --strip-weights?"
        raise _not_refitted_error(file, reason) from error
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_bytes(model):
        reasons = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise _not_refitted_error(file, "; ".join(reasons) or log.errors)
    if missing := refitter.get_missing_weights():
        raise _not_refitted_error(file, f"{len(missing)} weights are missing, the first is {missing[0]}")
    if not refitter.refit_cuda_engine():
        raise _not_refitted_error(file, log.errors)


def read_trusted(path: Path, sha256: str) -> bytes:
    """The file's bytes, checked against the hash; raises UNTRUSTED, StorageError, DataError ``not_a_file``."""
    data = read_regular(path, largest=MAX_TRUSTED_BYTES)
    if sha256_bytes(data) != sha256:
        raise unavailable(Code.UNTRUSTED, f"{path} is not the file whose SHA-256 is {sha256[:12]}…").error()
    return data


def _rejected_error(file: EngineFile, how: str, log: TensorRtLog) -> Exception:
    reason = f"{how}; TensorRT's log: {log.errors}" if log.errors else how
    return unavailable(Code.PLAN_REJECTED, f"graph '{file.graph}', {file.path.name}: {reason}").error()


def _not_refitted_error(file: EngineFile, reason: str) -> Exception:
    evidence = f"graph '{file.graph}', {file.path.name}: {reason or 'no reason given'}"
    return unavailable(Code.PLAN_REFIT, evidence).error()


class Version(NamedTuple):
    """``build`` is None where it is not known: a package may call itself 10.3.0 and its library be 10.3.0.26."""

    major: int
    minor: int
    patch: int
    build: int | None

    def __str__(self) -> str:
        return ".".join(str(part) for part in self if part is not None)

    @classmethod
    def parse(cls, text: str) -> Version:
        """From "10.16.1.11", "10.3.0", "11.4.0.106.post1"; raises ValueError for anything else."""
        parts = text.strip().split(".")
        if len(parts) < 3:
            raise ValueError(f"{text!r} is not a version of TensorRT, expected MAJOR.MINOR.PATCH or more")
        major, minor, patch = (int(part) for part in parts[:3])
        return cls(major, minor, patch, int(parts[3]) if len(parts) > 3 and parts[3].isdigit() else None)


def engine_version(engine: Path | bytes) -> Version:
    """The version of TensorRT that built ``engine``; nothing of it is executed.

    Raises the error of PLAN_HEADER when the file does not begin as an engine does, StorageError.
    """
    if isinstance(engine, bytes):
        name, head = "the engine", engine[:HEADER_BYTES]
    else:
        name = str(engine)
        try:
            with open_regular(engine) as file:
                head = file.read(HEADER_BYTES)
        except OSError as error:
            raise StorageError(
                f"cannot read {engine}: {error.strerror}",
                fix="check that this user may read it, or build it again: flamest-export engines DIR",
            ) from error
    if len(head) < HEADER_BYTES:
        raise unavailable(Code.PLAN_HEADER, f"{name} has {len(head)} bytes, expected at least {HEADER_BYTES}").error()
    if head[:4] != TAG:
        raise unavailable(Code.PLAN_HEADER, f"{name} begins with {head[:4]!r}, expected {TAG!r}").error()
    if (serialisation := int.from_bytes(head[4:8], "little")) != 0:
        evidence = f"{name} has serialisation version {serialisation}, this version of flamest reads 0 only"
        raise unavailable(Code.PLAN_HEADER, evidence).error()
    return Version(*head[24:28])


def version_problem(built: Version, here: Version, *, version_compatible: bool) -> str:
    """The reason why an engine of TensorRT ``built`` cannot run on TensorRT ``here``; empty when it can.

    Without ``version_compatible`` only the same version may run it. With it the same version or a newer one of the
    same major, and 11 runs engines of 10
    (https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/engine-compatibility.html).
    """
    if _known(built, here):
        return ""
    if not version_compatible:
        return f"built by TensorRT {built}, here is {here}; it was not built with --version-compatible"
    if built.major == here.major:
        return "" if built <= here else f"built by TensorRT {built}, here is the older {here}"
    if (built.major, here.major) == (10, 11):
        return ""
    return f"built by TensorRT {built}, here is {here}: another major version"


def _known(built: Version, here: Version) -> bool:
    """Equal in all known parts."""
    return built[:3] == here[:3] and (None in (built.build, here.build) or built.build == here.build)
