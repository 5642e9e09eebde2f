"""Build a TensorRT engine from an ONNX graph, with one code path for TensorRT 10.3 to 11.

The builder is never given a precision: every network is strongly typed (a flag in 10, the only kind in 11), so each
layer computes in the type of the ONNX graph. After parsing, network.py compares TensorRT's network with the graph's
dtype histogram; lost half precision is an error.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....base.errors import DataError, FlamestError, StorageError
from ....base.files import read_regular, sha256_bytes, write_atomic
from ....base.progress import Progress
from ...bundle.graph_records import EngineOptions, Graph
from ..unavailable import Code, unavailable
from .cuda_calls import use_gpu
from .engine import MAX_TRUSTED_BYTES, Version, engine_version
from .network import check_network
from .package import TensorRtLog, import_tensorrt, make_builder, make_logger
from .profile import profiles
from .progress import BuildProgress, make_monitor
from .proof import OnnxFile, Proof
from .verdict import Verdict

MIB = 1 << 20
MAX_TIMINGS_BYTES = 1 << 30


@dataclass(frozen=True)
class EngineRequest:
    """An ONNX graph and the options of its engine; ``vocabulary``, ``source`` and ``device`` as in proof.Proof."""

    name: str  # of the graph, for messages
    onnx: Path
    onnx_sha256: str  # checked before the file is parsed
    graph: Graph
    options: EngineOptions
    timing_cache: Path | None = None  # kernels' times from earlier builds; read if it exists, and written
    vocabulary: int = 0
    source: OnnxFile | None = None
    device: int = 0
    arrived: Callable[[BuiltEngine], None] | None = None  # called with the engine before it is compared

    @property
    def proof(self) -> Proof:
        """All that the engine is compared with."""
        onnx = OnnxFile(str(self.onnx), self.onnx_sha256, self.graph)
        return Proof(self.name, onnx, self.options, self.vocabulary, self.source, self.device)


@dataclass(frozen=True)
class BuiltEngine:
    data: bytes  # native code: a change before it is loaded could run anything
    version: Version  # of TensorRT, from the engine's header
    seconds: float
    remarks: tuple[str, ...]  # for the person; not errors
    verdict: Verdict | None = None  # None: it was not compared
    unproved: FlamestError | None = None  # the reason, where it was to be compared


def build_engine(request: EngineRequest, progress: Progress) -> BuiltEngine:
    """Build the engine of one graph; ``progress`` counts ``progress.BUILD_STEPS`` steps.

    Raises the errors of TRT_MISSING, TRT_LIBS, TRT_NO_BUILDER, NO_DRIVER_OR_GPU, PLAN_BUILD (an error of the parser
    or the builder, with all their lines in the message) and PRECISION, UNTRUSTED when the ONNX file does not have
    ``onnx_sha256``, StorageError, KeyboardInterrupt when interrupted.
    """
    use_gpu(request.device)
    trt = import_tensorrt()
    log, remarks = TensorRtLog(), list[str]()
    logger = make_logger(trt, log)
    builder = make_builder(trt, logger, log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    # The parser owns weights that the network points to: it must live until the engine is built.
    parser = parse_onnx(trt, network, logger, request, log)
    check_network(trt, network, request.name, request.graph)
    config = make_config(trt, builder, request.options, request.name)
    _add_profiles(builder, config, request)
    cache = _attach_timing_cache(config, request.timing_cache, remarks)
    ended = BuildProgress(progress)
    monitor = make_monitor(trt, ended)
    config.progress_monitor = monitor
    started = time.monotonic()
    serialized = builder.build_serialized_network(network, config)
    seconds = time.monotonic() - started
    if ended.interrupted:
        raise KeyboardInterrupt
    if serialized is None:
        reason = log.errors or "TensorRT logged nothing"
        raise unavailable(Code.PLAN_BUILD, f"graph '{request.name}': TensorRT built no engine: {reason}").error()
    ended.finish()
    data = bytes(serialized)
    _save_timing_cache(config, request.timing_cache, remarks)
    del parser, cache
    return BuiltEngine(data, engine_version(data), seconds, tuple(remarks))


def parse_onnx(trt: Any, network: Any, logger: Any, request: EngineRequest, log: TensorRtLog) -> Any:
    """Fill ``network`` from the ONNX file's bytes; return the parser, or raise PLAN_BUILD with all its errors."""
    model = read_regular(request.onnx, largest=MAX_TRUSTED_BYTES)
    if sha256_bytes(model) != request.onnx_sha256:
        raise unavailable(Code.UNTRUSTED, f"{request.onnx} is not the file of the manifest").error()
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        evidence = f"graph '{request.name}' ({request.onnx.name}): {parser_errors(parser, log)}"
        raise unavailable(Code.PLAN_BUILD, evidence).error()
    return parser


