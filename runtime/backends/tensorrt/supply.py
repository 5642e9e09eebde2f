"""Build this machine's engines and store them: in the bundle, or in this node's cache where the bundle is signed.

Each engine is stored as soon as it is built, so that finished ones remain when a later graph fails, and the next run
builds only the others.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from ....base.errors import StorageError
from ....base.files import fsync_directory, sha256_bytes, write_atomic
from ....base.progress import Progress
from ...bundle.graph_records import EngineOptions, EngineRecord, Graph
from ...bundle.manifest import MANIFEST_FILE, FileEntry, Manifest, encode_manifest
from ...bundle.manifest_reading import read_manifest
from ...bundle.opening import Bundle
from ...bundle.signature import SIGNATURE_FILE
from ..machine import MachineFacts, no_gpu_reason, old_driver_reasons
from ..unavailable import BackendUnavailable, Code, unavailable
from .build_process import build_engine_in_child
from .builder import BuiltEngine, EngineRequest
from .cache import CachedEngine, EngineCache, EngineKey
from .engine import EngineFile
from .profile import settled_options
from .progress import BUILD_STEPS
from .verdict import Verdict
from .verdicts import ProvedEngine, keep_verdict, make_proof, standing_verdict, verdict_key

Build = Callable[[EngineRequest, Progress], BuiltEngine]
Judge = Callable[[ProvedEngine, EngineCache | None, Callable[[str], None]], Verdict]
ENGINE_SUFFIX = ".plan"


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
    return EngineOptions(tf32=engines[0].options.tf32) if engines else EngineOptions()


def cached_engine(bundle: Bundle, name: str, target: BuildTarget, progress: Progress) -> CachedEngine:
    """This node's engine of graph ``name``, from the cache, or built now (minutes) and added to it.

    ``progress`` counts ``progress.BUILD_STEPS``. Raises the errors of ``build_engine``, and ENGINE_WRONG for a new one
    that does not compute what the graph does: it is kept with this verdict, and not built again at the next start.
    """
    key = target.key(bundle.manifest, name)
    if not target.again and (kept := target.cache.find(key)) is not None:
        progress.advance(BUILD_STEPS)
        return kept
    built = _build(bundle, name, key, target, progress)
    record = record_engine(name, built, key, target.facts)
    target.cache.keep(key, record, built.data)
    _raise_if_wrong(name, built, record)
    return CachedEngine(record, built.data)


def ensure_cached_engine(bundle: Bundle, name: str, target: BuildTarget, progress: Progress) -> EngineResult:
    """Make sure that the cache holds this node's engine of graph ``name``, and that it is right."""
    key = target.key(bundle.manifest, name)
    there = not target.again and target.cache.find(key) is not None
    kept = cached_engine(bundle, name, target, progress)
    path = target.cache.folder / f"{key.digest}{ENGINE_SUFFIX}"
    verdict = _verdict_on(bundle, kept.record, EngineOnDisk(name, path, sha256_bytes(kept.data)), target, progress)
    return EngineResult(name, path, len(kept.data), kept.record, fresh=not there, verdict=verdict)


def ensure_bundled_engine(
    bundle: Bundle, name: str, target: BuildTarget, progress: Progress
) -> tuple[Bundle, EngineResult]:
    """Add this machine's engine of graph ``name`` to the bundle folder unless it holds it; return the new bundle.

    Raises the errors of ``build_engine``, and ENGINE_WRONG for an engine that does not compute what the graph does; a
    new one is not added then.
    """
    manifest = bundle.manifest
    key, graph = target.key(manifest, name), manifest.graphs[name]
    if not target.again and (record := find_engine(name, graph, key)) is not None:
        progress.advance(BUILD_STEPS)
        file, path = manifest.files[record.file], bundle.path / record.file
        verdict = _verdict_on(bundle, record, EngineOnDisk(name, path, file.sha256), target, progress)
        return bundle, EngineResult(name, path, file.bytes, record, fresh=False, verdict=verdict)
    built = _build(bundle, name, key, target, progress)
    record = record_engine(name, built, key, target.facts)
    _raise_if_wrong(name, built, record)
    manifest = with_engine(manifest, name, record, built.data)
    _put(bundle.path, record.file, built.data, manifest)
    path = bundle.path / record.file
    supplied = EngineResult(name, path, len(built.data), record, True, built.remarks, built.verdict)
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


