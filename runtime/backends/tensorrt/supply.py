"""Build this machine's engines and store them: in the bundle, or in this node's cache where the bundle is signed.

Each engine is stored as soon as it is built, so that finished ones remain when a later graph fails, and the next run
builds only the others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from ....base.errors import FlamestError, StorageError
from ....base.files import sha256_bytes
from ....base.progress import Progress
from ...bundle.graph_records import EngineOptions, EngineRecord, Graph
from ...bundle.manifest import Manifest
from ...bundle.opening import Bundle
from ...bundle.signature import SIGNATURE_FILE
from ..machine import MachineFacts, no_gpu_reason, old_driver_reasons
from ..unavailable import BackendUnavailable, Code, unavailable
from .build_process import build_engine_in_child
from .builder import BuiltEngine, EngineRequest
from .bundled import put_engine, with_engine
from .cache import CachedEngine, EngineCache, EngineKey
from .engine import EngineFile
from .profile import BATCH, settled_options
from .progress import BUILD_STEPS
from .verdict import Verdict
from .verdicts import ProvedEngine, keep_verdict, make_proof, standing_verdict, verdict_key

Build = Callable[[EngineRequest, Progress], BuiltEngine]
Judge = Callable[[ProvedEngine, EngineCache | None, Callable[[str], None]], Verdict]


@dataclass(frozen=True)
class BuildTarget:
    """This machine's facts, the build options, and the cache that engines are built for."""

    facts: MachineFacts
    options: EngineOptions
    cache: EngineCache
    timing_cache: Path | None = None  # None: the cache's own for this TensorRT and GPU
    build: Build = build_engine_in_child
    judge: Judge = standing_verdict
    again: bool = False  # also build engines that exist already

    def key(self, manifest: Manifest, name: str) -> EngineKey:
        """The key of graph ``name``'s engine here; raises the first of ``build_problems``."""
        graph, gpu = manifest.graphs[name], self.facts.gpu
        # TF32 would pick other keyframes (docs/decisions/033-fractions-for-keyframes.md).
        chosen = msgspec.structs.replace(self.options, tf32=self.options.tf32 and name != "keyframes")
        options = settled_options(chosen, graph, gpu.memory_mb if gpu else 0)
        return engine_key(self.facts, manifest.files[graph.file].sha256, options)


@dataclass(frozen=True)
class EngineResult:
    """The engine of one graph, found or built."""

    graph: str
    path: Path
    bytes: int
    record: EngineRecord
    fresh: bool  # built now; else it existed already
    remarks: tuple[str, ...] = ()
    verdict: Verdict | None = None


def local_build_options(manifest: Manifest, name: str) -> EngineOptions:
    """Options of engines that a node builds for itself: the exporter's where they change results, else the default."""
    engines = manifest.graphs[name].engines
    tf32 = engines[0].options.tf32 if engines else manifest.tf32
    return EngineOptions(tf32=tf32 and name != "keyframes")


def cached_engine(bundle: Bundle, name: str, target: BuildTarget, progress: Progress) -> CachedEngine:
    """This node's engine of graph ``name``, from the cache, or built now (minutes) and added to it.

    ``progress`` counts ``progress.BUILD_STEPS``. Raises the errors of ``build_engine``, those of comparing a new one,
    and ENGINE_WRONG for one that does not compute what the graph does. The engine is kept then, and not built again at
    the next start.
    """
    key = target.key(bundle.manifest, name)
    if not target.again and (kept := target.cache.find(key)) is not None:
        progress.advance(BUILD_STEPS)
        return kept
    made = make_engine(bundle, name, key, target, progress)
    return CachedEngine(made.record, made.data)


def ensure_cached_engine(bundle: Bundle, name: str, target: BuildTarget, progress: Progress) -> EngineResult:
    """Make sure that the cache holds this node's engine of graph ``name``, and that it is right."""
    key = target.key(bundle.manifest, name)
    there = not target.again and target.cache.find(key) is not None
    kept = cached_engine(bundle, name, target, progress)
    path = target.cache.path(key)
    verdict = verdict_on(bundle, kept.record, EngineOnDisk(name, path, sha256_bytes(kept.data)), target, progress)
    return EngineResult(name, path, len(kept.data), kept.record, fresh=not there, verdict=verdict)


