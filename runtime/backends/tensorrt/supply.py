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
from ..machine import MachineFacts, no_gpu_reason
from ..unavailable import BackendUnavailable, Code, unavailable
from .build_process import build_engine_in_child
from .builder import BuiltEngine, EngineRequest
from .cache import CachedEngine, EngineCache, EngineKey
from .progress import BUILD_STEPS

Build = Callable[[EngineRequest, Progress], BuiltEngine]
ENGINE_SUFFIX = ".plan"


@dataclass(frozen=True)
class BuildTarget:
    """This machine's facts, the build options, and the cache that engines are built for."""

    facts: MachineFacts
    options: EngineOptions
    cache: EngineCache
    timing_cache: Path | None = None  # None: the cache's own for this TensorRT and GPU
    build: Build = build_engine_in_child
    again: bool = False  # also build engines that exist already


@dataclass(frozen=True)
class EngineResult:
    """The engine of one graph, found or built."""

    graph: str
    path: Path
    bytes: int
    record: EngineRecord
    fresh: bool  # built now; else it existed already
    remarks: tuple[str, ...] = ()


def local_build_options(manifest: Manifest, name: str) -> EngineOptions:
    """Options of engines that a node builds for itself: the exporter's where they change results, else the default."""
    engines = manifest.graphs[name].engines
    return EngineOptions(tf32=engines[0].options.tf32) if engines else EngineOptions()


def cached_engine(bundle: Bundle, name: str, target: BuildTarget, progress: Progress) -> CachedEngine:
    """This node's engine of graph ``name``, from the cache, or built now (minutes) and added to it.

    ``progress`` counts ``progress.BUILD_STEPS``. Raises the errors of ``build_engine``.
    """
    key = _key(bundle.manifest, name, target)
    if not target.again and (kept := target.cache.find(key)) is not None:
        progress.advance(BUILD_STEPS)
        return kept
    built = _build(bundle, name, key, target, progress)
    record = record_engine(name, built, key, target.facts)
    target.cache.keep(key, record, built.data)
    return CachedEngine(record, built.data)


def ensure_cached_engine(bundle: Bundle, name: str, target: BuildTarget, progress: Progress) -> EngineResult:
    """Make sure that the cache holds this node's engine of graph ``name``."""
    key = _key(bundle.manifest, name, target)
    there = not target.again and target.cache.find(key) is not None
    kept = cached_engine(bundle, name, target, progress)
    path = target.cache.folder / f"{key.digest}{ENGINE_SUFFIX}"
    return EngineResult(name, path, len(kept.data), kept.record, fresh=not there)


def ensure_bundled_engine(
    bundle: Bundle, name: str, target: BuildTarget, progress: Progress
) -> tuple[Bundle, EngineResult]:
    """Add this machine's engine of graph ``name`` to the bundle folder unless it holds it; return the new bundle."""
    manifest = bundle.manifest
    key, graph = _key(manifest, name, target), manifest.graphs[name]
    if not target.again and (record := find_engine(name, graph, key)) is not None:
        progress.advance(BUILD_STEPS)
        return bundle, EngineResult(
            name, bundle.path / record.file, manifest.files[record.file].bytes, record, fresh=False
        )
    built = _build(bundle, name, key, target, progress)
    record = record_engine(name, built, key, target.facts)
    manifest = with_engine(manifest, name, record, built.data)
    _put(bundle.path, record.file, built.data, manifest)
    supplied = EngineResult(name, bundle.path / record.file, len(built.data), record, fresh=True, remarks=built.remarks)
    return replace(bundle, manifest=manifest), supplied


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


def _key(manifest: Manifest, name: str, target: BuildTarget) -> EngineKey:
    return engine_key(target.facts, manifest.files[manifest.graphs[name].file].sha256, target.options)


def _build(bundle: Bundle, name: str, key: EngineKey, target: BuildTarget, progress: Progress) -> BuiltEngine:
    timings = target.timing_cache or target.cache.timings(key.tensorrt, key.gpu)
    request = EngineRequest(
        name, bundle.graph(name), key.onnx_sha256, bundle.manifest.graphs[name], target.options, timings
    )
    return target.build(request, progress)


def is_signed(folder: Path) -> bool:
    return (folder / SIGNATURE_FILE).is_file()


def build_problems(facts: MachineFacts) -> tuple[BackendUnavailable, ...]:
    """All that this machine lacks to build engines, driver first; empty when it can build them."""
    problems = []
    if facts.gpu is None:
        problems.append(no_gpu_reason(facts))
    if facts.tensorrt_problem:
        problems.append(unavailable(Code.TRT_LIBS, facts.tensorrt_problem))
    elif "tensorrt" not in facts.versions:
        problems.append(unavailable(Code.TRT_MISSING, "the Python package tensorrt is not installed"))
    elif not facts.tensorrt_builds:
        problems.append(unavailable(Code.TRT_NO_BUILDER, f"tensorrt {facts.versions['tensorrt']} has no Builder"))
    return tuple(problems)


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