def parser_errors(parser: Any, log: TensorRtLog) -> str:
    """Every error of TensorRT's ONNX parser, one per line."""
    lines = [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
    return "\n".join(["TensorRT's ONNX parser rejected it:", *(lines or [log.errors or "it gave no reason"])])


def _parser_error(error: Any) -> str:
    """Node, operator and reason; the fields are the same in 10.3 and 11."""
    where = f"node {error.node()} '{error.node_name()}' ({error.node_operator()})"
    word = str(error.code()).rpartition(".")[2]  # in 10.3 this one enumeration's ``name`` is a method
    return f"  {where}: {error.desc()} [{word}]"


def make_config(trt: Any, builder: Any, options: EngineOptions, name: str) -> Any:
    """The builder's configuration; every option is set, because defaults differ between versions of TensorRT."""
    config = builder.create_builder_config()
    flags: tuple[tuple[str, bool], ...] = (
        ("TF32", options.tf32),  # on by default in every version
        ("VERSION_COMPATIBLE", options.version_compatible),
        ("STRIP_PLAN", options.strip_weights),
        # Refitted with the same weights that it was built from: other refit modes cost speed, and REFIT is
        # known to drop biases of matmuls in 11.3 (its release notes).
        ("REFIT_IDENTICAL", options.strip_weights),
    )
    for flag, wanted in flags:
        apply: Callable[[Any], None] = config.set_flag if wanted else config.clear_flag
        apply(getattr(trt.BuilderFlag, flag))
    config.builder_optimization_level = options.opt_level
    verbosity = trt.ProfilingVerbosity
    config.profiling_verbosity = verbosity.DETAILED if options.detailed else verbosity.LAYER_NAMES_ONLY
    config.hardware_compatibility_level = _hardware_level(trt, options, name)
    if options.workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb * MIB)
    return config


def _hardware_level(trt: Any, options: EngineOptions, name: str) -> Any:
    levels = trt.HardwareCompatibilityLevel
    word = {"none": "NONE", "ampere+": "AMPERE_PLUS", "same-cc": "SAME_COMPUTE_CAPABILITY"}[options.hardware_compat]
    if not hasattr(levels, word):
        raise unavailable(
            Code.PLAN_BUILD,
            f"graph '{name}': --hardware-compat {options.hardware_compat} needs TensorRT 10.9 or newer, "
            f"here is {trt.__version__}",
            fix="leave --hardware-compat out, or pip install --upgrade tensorrt",
        ).error()
    return getattr(levels, word)


def _add_profiles(builder: Any, config: Any, request: EngineRequest) -> None:
    """Add an optimisation profile for every use of the graph, in the order of its uses."""
    for wanted in profiles(request.graph, request.options.max_batch, request.options.usual_batch):
        profile = builder.create_optimization_profile()
        where = f"graph '{request.name}', profile '{wanted.use}'"
        for sizes in wanted.inputs:
            try:
                profile.set_shape(sizes.name, sizes.smallest, sizes.usual, sizes.largest)
            except ValueError as error:
                evidence = f"{where}: TensorRT rejected the range of input {sizes.name}: {error}"
                raise unavailable(Code.PLAN_BUILD, evidence).error() from error
        if config.add_optimization_profile(profile) < 0:
            raise unavailable(Code.PLAN_BUILD, f"{where}: TensorRT rejected it").error()


def _attach_timing_cache(config: Any, path: Path | None, remarks: list[str]) -> Any:
    """Attach the timing cache, which must outlive the build. For another GPU or version it is not used."""
    if path is None:
        return None
    try:
        data = read_regular(path, largest=MAX_TIMINGS_BYTES) if path.exists() else b""
    except (DataError, StorageError) as error:
        raise StorageError(
            f"cannot read the timing cache: {error.message}",
            fix="remove the file, or name another one with --timing-cache",
        ) from error
    cache = config.create_timing_cache(data)
    if cache is not None and config.set_timing_cache(cache, False):
        return cache
    remarks.append(f"the timing cache {path} is of another GPU or TensorRT and was not used; it is replaced")
    cache = config.create_timing_cache(b"")
    config.set_timing_cache(cache, False)
    return cache


def _save_timing_cache(config: Any, path: Path | None, remarks: list[str]) -> None:
    """Write the timing cache. Without it later builds take longer, so a failure is a remark."""
    cache = config.get_timing_cache() if path is not None else None
    if cache is None or path is None:
        return
    try:
        write_atomic(path, bytes(cache.serialize()), mode=0o600)
    except (StorageError, OSError) as error:
        remarks.append(f"the timing cache was not saved: {error}")