def ensure_bundled_engine(
    bundle: Bundle, name: str, target: BuildTarget, progress: Progress
) -> tuple[Bundle, EngineResult]:
    """Add this machine's engine of graph ``name`` to the bundle folder unless it holds it; return the new bundle.

    An engine that waits in the cache, because it could not be compared when it was built, is compared and added. Raises
    the errors of ``build_engine`` and of comparing, and ENGINE_WRONG for an engine that does not compute what the graph
    does; a new one is not added then.
    """
    manifest = bundle.manifest
    key, graph = target.key(manifest, name), manifest.graphs[name]
    if not target.again and (record := find_engine(name, graph, key)) is not None:
        progress.advance(BUILD_STEPS)
        file, path = manifest.files[record.file], bundle.path / record.file
        verdict = verdict_on(bundle, record, EngineOnDisk(name, path, file.sha256), target, progress)
        return bundle, EngineResult(name, path, file.bytes, record, fresh=False, verdict=verdict)
    waiting = None if target.again else target.cache.find(key)
    if waiting is None:
        made = make_engine(bundle, name, key, target, progress)
    else:
        progress.advance(BUILD_STEPS)
        engine = EngineOnDisk(name, target.cache.path(key), sha256_bytes(waiting.data))
        verdict = verdict_on(bundle, waiting.record, engine, target, progress)
        made = MadeEngine(waiting.record, waiting.data, verdict)
    manifest = with_engine(manifest, name, made.record, made.data)
    put_engine(bundle.path, made.record.file, made.data, manifest)
    with contextlib.suppress(StorageError):
        target.cache.remove(key)
    path = bundle.path / made.record.file
    supplied = EngineResult(name, path, len(made.data), made.record, waiting is None, made.remarks, made.verdict)
    return replace(bundle, manifest=manifest), supplied


@dataclass(frozen=True)
class EngineOnDisk:
    """The file of an engine of graph ``name``."""

    name: str
    path: Path
    sha256: str


def proved_engine(bundle: Bundle, record: EngineRecord, engine: EngineOnDisk, facts: MachineFacts) -> ProvedEngine:
    """An engine's file, and all that is needed to judge it here."""
    proof = make_proof(bundle, engine.name, record.options, device=facts.device)
    stripped = record.options.strip_weights
    file = EngineFile(
        graph=engine.name,
        path=engine.path,
        sha256=engine.sha256,
        onnx=Path(proof.onnx.path) if stripped else None,
        onnx_sha256=proof.onnx.sha256 if stripped else "",
        host_code=record.options.version_compatible,
    )
    return ProvedEngine(file, verdict_key(facts, engine.sha256, proof.onnx.sha256), proof)


def verdict_on(
    bundle: Bundle, record: EngineRecord, engine: EngineOnDisk, target: BuildTarget, progress: Progress
) -> Verdict:
    """The verdict on an engine that was there already; raises ENGINE_WRONG."""
    proved = proved_engine(bundle, record, engine, target.facts)
    verdict = target.judge(proved, target.cache, progress.describe)
    if verdict.wrong:
        raise verdict.error(engine.name, engine.path.name)
    return verdict


MOST_SMALLER = 4  # a batch that does not fit is divided by this
READ = "read"  # a use that another one covers: reading a caption's first tokens


@dataclass(frozen=True)
class MadeEngine:
    """A new engine; its ``record`` may have a smaller largest batch than was asked for."""

    record: EngineRecord
    data: bytes
    verdict: Verdict | None
    remarks: tuple[str, ...] = ()


def make_engine(bundle: Bundle, name: str, key: EngineKey, target: BuildTarget, progress: Progress) -> MadeEngine:
    """Build an engine, keep it in the cache as soon as it is there, and compare it.

    One that could not be compared where it was built is tried again in a process of its own, where the builder holds no
    memory. Where that lacks memory too, the engine is built for smaller batches.
    """
    options, remarks = key.options, tuple[str, ...]()
    while True:
        try:
            made = _make_once(bundle, name, key, options, target, progress)
            return replace(made, remarks=(*remarks, *made.remarks))
        except FlamestError as error:
            fewer = _smaller_batch(bundle.manifest.graphs[name], options)
            if error.code != Code.GPU_MEMORY.value or fewer is None:
                raise
            remark = f"built for batches up to {fewer}: the GPU's memory did not hold {options.max_batch}"
        progress.describe(f"graph {name}: {remark}")
        options, remarks = msgspec.structs.replace(options, max_batch=fewer), (remark,)


def _smaller_batch(graph: Graph, options: EngineOptions) -> int | None:
    fewer = (options.max_batch or 0) // MOST_SMALLER
    return fewer if BATCH in graph.axes and fewer >= max(1, graph.axes[BATCH].smallest) else None


