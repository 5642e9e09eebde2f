"""Where a plan that is built here goes: into the bundle beside its ONNX graph, or into this node's plan cache.

A signed bundle does not change: its plans of this node are kept in the cache. Each plan is added by itself,
so what was built stays when a later graph fails, and the next run goes on from there.

Can plans be built on this machine, and what is written down about where one was built.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ....base.errors import StorageError
from ....base.files import fsync_directory, sha256_bytes, write_atomic
from ....base.progress import Progress
from ...bundle.manifest import MANIFEST_FILE, FileEntry, Manifest, encode_manifest, read_manifest
from ...bundle.opening import Bundle
from ...bundle.records import EngineOptions, EngineRecord, Graph
from ...bundle.signature import SIGNATURE_FILE
from ..machine import MachineFacts, no_gpu
from ..unavailable import BackendUnavailable, Code, unavailable
from .build_process import build_engine_in_child
from .builder import BuiltEngine, EngineRequest
from .cache import CachedEngine, EngineCache, EngineKey
from .progress import STEPS

Build = Callable[[EngineRequest, Progress], BuiltEngine]
SUFFIX = ".plan"


@dataclass(frozen=True)
class BuildTarget:
    """This machine as a place where plans are built."""

    facts: MachineFacts
    options: EngineOptions
    cache: EngineCache
    timing_cache: Path | None = None  # None: the one of this TensorRT and GPU in ``cache``
    build: Build = build_engine_in_child
    again: bool = False  # build what is there already too


@dataclass(frozen=True)
class EngineResult:
    """A plan of one graph that is now there."""

    graph: str
    path: Path
    bytes: int
    record: EngineRecord
    fresh: bool  # built now; else it was there already
    remarks: tuple[str, ...] = ()


def local_build_options(manifest: Manifest, name: str) -> EngineOptions:
    """How a node builds a plan for itself: as the exporter did where that changes numbers, else the default."""
    plans = manifest.graphs[name].engines
    return EngineOptions(tf32=plans[0].options.tf32) if plans else EngineOptions()


def cached_engine(bundle: Bundle, name: str, target: BuildTarget, progress: Progress) -> CachedEngine:
    """This node's plan of graph ``name``: from the cache, or built now (minutes) and kept there.

    ``progress`` counts ``plan_progress.STEPS``. Raises what ``build_engine`` raises.
    """
    key = _key(bundle.manifest, name, target)
    if not target.again and (kept := target.cache.find(key)) is not None:
        progress.advance(STEPS)
        return kept
    built = _build(bundle, name, key, target, progress)
    record = record_engine(name, built, key, target.facts)
    target.cache.keep(key, record, built.data)
    return CachedEngine(record, built.data)


def ensure_cached_engine(bundle: Bundle, name: str, target: BuildTarget, progress: Progress) -> EngineResult:
    """Make sure that the cache holds this node's plan of graph ``name``."""
    key = _key(bundle.manifest, name, target)
    there = not target.again and target.cache.find(key) is not None
    kept = cached_engine(bundle, name, target, progress)
    path = target.cache.folder / f"{key.digest}{SUFFIX}"
    return EngineResult(name, path, len(kept.data), kept.record, fresh=not there)


def ensure_bundled_engine(
    bundle: Bundle, name: str, target: BuildTarget, progress: Progress
) -> tuple[Bundle, EngineResult]:
    """Add this machine's plan of graph ``name`` to the bundle folder, unless it holds it; the bundle as it is now."""
    manifest = bundle.manifest
    key, graph = _key(manifest, name, target), manifest.graphs[name]
    if not target.again and (record := find_engine(name, graph, key)) is not None:
        progress.advance(STEPS)
        return bundle, EngineResult(
            name, bundle.path / record.file, manifest.files[record.file].bytes, record, fresh=False
        )
    built = _build(bundle, name, key, target, progress)
    record = record_engine(name, built, key, target.facts)
    manifest = with_engine(manifest, name, record, built.data)
    _put(bundle.path, record.file, built.data, manifest)
    supplied = EngineResult(name, bundle.path / record.file, len(built.data), record, fresh=True, remarks=built.remarks)
    return Bundle(bundle.path, manifest), supplied


def with_engine(manifest: Manifest, name: str, record: EngineRecord, data: bytes) -> Manifest:
    """The manifest of the same bundle with one more plan, or another of the same file; its fingerprint is the same."""
    graph = manifest.graphs[name]
    others = (other for other in graph.engines if other.file != record.file)
    graphs = {**manifest.graphs, name: msgspec.structs.replace(graph, engines=(*others, record))}
    files = {**manifest.files, record.file: FileEntry(sha256=sha256_bytes(data), bytes=len(data))}
    files = dict(sorted(files.items()))
    return msgspec.structs.replace(manifest, graphs=graphs, files=files)


def remove_unlisted_engines(folder: Path) -> None:
    """Remove plans that the manifest does not know: what a crash between the two writes of ``_put`` leaves."""
    known = read_manifest(folder).files
    for file in folder.glob(f"*{SUFFIX}"):
        if file.name not in known and file.is_file() and not file.is_symlink():
            file.unlink()


def _put(folder: Path, file: str, data: bytes, manifest: Manifest) -> None:
    """Write the plan beside the bundle, move it in, then replace the manifest."""
    try:
        fallback_folder = Path(
            tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".plans", dir=folder.resolve().parent)
        )
    except OSError as error:
        raise StorageError(f"cannot write beside {folder}: {error.strerror}") from error
    try:
        write_atomic(fallback_folder / file, data)
        os.replace(fallback_folder / file, folder / file)
        fsync_directory(folder)
    except OSError as error:
        raise StorageError(f"cannot write {folder / file}: {error.strerror}") from error
    finally:
        shutil.rmtree(fallback_folder, ignore_errors=True)
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
    """All that is missing here to build plans, driver first; empty when they can be built."""
    problems = []
    if facts.gpu is None:
        problems.append(no_gpu(facts))
    if facts.tensorrt_problem:
        problems.append(unavailable(Code.TRT_LIBS, facts.tensorrt_problem))
    elif "tensorrt" not in facts.versions:
        problems.append(unavailable(Code.TRT_MISSING, "the Python package tensorrt is not installed"))
    elif not facts.tensorrt_builds:
        problems.append(unavailable(Code.TRT_NO_BUILDER, f"tensorrt {facts.versions['tensorrt']} has no Builder"))
    return tuple(problems)


def engine_key(facts: MachineFacts, onnx_sha256: str, options: EngineOptions) -> EngineKey:
    """What a plan built here would be; raises the first of ``build_problems``."""
    if problems := build_problems(facts):
        raise problems[0].error()
    gpu, capability = ("", "") if facts.gpu is None else (facts.gpu.name, facts.gpu.compute_capability)
    return EngineKey(onnx_sha256, facts.versions["tensorrt"], gpu, capability, options)


def engine_file_name(name: str, key: EngineKey) -> str:
    """The file of graph ``name``'s plan in a bundle: one per key, readable up to its last word."""
    capability = key.compute_capability.replace(".", "")
    return f"{name}.trt{key.tensorrt}-sm{capability}-{key.digest[:8]}.plan"


def find_engine(name: str, graph: Graph, key: EngineKey) -> EngineRecord | None:
    """The plan of ``key`` among those of the bundle."""
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
