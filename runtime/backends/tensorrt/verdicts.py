"""Verdicts on this machine's engines: the one that is kept, or one made now by a trial in a child process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ....base.errors import FlamestError, StorageError
from ...bundle.graph_records import EngineOptions
from ...bundle.manifest import VisionLanguage
from ...bundle.opening import Bundle
from ..machine import MachineFacts
from .cache import EngineCache, VerdictKey, open_cache
from .engine import EngineFile
from .proof import OnnxFile, Proof
from .trial import try_engine
from .verdict import Verdict

SOURCES = {"text": "vision"}  # a graph whose inputs are another one's outputs


@dataclass(frozen=True)
class ProvedEngine:
    """An engine to be judged."""

    file: EngineFile
    key: VerdictKey
    proof: Proof


def make_proof(bundle: Bundle, name: str, options: EngineOptions, *, device: int = 0) -> Proof:
    """All that an engine of graph ``name`` is compared with."""
    vlm, source = bundle.manifest.vlm, SOURCES.get(name, "")
    vocabulary = vlm.text.vocabulary if isinstance(vlm, VisionLanguage) else 0
    has_source = source in bundle.manifest.graphs
    return Proof(name, _onnx(bundle, name), options, vocabulary, _onnx(bundle, source) if has_source else None, device)


def _onnx(bundle: Bundle, name: str) -> OnnxFile:
    graph = bundle.manifest.graphs[name]
    return OnnxFile(str(bundle.graph(name)), bundle.manifest.files[graph.file].sha256, graph)


def verdict_key(facts: MachineFacts, engine_sha256: str, onnx_sha256: str) -> VerdictKey:
    """The key of the verdict on an engine here."""
    gpu, capability = ("", "") if facts.gpu is None else (facts.gpu.name, facts.gpu.compute_capability)
    tensorrt = facts.versions.get("tensorrt", "")
    return VerdictKey(engine_sha256, onnx_sha256, tensorrt, facts.cuda, facts.driver, gpu, capability)


def standing_verdict(
    engine: ProvedEngine, cache: EngineCache | None, notice: Callable[[str], None] = lambda text: None
) -> Verdict:
    """The verdict that is kept, or that of a trial, which is kept then. It may be that the engine is wrong.

    ``notice`` is called before a trial, which takes about a minute. Raises the errors of ``try_engine``.
    """
    if cache is not None and (kept := cache.verdict(engine.key)) is not None:
        return kept
    name = engine.file.graph
    notice(f"graph '{name}': its TensorRT engine is compared with the ONNX graph; this takes about a minute, once")
    verdict = try_engine(engine.file, engine.proof)
    keep_verdict(cache, engine.key, verdict)
    return verdict


def keep_verdict(cache: EngineCache | None, key: VerdictKey, verdict: Verdict | None) -> None:
    """Keep a verdict that will not pass; where it cannot be written the engine is compared again the next time."""
    if cache is not None and verdict is not None and not verdict.passing:
        try:
            cache.keep_verdict(key, verdict)
        except (StorageError, OSError):
            return


def verdict_cache() -> EngineCache | None:
    """The user's engine cache; None where it cannot be used, and nothing is kept."""
    try:
        return open_cache()
    except FlamestError:
        return None