def _make_once(
    bundle: Bundle, name: str, key: EngineKey, options: EngineOptions, target: BuildTarget, progress: Progress
) -> MadeEngine:
    arrived: list[BuiltEngine] = []

    def keep(built: BuiltEngine) -> None:
        arrived.append(built)
        with contextlib.suppress(StorageError):  # without it a failure costs another build
            target.cache.keep(key, record_engine(name, built, key, target.facts, options), built.data)

    proof = make_proof(bundle, name, options, device=target.facts.device)
    request = EngineRequest(
        name, bundle.graph(name), key.onnx_sha256, proof.onnx.graph, options,
        target.timing_cache or target.cache.timings(key.tensorrt, key.gpu), proof.vocabulary, proof.source,
        proof.device, keep,
    )  # fmt: skip
    built = _build(request, target, progress)
    if not arrived:
        keep(built)
    record = record_engine(name, built, key, target.facts, options)
    keep_verdict(target.cache, verdict_key(target.facts, sha256_bytes(built.data), key.onnx_sha256), built.verdict)
    verdict = built.verdict
    if verdict is not None and verdict.wrong:
        raise verdict.error(name, f"{record.file}, just built by TensorRT {built.version}")
    if built.unproved is not None:
        progress.describe(f"graph {name}: compared again, in another process")
        engine = EngineOnDisk(name, target.cache.path(key), sha256_bytes(built.data))
        verdict = verdict_on(bundle, record, engine, target, progress)
    return MadeEngine(record, built.data, verdict, built.remarks)


def _build(request: EngineRequest, target: BuildTarget, progress: Progress) -> BuiltEngine:
    """Build the engine; where TensorRT fails, once more without the profile that another one covers."""
    try:
        return target.build(request, progress)
    except FlamestError as error:
        others = tuple(use for use in request.graph.uses if use.name != READ)
        if error.code != Code.PLAN_BUILD.value or not others or len(others) == len(request.graph.uses):
            raise
        remark = f"built without the profile '{READ}', with which TensorRT failed: {error.message}"
    progress.describe(f"graph {request.name}: built again without the profile '{READ}'")
    built = target.build(replace(request, graph=msgspec.structs.replace(request.graph, uses=others)), progress)
    return replace(built, remarks=(remark, *built.remarks))


def is_signed(folder: Path) -> bool:
    return (folder / SIGNATURE_FILE).is_file()


def build_problems(facts: MachineFacts) -> tuple[BackendUnavailable, ...]:
    """All that this machine lacks to build engines and to compare them, driver first; empty when it lacks nothing."""
    problems = []
    if facts.gpu is None:
        problems.append(no_gpu_reason(facts))
    if facts.tensorrt_problem:
        problems.append(unavailable(Code.TRT_LIBS, facts.tensorrt_problem))
    elif "tensorrt" not in facts.versions:
        problems.append(unavailable(Code.TRT_MISSING, "the Python package tensorrt is not installed"))
    elif not facts.tensorrt_builds:
        problems.append(unavailable(Code.TRT_NO_BUILDER, f"tensorrt {facts.versions['tensorrt']} has no Builder"))
    if "cuda-bindings" not in facts.versions:
        problems.append(unavailable(Code.CUDA_BINDINGS, "the Python package cuda-bindings is not installed"))
    return (*old_driver_reasons(facts, ("tensorrt", "cuda-bindings")), *problems)


def engine_key(facts: MachineFacts, onnx_sha256: str, options: EngineOptions) -> EngineKey:
    """The key of an engine built here; raises the first of ``build_problems``."""
    if problems := build_problems(facts):
        raise problems[0].error()
    gpu, capability = ("", "") if facts.gpu is None else (facts.gpu.name, facts.gpu.compute_capability)
    return EngineKey(onnx_sha256, facts.versions["tensorrt"], gpu, capability, options)


def engine_file_name(name: str, key: EngineKey) -> str:
    """File name of graph ``name``'s engine in a bundle: TensorRT, GPU and a part of the key's hash."""
    capability = key.compute_capability.replace(".", "")
    return f"{name}.trt{key.tensorrt}-sm{capability}-{key.digest[:8]}.plan"


def find_engine(name: str, graph: Graph, key: EngineKey) -> EngineRecord | None:
    """The bundle's engine of ``key``."""
    return next((record for record in graph.engines if record.file == engine_file_name(name, key)), None)


def record_engine(
    name: str, built: BuiltEngine, key: EngineKey, facts: MachineFacts, options: EngineOptions
) -> EngineRecord:
    return EngineRecord(
        file=engine_file_name(name, key),
        onnx_sha256=key.onnx_sha256,
        tensorrt=str(built.version),
        cuda=facts.cuda,
        driver=facts.driver or "unknown",
        gpu=key.gpu,
        compute_capability=key.compute_capability,
        options=options,
        build_seconds=round(built.seconds, 2),
    )