def _verdict_on(
    bundle: Bundle, record: EngineRecord, engine: EngineOnDisk, target: BuildTarget, progress: Progress
) -> Verdict:
    """The verdict on an engine that was there already; raises ENGINE_WRONG."""
    proved = proved_engine(bundle, record, engine, target.facts)
    verdict = target.judge(proved, target.cache, progress.describe)
    if verdict.wrong:
        raise verdict.error(engine.name, engine.path.name)
    return verdict


def _raise_if_wrong(name: str, built: BuiltEngine, record: EngineRecord) -> None:
    if built.verdict is not None and built.verdict.wrong:
        raise built.verdict.error(name, f"{record.file}, just built by TensorRT {built.version}")


def with_engine(manifest: Manifest, name: str, record: EngineRecord, data: bytes) -> Manifest:
    """The manifest with one more engine, or another one of the same file; its fingerprint is the same."""
    graph = manifest.graphs[name]
    others = (other for other in graph.engines if other.file != record.file)
    graphs = {**manifest.graphs, name: msgspec.structs.replace(graph, engines=(*others, record))}
    files = {**manifest.files, record.file: FileEntry(sha256=sha256_bytes(data), bytes=len(data))}
    files = dict(sorted(files.items()))
    return msgspec.structs.replace(manifest, graphs=graphs, files=files)


def remove_unlisted_engines(folder: Path) -> None:
    """Remove engines that the manifest does not list: a crash between the two writes of ``_put`` leaves one."""
    known = read_manifest(folder).files
    for file in folder.glob(f"*{ENGINE_SUFFIX}"):
        if file.name not in known and file.is_file() and not file.is_symlink():
            file.unlink()


def _put(folder: Path, file: str, data: bytes, manifest: Manifest) -> None:
    """Write the engine next to the bundle, move it in, then replace the manifest."""
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".plans", dir=folder.resolve().parent))
    except OSError as error:
        raise StorageError(
            f"cannot write next to {folder}: {error.strerror}",
            fix="check free space and permissions of the folder that the bundle is in",
        ) from error
    try:
        write_atomic(scratch / file, data)
        os.replace(scratch / file, folder / file)
        fsync_directory(folder)
    except OSError as error:
        raise StorageError(
            f"cannot write {folder / file}: {error.strerror}",
            fix="check free space and permissions of the bundle's folder",
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    write_atomic(folder / MANIFEST_FILE, encode_manifest(manifest))


def _build(bundle: Bundle, name: str, key: EngineKey, target: BuildTarget, progress: Progress) -> BuiltEngine:
    timings = target.timing_cache or target.cache.timings(key.tensorrt, key.gpu)
    proof = make_proof(bundle, name, key.options, device=target.facts.device)
    request = EngineRequest(
        name, bundle.graph(name), key.onnx_sha256, proof.onnx.graph, key.options, timings,
        proof.vocabulary, proof.source, proof.device,
    )  # fmt: skip
    built = target.build(request, progress)
    keep_verdict(target.cache, verdict_key(target.facts, sha256_bytes(built.data), key.onnx_sha256), built.verdict)
    return built


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


def record_engine(name: str, built: BuiltEngine, key: EngineKey, facts: MachineFacts) -> EngineRecord:
    return EngineRecord(
        file=engine_file_name(name, key),
        onnx_sha256=key.onnx_sha256,
        tensorrt=str(built.version),
        cuda=facts.cuda,
        driver=facts.driver or "unknown",
        gpu=key.gpu,
        compute_capability=key.compute_capability,
        options=key.options,
        build_seconds=round(built.seconds, 2),
    )
